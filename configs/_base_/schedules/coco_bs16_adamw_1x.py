_base_ = './adamw.py'

optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=0.05))

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=500),
    dict(type='MultiStepLR', by_epoch=True, milestones=[8, 11], gamma=0.1),
]

train_cfg = dict(by_epoch=True, max_epochs=12, val_interval=1)
auto_scale_lr = dict(base_batch_size=16)
