# The published run scales three rates by the total batch size over 512. At 8 GPUs x 128 = 1024:
#   learning rate  5e-4 * 1024 / 512 = 1e-3
#   warm-up from   5e-7 * 1024 / 512 = 1e-6 = 1e-3 * the learning rate
#   floor          5e-6 * 1024 / 512 = 1e-5 = 1e-2 * the learning rate
# Warm-up and floor are given as ratios: --auto-scale-lr then scales all three alike.
optim_wrapper = dict(
    type='OptimWrapper',  # tools/train.py --amp: float16 with loss scaling
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        # The published run decays these two: it exempts parameters of one dimension, and stores
        # both with two. Set both to 0.0 to exempt them, as Mamba's own recipe does.
        custom_keys={
            'A_log': dict(decay_mult=1.0),
            'dt_proj.bias': dict(decay_mult=1.0),
        },
    ),
    clip_grad=dict(max_norm=5.0),
)

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-2,
        by_epoch=True,
        begin=20,
        convert_to_iter_based=True,
    ),
]

# Decay 0.9999 of buffers too (BatchNorm in the head), as timm's ModelEma. MMEngine's momentum is
# 1 - decay. Validation and checkpoints use the averaged weights.
custom_hooks = [dict(type='EMAHook', momentum=1e-4, update_buffers=True, priority='ABOVE_NORMAL')]

train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=1024, enable=False)
