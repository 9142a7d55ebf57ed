_base_ = './default_runtime.py'

default_scope = 'mmdet'

default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(save_best='coco/bbox_mAP'),
    visualization=dict(_delete_=True, type='DetVisualizationHook'),
)
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
visualizer = dict(type='DetLocalVisualizer')
