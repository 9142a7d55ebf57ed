# Python's help texts, as tools/dataset_converters/topics.py writes them; what an item is, the config says.
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='grootv.pad_right'),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='grootv.pad_right'),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='grootv.Perplexity')
test_evaluator = val_evaluator
