_base_ = './default_runtime.py'

default_scope = 'mmseg'

default_hooks = dict(
    logger=dict(interval=50, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=8000, save_best='mIoU'),
    visualization=dict(_delete_=True, type='SegVisualizationHook'),
)
log_processor = dict(by_epoch=False)

visualizer = dict(
    _delete_=True, type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer'
)

# Several GPUs share the statistics of the heads' BatchNorm layers.
sync_bn = 'torch'
