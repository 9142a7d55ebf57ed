model = dict(
    type='grootv.LanguageModel',
    pretrained='data/mamba-130m-hf',
    tree=dict(scale=0.3, reach=3, causal=False),
    lora=dict(
        r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=['x_proj', 'embeddings', 'in_proj', 'out_proj'],
    ),
)
