_base_ = [
    '../_base_/models/upernet_grootv-small.py',
    '../_base_/datasets/ade20k_512x512_bs2.py',
    '../_base_/schedules/ade20k_bs16_adamw_160k.py',
    '../_base_/segmentation_runtime.py',
]
