from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from torch import nn

from grootv import checks
from grootv.checkpoint import drop_pretrained
from grootv.errors import UserError

# Data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'setting, sentences',
    [
        (
            dict(data_root='{root}/none'),
            ('data folder {root}/none does not exist: put the data there', '{key}.data_root=FOLDER'),
        ),
        (
            dict(data_root='{root}', ann_file='a/none.json'),
            ('annotation file {root}/a/none.json does not exist', '{key}.ann_file=FILE'),
        ),
        (dict(data_root='{root}', ann_file='/none.json'), ('annotation file /none.json does not exist',)),
        (
            dict(data_root='{root}', data_prefix=dict(img='a', seg='b')),
            ('data folder {root}/b does not exist', '{key}.data_prefix.seg=FOLDER'),
        ),
        (dict(data_root='{root}', data_prefix='b'), ('{root}/b does not exist', '{key}.data_prefix=FOLDER')),
        (dict(tokenizer='{root}/none'), ('tokenizer {root}/none does not exist', '{key}.tokenizer=FOLDER')),
    ],
)
def test_missing_data_are_named_with_the_option_that_fixes_it(tmp_path, setting, sentences):
    (tmp_path / 'a').mkdir()
    setting = {name: fill(value, tmp_path) for name, value in setting.items()}
    cfg = Config(dict(train_dataloader=None, val_dataloader=dict(dataset=dict(dataset=setting))))
    with pytest.raises(UserError) as error:
        checks.check_data(cfg, ['train_dataloader', 'val_dataloader'])
    for sentence in sentences:
        assert fill(sentence, tmp_path) in str(error.value)


def fill(text: object, root: Path) -> object:
    key = '--cfg-options val_dataloader.dataset.dataset'
    return text.format(root=root, key=key) if isinstance(text, str) else text


