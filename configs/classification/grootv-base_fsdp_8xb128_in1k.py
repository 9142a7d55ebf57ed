# Parameters, gradients and optimizer states of GrootV-B spread over the processes.
_base_ = ['./grootv-base_8xb128_in1k.py']

runner_type = 'FlexibleRunner'
strategy = dict(
    type='grootv.FSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        auto_wrap_policy='grootv.engine.sharding.wrap_blocks',
        use_orig_params=True,
    ),
    # Checkpoints are those of the unsharded network. Every process reads them whole.
    state_dict_cfg=dict(
        state_dict_type='FULL_STATE_DICT',
        state_dict_config=dict(type='FullStateDictConfig', offload_to_cpu=True),
        optim_state_dict_config=dict(type='FullOptimStateDictConfig', offload_to_cpu=True),
    ),
)
# No average of the weights: EMAHook copies the network, and a sharded one cannot be copied.
custom_hooks = []
