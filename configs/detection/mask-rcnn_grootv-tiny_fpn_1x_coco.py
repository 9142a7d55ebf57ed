_base_ = [
    '../_base_/models/mask-rcnn_grootv-tiny_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_bs16_adamw_1x.py',
    '../_base_/detection_runtime.py',
]
