from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from torch import nn

from grootv import checks
from grootv.errors import UserError
from grootv.pretrained import drop_pretrained


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
    # Annotations of an evaluator do not move with data_root.
    evaluators = [dict(type='Other'), dict(type='CocoMetric', ann_file=f'{root}/x.json')]
    cfg = Config(dict(train_dataloader=dict(dataset=dict(datasets=sets)), val_evaluator=evaluators))
    with pytest.raises(UserError, match=r'--cfg-options val_evaluator\.1\.ann_file=FILE'):
        checks.check_data(cfg, ['train_dataloader', 'val_evaluator'])
    (tmp_path / 'x.json').touch()
    checks.check_data(cfg, ['train_dataloader', 'val_evaluator'])


def test_run_shorter_than_its_warm_up_is_refused():
    schedule = [dict(begin=0, end=1), dict(begin=1, by_epoch=True), dict(begin=500, by_epoch=False)]
    cfg = Config(dict(train_cfg=dict(max_epochs=1), param_scheduler=schedule))
    with pytest.raises(UserError, match=r'^param_scheduler\.1 begins at epoch 1 and the run has 1: raise '):
        checks.check_schedule(cfg)
    cfg.train_cfg.max_epochs = 2
    checks.check_schedule(cfg)


@pytest.mark.parametrize(
    'scheduler, fault',
    [
        (
            dict(type='PolyLR', by_epoch=False, begin=5, end=10),
            'ends at iter 10 with a rate of 0, and the run has 14',
        ),
        (dict(type='grootv.CosineAnnealingLR', by_epoch=False, end=10), 'CosineAnnealingLR'),
        (dict(type='PolyLR', by_epoch=False, end=10, eta_min=1e-5), None),
        (dict(type='PolyLR', by_epoch=False, end=14), None),
        (dict(type='LinearLR', by_epoch=False, end=5), None),  # a warm-up
    ],
)
def test_run_longer_than_its_schedule_is_refused(scheduler, fault):
    cfg = Config(dict(train_cfg=dict(max_iters=14), param_scheduler=[scheduler]))
    if fault is None:
        checks.check_schedule(cfg)
    else:
        with pytest.raises(UserError, match=fault):
            checks.check_schedule(cfg)


class Backbone(BaseModule):
    def __init__(self, stem: int = 2, stage: int = 2, init_cfg=None):
        super().__init__(init_cfg)
        self.stem = nn.Linear(3, stem)
        self.stage = nn.Linear(2, stage)


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


@pytest.mark.parametrize(
    'path, maker, index, command',
    [
        ('work_dirs/net/epoch_3.pth', 'net', None, 'make them with tools/train.py configs/kind/net.py, '),
        ('work_dirs/net/epoch_3.pth', 'other', 1, ''),
        ('elsewhere/net/epoch_3.pth', 'net', None, ''),
    ],
)
def test_missing_pretrained_file_is_named_with_the_ways_out(tmp_path, path, maker, index, command):
    (tmp_path / 'configs/kind').mkdir(parents=True)
    (tmp_path / f'configs/kind/{maker}.py').touch()
    init = load(path) if index is None else [dict(type='Normal'), load(path)]
    place = 'model.parts.0.backbone.init_cfg'
    end = '' if index is None else f'.{index}'
    with pytest.raises(UserError) as error:
        checks.check_pretrained_files(config(init), tmp_path / 'configs')
    assert str(error.value) == (
        f'pretrained weights {path} do not exist (docs/model_zoo.md says where there are some): '
        f'{command}give their place with --cfg-options {place}{end}.checkpoint=FILE, '
        f'or start from random weights with {place}=None'
    )


def test_pretrained_file_that_exists_or_is_not_needed_is_no_fault(weights, tmp_path):
    normal = dict(type='Normal')
    for init in (load(weights), load('https://host/x.pth'), normal, None, [load(weights)]):
        checks.check_pretrained_files(config(init), tmp_path)
    for init, left in ((load('x.pth'), None), ([normal, load('x.pth')], [normal]), (normal, [normal])):
        cfg = config(init)
        drop_pretrained(cfg)
        assert cfg.model.parts[0].backbone.init_cfg == left


OTHERS = (
    'that Backbone asks for (they hold backbone.stem.weight, backbone.stem.bias, backbone.stage.weight and'
)


@pytest.mark.parametrize(
    'width, prefix, sentence',
    [
        (2, 'neck.', f'have none under the prefix neck. {OTHERS}'),
        (2, 'back', f'have none under the prefix back. {OTHERS}'),
        (2, None, 'do not fit Backbone (missing: stem.weight'),
        (5, 'backbone.', 'do not fit Backbone (other shape: stem.weight (2, 3) instead of (5, 3)'),
    ],
)
def test_weights_of_another_network_are_refused(weights, width, prefix, sentence):
    model = Backbone(width, width, init_cfg=load(weights, prefix))
    with pytest.raises(UserError) as error:
        checks.check_pretrained_fit(model)
    assert f'pretrained weights {weights} {sentence}' in str(error.value)


def test_weights_that_fit_in_part_give_one_warning_and_those_that_fit_none(weights, monkeypatch):
    warnings = []
    monkeypatch.setattr(checks, 'warn', warnings.append)
    backbone = Backbone(init_cfg=load(weights))
    before = backbone.stem.weight.clone()
    checks.check_pretrained_fit(nn.ModuleDict({'backbone': backbone}))
    checks.check_pretrained_fit(dict(type='Detector'))  # a FlexibleRunner's model is a config
    assert warnings == []
    assert torch.equal(backbone.stem.weight, before)  # checked, not yet loaded
    checks.check_pretrained_fit(Backbone(stage=7, init_cfg=load(weights)))
    (text,) = warnings
    assert f'pretrained weights {weights} fit Backbone in part, the rest starts at random' in text
    assert 'other shape: stage.weight (2, 2) instead of (7, 2), stage.bias (2,) instead of (7,)' in text
