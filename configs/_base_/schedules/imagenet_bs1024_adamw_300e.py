_base_ = './adamw.py'

# The published run scales three rates by the total batch size over 512. At 8 GPUs x 128 = 1024:
#   learning rate  5e-4 * 1024 / 512 = 1e-3
#   warm-up from   5e-7 * 1024 / 512 = 1e-6 = 1e-3 * the learning rate
#   floor          5e-6 * 1024 / 512 = 1e-5 = 1e-2 * the learning rate
# Its cosine spans all 300 epochs, and the warm-up overrides the first 20 of them.
# Warm-up and floor are given as ratios: --auto-scale-lr then scales all three alike.
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.05), clip_grad=dict(max_norm=5.0))

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(
        type='grootv.CosineAnnealingLR',
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
auto_scale_lr = dict(base_batch_size=1024)
