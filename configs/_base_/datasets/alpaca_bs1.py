dataset = dict(
    type='grootv.InstructionDataset',
    data_root='data/alpaca',
    ann_file='alpaca_data.json',
    tokenizer='data/mamba-130m-hf',
    max_length=2048,
)

# Of 52,002 items the last 2,002 are held out.
train_dataloader = dict(
    batch_size=1,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(indices=50000, **dataset),
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='grootv.pad_right'),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(indices=-2002, **dataset),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='grootv.pad_right'),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='grootv.Perplexity')
test_evaluator = val_evaluator
