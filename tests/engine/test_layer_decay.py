import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from grootv.engine import LayerDecayOptimWrapperConstructor
from grootv.errors import UserError
from tests.tools.tiny_run import write_config, write_segmentation

MULTIPLIERS = dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0)
CUSTOM = {
    'A_log': dict(decay_mult=1.0),
    'dt_proj.bias': dict(decay_mult=0.5),
    'decode_head': dict(lr_mult=10),
}


@pytest.fixture(params=[write_config, write_segmentation], ids=['mmpretrain', 'mmseg'])
def model(request, tmp_path) -> nn.Module:
    """A network of each library, built in its scope."""
    cfg = Config.fromfile(request.param(tmp_path, tmp_path))
    cfg.model.backbone.arch.depths = [1, 1, 2, 1]
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model)


def options(constructor: bool = True, **paramwise) -> dict:
    optimizer = dict(type='AdamW', lr=1.0, weight_decay=0.5)
    named = dict(constructor='grootv.LayerDecayOptimWrapperConstructor') if constructor else {}
    return dict(type='OptimWrapper', optimizer=optimizer, paramwise_cfg=paramwise, **named)


def groups(model: nn.Module, cfg: dict) -> dict[str, dict]:
    """Group of every parameter by its name."""
    found = build_optim_wrapper(model, cfg).optimizer.param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: group for group in found for parameter in group['params']}


def test_rates_fall_by_depth_in_every_library(model):
    rates = {name: group['lr'] for name, group in groups(model, options(layer_decay_rate=0.5)).items()}
    depths = {'stem.conv1.weight': 6, 'stages.0.blocks.0.mlp.fc1.weight': 5, 'stages.1.norm.weight': 4}
    depths |= {'stages.2.blocks.0.ssm.A_log': 3, 'stages.2.blocks.1.ssm.A_log': 2}
    depths |= {'stages.2.downsample.conv.weight': 2, 'stages.3.blocks.0.norm1.weight': 1}
    assert all(rates[f'backbone.{name}'] == 0.5**depth for name, depth in depths.items())
    assert {rate for name, rate in rates.items() if not name.startswith('backbone.')} == {1.0}
    assert len(set(rates.values())) == 7  # the stem, five blocks, the heads
    assert rates.keys() == dict(model.named_parameters()).keys()


def test_every_other_rule_stays_in_force(model):
    found = groups(model, options(layer_decay_rate=0.5, custom_keys=CUSTOM, **MULTIPLIERS))
    block = 'backbone.stages.0.blocks.0'
    decays = {name: group['weight_decay'] for name, group in found.items()}
    assert decays[f'{block}.ssm.A_log'] == 0.5
    assert decays[f'{block}.ssm.dt_proj.bias'] == 0.25
    assert decays[f'{block}.ssm.D'] == 0
    assert decays[f'{block}.norm1.weight'] == decays[f'{block}.mlp.fc1.bias'] == 0
    assert decays[f'{block}.mlp.fc1.weight'] == 0.5
    if 'decode_head.conv_seg.weight' in found:
        assert found['decode_head.conv_seg.weight']['lr'] == 10


@pytest.mark.parametrize('wrapped', [False, True])
def test_rate_one_changes_nothing(model, wrapped):
    rules = dict(MULTIPLIERS, bias_lr_mult=2.0, dwconv_decay_mult=3.0, custom_keys=CUSTOM)
    expected = groups(model, options(constructor=False, **rules))
    outer, cfg = nn.DataParallel(model) if wrapped else model, options(layer_decay_rate=1.0, **rules)
    assert build_optim_wrapper(outer, cfg).optimizer.param_groups == list(expected.values())


def test_frozen_parameters_stay_out(model):
    for parameter in model.backbone.stem.parameters():
        parameter.requires_grad_(False)
    found = groups(model, options(layer_decay_rate=0.5))
    assert not any(name.startswith('backbone.stem') for name in found)
    assert found['backbone.stages.1.norm.weight']['lr'] == 0.5**4


@pytest.mark.parametrize(
    ('paramwise', 'message'),
    [
        ({}, 'layer_decay_rate must be above 0 and at most 1, got None'),
        (dict(layer_decay_rate=0), 'got 0: set it, or leave out optim_wrapper.constructor'),
        (dict(layer_decay_rate=1.5), 'got 1.5'),
        (dict(layer_decay_rate='0.9'), 'got 0.9'),
        (dict(layer_decay_rate=0.9, norm_decay=0.0), "has a key 'norm_decay' that nothing reads: it can"),
        (dict(layer_decay_rate=0.9, custom_keys=dict(D=dict(decay_mul=0.0))), "key 'decay_mul' that"),
        (
            dict(layer_decay_rate=0.9, custom_keys=dict(D=dict(betas=(0, 0)))),
            'Linear has no backbone: leave out',
        ),
    ],
)
def test_a_rule_without_effect_is_refused(paramwise, message):
    with pytest.raises(UserError) as error:
        build_optim_wrapper(nn.Linear(1, 1), options(**paramwise))
    assert message in str(error.value)


def test_an_optimizer_without_a_rate_is_refused():
    cfg = dict(optimizer=dict(type='AdamW'))
    with pytest.raises(UserError, match=r'multiplies optim_wrapper\.optimizer\.lr, which is not set'):
        LayerDecayOptimWrapperConstructor(cfg, dict(layer_decay_rate=0.9))
