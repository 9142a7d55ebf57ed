optim_wrapper = dict(
    type='OptimWrapper',  # tools/train.py --amp: float16 with loss scaling
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        # As in the classification recipe: the two parameters that decay though they are flat by nature.
        custom_keys={
            'A_log': dict(decay_mult=1.0),
            'dt_proj.bias': dict(decay_mult=1.0),
        },
    ),
)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, end=1600),
    dict(type='PolyLR', power=1.0, by_epoch=False, begin=1600, end=160000),
]

train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=8000)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=16, enable=False)