def test_data_that_exist_or_are_elsewhere_pass(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a/x.json').touch()
    root = str(tmp_path)
    sets = [
        dict(data_root=root, ann_file='a/x.json', data_prefix=dict(img='a', seg='')),
        dict(data_root='s3://bucket', ann_file='x.json', data_prefix='b'),
        dict(ann_file='', data_prefix={}),
        dict(data_root=None, ann_file='https://host/x.json'),
        dict(data_root=root, split='train'),
    ]
    checks.check_data(Config(dict(train_dataloader=dict(dataset=dict(datasets=sets)))), ['train_dataloader'])


def test_missing_annotations_of_an_evaluator_are_named(tmp_path):
    # They do not move with data_root.
    evaluators = [dict(type='Other'), dict(type='CocoMetric', ann_file=f'{tmp_path}/x.json')]
    cfg = Config(dict(val_evaluator=evaluators))
    with pytest.raises(UserError, match=r'--cfg-options val_evaluator\.1\.ann_file=FILE'):
        checks.check_data(cfg, ['val_evaluator'])
    (tmp_path / 'x.json').touch()
    checks.check_data(cfg, ['val_evaluator'])


# Training --------------------------------------------------------------------------------------


def test_run_shorter_than_its_warm_up_is_refused():
    schedule = [dict(begin=0, end=1), dict(begin=1, by_epoch=True), dict(begin=500, by_epoch=False)]
    cfg = Config(dict(train_cfg=dict(max_epochs=1), param_scheduler=schedule))
    with pytest.raises(UserError, match=r'^param_scheduler\.1 begins at epoch 1 and the run has 1: raise '):
        checks.check_schedule(cfg)
    cfg.train_cfg.max_epochs = 2
    checks.check_schedule(cfg)


# Pretrained weights ----------------------------------------------------------------------------


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
    monkeypatch.setattr(checks, 'warn', seen.append)
    return seen


def test_pretrained_file_that_exists_or_is_on_the_network_passes(weights, tmp_path):
    for init in (load(weights), load('https://host/x.pth'), dict(type='Normal'), None, [load(weights)]):
        checks.check_pretrained_files(config(init), tmp_path)


def test_missing_pretrained_file_is_named_with_the_ways_out(tmp_path):
    init = load('work_dirs/net/epoch_3.pth')
    place = 'model.parts.0.backbone.init_cfg'
    rest = f'give their place with --cfg-options {place}.checkpoint=FILE, '
    rest += f'or start from random weights with {place}=None'
    with pytest.raises(UserError) as error:
        checks.check_pretrained_files(config(init), tmp_path)
    assert str(error.value) == f'pretrained weights work_dirs/net/epoch_3.pth do not exist: {rest}'

    (tmp_path / 'configs/kind').mkdir(parents=True)
    (tmp_path / 'configs/kind/net.py').touch()
    with pytest.raises(UserError) as error:
        checks.check_pretrained_files(config(init), tmp_path / 'configs')
    assert f'do not exist: make them with tools/train.py configs/kind/net.py, {rest}' in str(error.value)

    with pytest.raises(UserError, match=r'--cfg-options model\.parts\.0\.backbone\.init_cfg\.1\.check'):
        checks.check_pretrained_files(config([dict(type='Normal'), init]), tmp_path)
    with pytest.raises(UserError, match=r'elsewhere/net/x\.pth do not exist: give their place'):
        checks.check_pretrained_files(config(load('elsewhere/net/x.pth')), tmp_path / 'configs')


@pytest.mark.parametrize(
    'init, left',
    [
        (load('x.pth'), None),
        ([dict(type='Normal'), load('x.pth')], [dict(type='Normal')]),
        (dict(type='Normal'), [dict(type='Normal')]),
    ],
)
def test_run_that_needs_no_pretrained_file_drops_it(init, left):
    cfg = config(init)
    drop_pretrained(cfg)
    assert cfg.model.parts[0].backbone.init_cfg == left


def test_pretrained_weights_that_fit_give_no_warning(weights, warnings):
    model = Detector(Backbone(init_cfg=load(weights)))
    before = model.backbone.stem.weight.clone()
    checks.check_pretrained_fit(model)
    assert warnings == []
    torch.testing.assert_close(model.backbone.stem.weight, before)  # checked, not yet loaded
    model.init_weights()
    expected = torch.load(weights)['state_dict']['backbone.stem.weight']
    torch.testing.assert_close(model.backbone.stem.weight, expected)


@pytest.mark.parametrize('prefix', ['neck.', 'module.backbone', 'back'])
def test_prefix_that_the_file_does_not_have_is_named(weights, prefix):
    with pytest.raises(UserError) as error:
        checks.check_pretrained_fit(Detector(Backbone(init_cfg=load(weights, prefix))))
    sentence = f'{weights} have none under the prefix {prefix.removesuffix(".")}. that Backbone asks for '
    sentence += '(they hold backbone.stem.weight, backbone.stem.bias, backbone.stage.weight and 2 more)'
    assert sentence in str(error.value)


def test_weights_of_another_network_are_refused(weights):
    model = Backbone(init_cfg=load(weights))
    model.stem, model.stage = nn.Linear(9, 5), nn.Linear(5, 5)
    with pytest.raises(UserError) as error:
        checks.check_pretrained_fit(model)
    sentence = (
        f'pretrained weights {weights} do not fit Backbone (other shape: stem.weight (2, 3) instead of (5'
    )
    assert sentence in str(error.value)
    # Without the prefix no name fits.
    with pytest.raises(UserError, match=r'missing: stem\.weight'):
        checks.check_pretrained_fit(Backbone(init_cfg=load(weights, None)))


def test_weights_that_fit_in_part_give_one_warning(weights, warnings):
    checks.check_pretrained_fit(Detector(Backbone(width=7, init_cfg=load(weights))))
    (text,) = warnings
    assert f'pretrained weights {weights} fit Backbone in part, the rest starts at random' in text
    assert 'other shape: stage.weight (2, 2) instead of (7, 2), stage.bias (2,) instead of (7,)' in text
    checks.check_pretrained_fit(dict(type='Detector'))  # a FlexibleRunner's model is a config
