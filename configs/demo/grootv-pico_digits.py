_base_ = [
    '../_base_/models/grootv_tiny.py',
    '../_base_/datasets/imagenet_bs128.py',
    '../_base_/schedules/imagenet_bs1024_adamw_300e.py',
    '../_base_/default_runtime.py',
]

# 0.5 M parameters
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=16, depths=[1, 1, 2, 1]), drop_path_rate=0.05),
    head=dict(num_classes=10, in_channels=128),
    train_cfg=None,  # no MixUp or CutMix
)
data_preprocessor = dict(num_classes=10)

train_pipeline = [
    dict(type='grootv.LoadImageFromFile'),
    dict(
        type='RandomResizedCrop',
        scale=32,
        crop_ratio_range=(0.7, 1.0),
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='grootv.LoadImageFromFile'),
    dict(type='ResizeEdge', scale=32, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=32),
    dict(type='PackInputs'),
]

# A mirrored digit is not a digit: the views of --tta differ in size only.
tta_pipeline = [
    dict(type='grootv.LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='ResizeEdge', scale=size, backend='pillow', interpolation='bicubic')
                for size in (32, 36)
            ],
            [dict(type='PackInputs')],
        ],
    ),
]

classes = tuple('0123456789')
dataset = dict(data_root='data/digits', metainfo=dict(classes=classes))
train_dataloader = dict(batch_size=64, num_workers=2, dataset=dict(pipeline=train_pipeline, **dataset))
val_dataloader = dict(num_workers=2, dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=2, convert_to_iter_based=True),
    dict(
        type='grootv.CosineAnnealingLR',
        eta_min_ratio=1e-2,
        by_epoch=True,
        begin=2,
        convert_to_iter_based=True,
    ),
]
custom_hooks = [dict(type='EMAHook', momentum=2e-2, update_buffers=True, priority='ABOVE_NORMAL')]
train_cfg = dict(max_epochs=20)
auto_scale_lr = dict(base_batch_size=64)
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=10))
