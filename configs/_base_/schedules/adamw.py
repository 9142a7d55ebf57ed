# What the recipes of all vision tasks share. A schedule adds rates, their course and the length of a run.
optim_wrapper = dict(
    type='OptimWrapper',  # tools/train.py --amp: float16 with loss scaling
    optimizer=dict(type='AdamW', betas=(0.9, 0.999)),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        # The published ImageNet run decays these two: it exempts parameters of one dimension, and stores
        # both with two. Set both to 0.0 to exempt them, as Mamba's own recipe does.
        custom_keys={
            'A_log': dict(decay_mult=1.0),
            'dt_proj.bias': dict(decay_mult=1.0),
        },
    ),
)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(enable=False)
