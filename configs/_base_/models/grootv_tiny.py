model = dict(
    type='ImageClassifier',
    backbone=dict(type='grootv.GrootV', arch='tiny', drop_path_rate=0.1),
    head=dict(
        type='grootv.GrootVClsHead',
        num_classes=1000,
        in_channels=640,  # 8 * embed_dims
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    # One of the two for every batch, each as often as the other (timm: switch probability 0.5).
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
