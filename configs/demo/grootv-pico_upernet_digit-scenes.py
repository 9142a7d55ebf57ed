_base_ = [
    '../_base_/models/upernet_grootv-tiny.py',
    '../_base_/datasets/ade20k_512x512_bs2.py',
    '../_base_/schedules/ade20k_bs16_adamw_160k.py',
    '../_base_/segmentation_runtime.py',
]

# 0.5 M parameters in the backbone, as in grootv-pico_digits.py, whose checkpoint it starts from; the heads
# a tenth as wide as UPerNet's.
classes = ('background', *'0123456789')
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=16, depths=[1, 1, 2, 1]),
        drop_path_rate=0.05,
        init_cfg=dict(checkpoint='work_dirs/grootv-pico_digits/epoch_20.pth'),
    ),
    decode_head=dict(in_channels=[16, 32, 64, 128], channels=48, num_classes=11),
    auxiliary_head=dict(in_channels=64, channels=24, num_classes=11),
)

# No mirror images, because a mirrored digit is not a digit; the scenes vary in colour themselves.
train_pipeline = [
    dict(type='grootv.LoadImageFromFile'),
    dict(type='grootv.LoadSegAnnotations'),
    dict(type='grootv.CheckSegLabels', num_classes=11),
    dict(type='RandomResize', scale=(128, 128), ratio_range=(0.8, 1.4), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(128, 128)),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='grootv.LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='grootv.CheckSegLabels', num_classes=11),
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    dict(type='grootv.LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(size, size), keep_ratio=True) for size in (96, 128, 160)],
            [dict(type='LoadAnnotations')],
            [dict(type='grootv.CheckSegLabels', num_classes=11)],
            [dict(type='PackSegInputs')],
        ],
    ),
]

# The folders of ADE20K with other classes.
dataset = dict(
    type='grootv.SegDataset',
    data_root='data/digit_scenes',
    metainfo=dict(
        classes=classes,
        palette=[
            [90, 90, 90],
            [230, 25, 75],
            [60, 180, 75],
            [255, 225, 25],
            [0, 130, 200],
            [245, 130, 48],
            [145, 30, 180],
            [70, 240, 240],
            [240, 50, 230],
            [210, 245, 60],
            [250, 190, 212],
        ],
    ),
    reduce_zero_label=True,
)
train_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(pipeline=train_pipeline, **dataset))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=3e-3), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=100),
    dict(type='PolyLR', power=1.0, by_epoch=False, begin=100, end=3600),
]
train_cfg = dict(max_iters=3600, val_interval=900)
default_hooks = dict(checkpoint=dict(interval=900))
auto_scale_lr = dict(base_batch_size=8)
randomness = dict(seed=0)
