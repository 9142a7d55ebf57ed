_base_ = [
    '../_base_/models/fpn_grootv-tiny.py',
    '../_base_/datasets/ade20k_512x512_bs2.py',
    '../_base_/schedules/ade20k_bs16_adamw_160k.py',
    '../_base_/segmentation_runtime.py',
]

train_dataloader = dict(batch_size=4)

optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=1e-4))
param_scheduler = [dict(type='PolyLR', power=0.9, by_epoch=False, end=40000)]
train_cfg = dict(max_iters=40000)
auto_scale_lr = dict(base_batch_size=32)
