_base_ = [
    '../_base_/models/mask-rcnn_grootv-tiny_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_bs16_adamw_1x.py',
    '../_base_/detection_runtime.py',
]

# 0.5 M parameters in the backbone, as in grootv-pico_digits.py, whose checkpoint it starts from; the neck
# and the heads a quarter as wide as Mask R-CNN's.
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=16, depths=[1, 1, 2, 1]),
        drop_path_rate=0.05,
        init_cfg=dict(checkpoint='work_dirs/grootv-pico_digits/epoch_20.pth'),
    ),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=2, use_torchvision=True)),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=2, use_torchvision=True)),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=10),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=32)),
        rpn_proposal=dict(nms_pre=500, max_per_img=100),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=100)),
)

# No mirror images, because a mirrored digit is not a digit; the scenes vary in colour themselves.
train_pipeline = [
    dict(type='grootv.LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomResize', scale=(128, 128), ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='grootv.LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]

data_root = 'data/digit_scenes/'
metainfo = dict(
    classes=tuple('0123456789'),
    palette=[
        (230, 25, 75),
        (60, 180, 75),
        (255, 225, 25),
        (0, 130, 200),
        (245, 130, 48),
        (145, 30, 180),
        (70, 240, 240),
        (240, 50, 230),
        (210, 245, 60),
        (250, 190, 212),
    ],
)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/training.json',
        data_prefix=dict(img='images/training/'),
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/validation.json',
        data_prefix=dict(img='images/validation/'),
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/validation.json')
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=2e-3), clip_grad=dict(max_norm=10.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=100),
    dict(type='MultiStepLR', by_epoch=True, milestones=[4, 5], gamma=0.1),
]
train_cfg = dict(max_epochs=6)
# The scenes are small, and a digit may be found as two classes: pictures show what is likely.
visualizer = dict(line_width=1)
default_hooks = dict(visualization=dict(score_thr=0.7))
auto_scale_lr = dict(base_batch_size=8)
randomness = dict(seed=0)
