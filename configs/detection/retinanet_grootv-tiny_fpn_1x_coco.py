_base_ = [
    '../_base_/models/retinanet_grootv-tiny_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_bs16_adamw_1x.py',
    '../_base_/detection_runtime.py',
]
