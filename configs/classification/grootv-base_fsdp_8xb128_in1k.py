# Parameters, gradients and optimizer states of GrootV-B spread over the processes.
_base_ = ['./grootv-base_8xb128_in1k.py']

runner_type = 'FlexibleRunner'
strategy = dict(type='grootv.FSDPStrategy')
# FlexibleRunner loads a checkpoint before mmpretrain's hook has its copy of the network.
custom_hooks = [dict(type='grootv.EMAHook', momentum=1e-4, update_buffers=True, priority='ABOVE_NORMAL')]
