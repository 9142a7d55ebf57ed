# What every detector on GrootV-T shares; the other files add the neck and the heads.
model = dict(
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='grootv.GrootV',
        arch='tiny',
        drop_path_rate=0.2,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/grootv-tiny_8xb128_in1k/epoch_300.pth',
            prefix='backbone.',
        ),
    ),
)
