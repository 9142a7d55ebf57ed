# Mixed precision in bfloat16: weights and their updates in float32, no loss scaling.
optim_wrapper = dict(
    type='grootv.BFloat16OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-5, betas=(0.9, 0.999), weight_decay=0.0),
    clip_grad=dict(max_norm=1.0),
    accumulative_counts=16,
)

# Warm-up takes 20 updates of 16 iterations, then the rate is constant.
param_scheduler = [dict(type='LinearLR', start_factor=1 / 320, by_epoch=False, end=320)]

# An epoch of 52,002 items, one an iteration: by iterations, because a stopped run continues from its last
# checkpoint, not from the end of an epoch. The last update has the two items that are left.
train_cfg = dict(by_epoch=False, max_iters=52002)

# The accumulated iterations are not counted.
auto_scale_lr = dict(base_batch_size=1, enable=False)
