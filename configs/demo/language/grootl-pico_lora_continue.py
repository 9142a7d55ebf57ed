# The small Mamba of mamba-pico_topics.py, fine-tuned to continue passages, with the published tree.
_base_ = [
    '../../_base_/models/grootl-130m_lora.py',
    '../../_base_/datasets/topics_bs8.py',
    '../../_base_/topics_runtime.py',
]

base = 'work_dirs/language/mamba-pico'  # demo/train_language.py writes it

model = dict(pretrained=base)

dataset = dict(type='grootv.InstructionDataset', data_root='data/topics', tokenizer=base, max_length=512)
train_dataloader = dict(dataset=dict(ann_file='continue_train.json', **dataset))
val_dataloader = dict(dataset=dict(ann_file='continue_held-out.json', **dataset))
test_dataloader = val_dataloader

# 109 iterations go once through the passages. The published rate is lower: for a large model and many items.
train_cfg = dict(max_iters=80, val_interval=80)
optim_wrapper = dict(optimizer=dict(lr=5e-3, betas=(0.9, 0.999), weight_decay=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=20),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.05, by_epoch=False, begin=20),
]
default_hooks = dict(checkpoint=dict(interval=80))
