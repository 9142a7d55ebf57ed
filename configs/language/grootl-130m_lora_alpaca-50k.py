# The last 2,002 of Alpaca's items are held out for a perplexity, which the merged model has too.
_base_ = './grootl-130m_lora_alpaca.py'

model = dict(keep_tied=False)

train_dataloader = dict(dataset=dict(indices=50000))
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type='grootv.InstructionDataset',
        data_root='data/alpaca',
        ann_file='alpaca_data.json',
        indices=-2002,
        tokenizer='data/mamba-130m-hf',
        preamble='none',
        max_length=2048,
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='grootv.pad_right'),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='grootv.Perplexity')
test_evaluator = val_evaluator

train_cfg = dict(max_iters=50000, val_interval=10000)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(save_best='perplexity'))
