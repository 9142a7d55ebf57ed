# What the segmentors of this size share; the other files add the heads.
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(512, 512),  # crops of small images are padded to this size in training
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type='grootv.GrootV',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.2,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/grootv-tiny_8xb128_in1k/epoch_300.pth',
            prefix='backbone.',
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
