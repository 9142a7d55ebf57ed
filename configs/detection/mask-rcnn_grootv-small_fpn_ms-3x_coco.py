_base_ = [
    '../_base_/models/mask-rcnn_grootv-small_fpn.py',
    '../_base_/datasets/coco_instance_ms.py',
    '../_base_/schedules/coco_bs16_adamw_3x.py',
    '../_base_/detection_runtime.py',
]
