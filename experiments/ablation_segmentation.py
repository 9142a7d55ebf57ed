_base_ = ['../configs/demo/grootv-pico_upernet_digit-scenes.py']

# Scenes of photographs by stamp_scenes.py, from random weights.
custom_imports = dict(imports=['experiments.scans'])
model = dict(
    backbone=dict(type='grootv.ScanAblation', path='tree', roots='all', init_cfg=None),
    decode_head=dict(num_classes=3),
    auxiliary_head=dict(num_classes=3),
)

check = dict(type='grootv.CheckSegLabels', num_classes=3)
train_pipeline = [
    dict(type='grootv.LoadImageFromFile'),
    dict(type='grootv.LoadSegAnnotations'),
    check,
    dict(type='RandomResize', scale=(128, 128), ratio_range=(0.8, 1.4), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(128, 128)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='grootv.LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    check,
    dict(type='PackSegInputs'),
]
scenes = dict(
    data_root='data/stamp_scenes',
    metainfo=dict(
        _delete_=True,
        classes=('background', 'animal', 'thing'),
        palette=[[90, 90, 90], [230, 25, 75], [60, 180, 75]],
    ),
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, **scenes))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **scenes))
test_dataloader = val_dataloader

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=100),
    dict(type='PolyLR', power=1.0, by_epoch=False, begin=100, end=1200),
]
train_cfg = dict(max_iters=1200, val_interval=400)
default_hooks = dict(checkpoint=dict(interval=400))
