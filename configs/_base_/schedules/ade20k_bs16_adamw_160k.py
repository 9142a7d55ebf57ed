_base_ = './adamw.py'

optim_wrapper = dict(optimizer=dict(lr=6e-5, weight_decay=0.01))

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, end=1600),
    dict(type='PolyLR', power=1.0, by_epoch=False, begin=1600, end=160000),
]

train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=8000)
auto_scale_lr = dict(base_batch_size=16)
