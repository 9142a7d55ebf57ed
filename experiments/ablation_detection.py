_base_ = ['../configs/demo/mask-rcnn_grootv-pico_fpn_digit-scenes.py']

# Scenes of photographs by stamp_scenes.py, from random weights.
custom_imports = dict(imports=['experiments.scans'])
model = dict(
    backbone=dict(type='grootv.ScanAblation', path='tree', roots='all', init_cfg=None),
    roi_head=dict(bbox_head=dict(num_classes=2), mask_head=dict(num_classes=2)),
)

data_root = 'data/stamp_scenes/'
dataset = dict(
    data_root=data_root,
    metainfo=dict(_delete_=True, classes=('animal', 'thing'), palette=[(230, 25, 75), (60, 180, 75)]),
)
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/validation.json')
test_evaluator = val_evaluator

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=100),
    dict(type='MultiStepLR', by_epoch=True, milestones=[2], gamma=0.1),
]
train_cfg = dict(max_epochs=3)
