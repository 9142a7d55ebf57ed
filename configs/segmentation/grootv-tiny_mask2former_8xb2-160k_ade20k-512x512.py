_base_ = [
    '../_base_/models/mask2former_grootv-tiny.py',
    '../_base_/datasets/ade20k_512x512_bs2.py',
    '../_base_/schedules/ade20k_bs16_adamw_160k.py',
    '../_base_/segmentation_runtime.py',
]

# The backbone learns at a tenth of the heads' rate. A custom key replaces the rules for norms and biases,
# and the longest key that fits wins: so the parameters of the backbone that do not decay are named here.
tenth = dict(lr_mult=0.1)
tenth_spared = dict(lr_mult=0.1, decay_mult=0.0)
spared = dict(decay_mult=0.0)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01),
    paramwise_cfg=dict(
        custom_keys={
            'backbone': tenth,
            'dt_proj.bias': tenth,
            'stem.conv1.bias': tenth_spared,
            'stem.conv2.bias': tenth_spared,
            'stem.norm': tenth_spared,
            **{f'stages.{stage}.norm': tenth_spared for stage in range(4)},
            **{f'blocks.{block}.norm': tenth_spared for block in range(9)},
            **{f'blocks.{block}.ssm.D': tenth_spared for block in range(9)},
            'ssm.edge_scale': tenth_spared,
            'ssm.state_norm': tenth_spared,
            'ssm.out_norm': tenth_spared,
            'mlp.fc1.bias': tenth_spared,
            'mlp.fc2.bias': tenth_spared,
            'downsample.norm': tenth_spared,
            'query_embed': spared,
            'query_feat': spared,
            'level_embed': spared,
        },
    ),
)
param_scheduler = [dict(type='PolyLR', power=0.9, by_epoch=False, end=160000)]
