# A small Mamba learns the language of Python's help texts from nothing.
_base_ = ['../../_base_/datasets/topics_bs8.py', '../../_base_/topics_runtime.py']

start = 'work_dirs/language/start'  # tools/language/new_model.py writes it

model = dict(type='grootv.LanguageModel', pretrained=start, tree=dict(scale=0.0))

dataset = dict(type='grootv.TextDataset', data_root='data/topics', tokenizer=start, length=256)
train_dataloader = dict(dataset=dict(ann_file='texts_train.json', **dataset))
val_dataloader = dict(dataset=dict(ann_file='texts_held-out.json', **dataset))
test_dataloader = val_dataloader

# 51 iterations go once through the texts, and after five times they are known by heart.
train_cfg = dict(max_iters=220, val_interval=110)
optim_wrapper = dict(optimizer=dict(lr=4e-3, betas=(0.9, 0.98), weight_decay=0.1))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=30),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.05, by_epoch=False, begin=30),
]
default_hooks = dict(checkpoint=dict(interval=110))
