import logging
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from torch import nn

from grootv.utils import pretrained
from grootv.utils.errors import UserError


class Backbone(BaseModule):
    def __init__(self, width: int = 2, init_cfg=None):
        super().__init__(init_cfg)
        self.stem = nn.Linear(3, 2)
        self.stage = nn.Linear(2, width)


class Detector(BaseModule):
    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone


@pytest.fixture
def weights(tmp_path) -> Path:
    """A classifier's checkpoint."""
    state = {f'backbone.{name}': value + 1 for name, value in Backbone().state_dict().items()}
    torch.save({'state_dict': {**state, 'head.weight': torch.ones(1)}}, tmp_path / 'epoch_3.pth')
    return tmp_path / 'epoch_3.pth'


def load(path: Path, prefix: str | None = 'backbone.') -> dict:
    return dict(type='Pretrained', checkpoint=str(path), prefix=prefix)


def config(init_cfg) -> Config:
    return Config(dict(model=dict(type='D', parts=[dict(backbone=dict(type='B', init_cfg=init_cfg))])))


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    seen = []
    monkeypatch.setattr(pretrained, 'print_log', lambda text, logger, level: seen.append((level, text)))
    return seen


def test_a_file_that_is_there_or_on_the_network_passes(weights, tmp_path):
    for init in (load(weights), load('https://host/x.pth'), dict(type='Normal'), None, [load(weights)]):
        pretrained.check_files(config(init), tmp_path)


def test_a_missing_file_is_told_with_the_ways_out(tmp_path):
    init = load('work_dirs/net/epoch_3.pth')
    place = 'model.parts.0.backbone.init_cfg'
    rest = f'give their place with --cfg-options {place}.checkpoint=FILE, '
    rest += f'or start from random weights with {place}=None'
    with pytest.raises(UserError) as error:
        pretrained.check_files(config(init), tmp_path)
    assert str(error.value) == f'pretrained weights work_dirs/net/epoch_3.pth do not exist: {rest}'

    (tmp_path / 'configs/kind').mkdir(parents=True)
    (tmp_path / 'configs/kind/net.py').touch()
    with pytest.raises(UserError) as error:
        pretrained.check_files(config(init), tmp_path / 'configs')
    assert f'do not exist: make them with tools/train.py configs/kind/net.py, {rest}' in str(error.value)

    with pytest.raises(UserError, match=r'--cfg-options model\.parts\.0\.backbone\.init_cfg\.1\.check'):
        pretrained.check_files(config([dict(type='Normal'), init]), tmp_path)
    with pytest.raises(UserError, match=r'elsewhere/net/x\.pth do not exist: give their place'):
        pretrained.check_files(config(load('elsewhere/net/x.pth')), tmp_path / 'configs')


@pytest.mark.parametrize(
    'init, left',
    [
        (load('x.pth'), None),
        ([dict(type='Normal'), load('x.pth')], [dict(type='Normal')]),
        (dict(type='Normal'), [dict(type='Normal')]),
    ],
)
def test_a_run_that_needs_no_file_drops_it(init, left):
    cfg = config(init)
    pretrained.drop(cfg)
    assert cfg.model.parts[0].backbone.init_cfg == left


def test_what_fits_is_loaded_without_a_word(weights, warnings):
    model = Detector(Backbone(init_cfg=load(weights)))
    before = model.backbone.stem.weight.clone()
    pretrained.check_fit(model)
    assert warnings == []
    torch.testing.assert_close(model.backbone.stem.weight, before)  # checked, not yet loaded
    model.init_weights()
    expected = torch.load(weights)['state_dict']['backbone.stem.weight']
    torch.testing.assert_close(model.backbone.stem.weight, expected)


@pytest.mark.parametrize('prefix', ['neck.', 'module.backbone', 'back'])
def test_a_prefix_that_the_file_does_not_have_is_told(weights, prefix):
    with pytest.raises(UserError) as error:
        pretrained.check_fit(Detector(Backbone(init_cfg=load(weights, prefix))))
    told = f'{weights} have none under the prefix {prefix.removesuffix(".")}. that Backbone asks for'
    assert told in str(error.value)
    assert '(they hold backbone.stem.weight, backbone.stem.bias, backbone.stage.weight and 2 more)' in str(
        error.value
    )


def test_weights_of_another_network_are_told(weights):
    model = Backbone(init_cfg=load(weights))
    model.stem, model.stage = nn.Linear(9, 5), nn.Linear(5, 5)
    with pytest.raises(UserError) as error:
        pretrained.check_fit(model)
    told = (
        f'pretrained weights {weights} do not fit Backbone (other shape: stem.weight (2, 3) instead of (5, 9)'
    )
    assert told in str(error.value)
    # Without the prefix no name fits.
    with pytest.raises(UserError, match=r'missing: stem\.weight'):
        pretrained.check_fit(Backbone(init_cfg=load(weights, None)))


def test_what_fits_in_part_is_told_in_one_warning(weights, warnings):
    pretrained.check_fit(Detector(Backbone(width=7, init_cfg=load(weights))))
    ((level, text),) = warnings
    assert level == logging.WARNING
    assert f'pretrained weights {weights} fit Backbone in part, the rest starts at random' in text
    assert 'other shape: stage.weight (2, 2) instead of (7, 2), stage.bias (2,) instead of (7,)' in text


def test_a_model_that_is_still_a_config_is_left_alone():
    pretrained.check_fit(dict(type='Detector'))
