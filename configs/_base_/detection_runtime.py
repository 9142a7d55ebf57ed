_base_ = './default_runtime.py'

default_scope = 'mmdet'

default_hooks = dict(
    logger=dict(interval=50),
    visualization=dict(_delete_=True, type='DetVisualizationHook'),
)
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
visualizer = dict(type='DetLocalVisualizer')

# Refuses heads for another number of classes than the data have.
custom_hooks = [dict(type='NumClassCheckHook')]
