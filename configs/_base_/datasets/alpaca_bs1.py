# All of Alpaca's 52,002 items, without the sentences that Alpaca's own prompts begin with.
train_dataloader = dict(
    batch_size=1,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type='grootv.InstructionDataset',
        data_root='data/alpaca',
        ann_file='alpaca_data.json',
        tokenizer='data/mamba-130m-hf',
        preamble='none',
        max_length=2048,
    ),
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='grootv.pad_right'),
)
