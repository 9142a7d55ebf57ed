# Training a small model on Python's help texts: a run of minutes, the last checkpoint alone is kept.
_base_ = './language_runtime.py'

train_cfg = dict(by_epoch=False)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW'), clip_grad=dict(max_norm=1.0))
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
auto_scale_lr = dict(base_batch_size=8, enable=False)
randomness = dict(seed=0)
