# data/ade/{images,annotations}/{training,validation}: NAME.jpg, and NAME.png with 0 for "no class", 1 to 150
train_pipeline = [
    dict(type='grootv.LoadImageFromFile'),
    dict(type='grootv.LoadSegAnnotations'),
    dict(type='grootv.CheckSegLabels', num_classes=150),
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]

# The label map keeps its own size: predictions are brought back to it. mmseg's inference functions take
# out the step LoadAnnotations, which they know by this name.
test_pipeline = [
    dict(type='grootv.LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='grootv.CheckSegLabels', num_classes=150),
    dict(type='PackSegInputs'),
]

# tools/test.py --tta: the mean of the softmax scores over six sizes and their mirror images.
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='grootv.LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(int(2048 * ratio), int(512 * ratio)), keep_ratio=True)
                for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='grootv.CheckSegLabels', num_classes=150)],
            [dict(type='PackSegInputs')],
        ],
    ),
]

# Processes that are started again at every checkpoint draw augmentations that a resumed run repeats.
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=False,
    pin_memory=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='grootv.ADE20KDataset',
        data_root='data/ade',
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='grootv.ADE20KDataset',
        data_root='data/ade',
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])

test_dataloader = val_dataloader
test_evaluator = val_evaluator
