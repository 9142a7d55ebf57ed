_base_ = [
    '../_base_/models/dino-4scale_grootv-tiny.py',
    '../_base_/datasets/coco_detection_ms.py',
    '../_base_/schedules/coco_bs16_adamw_1x.py',
    '../_base_/detection_runtime.py',
]

# DINO's own optimizer and schedule.
optim_wrapper = dict(
    optimizer=dict(weight_decay=1e-4),
    paramwise_cfg=dict(_delete_=True, custom_keys=dict(backbone=dict(lr_mult=0.1))),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[11], gamma=0.1)]

train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False)))
tta_model = dict(tta_cfg=dict(max_per_img=300))
