import argparse
import json
import pickle
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from grootv.checkpoint import load_checkpoint_file
from tests.tools.tiny_run import load_tool, run_tool, write_config, write_images


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> tuple[Path, Path]:
    """A config and the checkpoint of its one-epoch run."""
    folder = tmp_path_factory.mktemp('test')
    config = write_config(folder, write_images(folder / 'data', train=8, val=2))
    options = ('train_cfg.max_epochs=2', 'randomness.seed=0')
    assert run_tool('train.py', config, '--work-dir', folder / 'run', options=options) == 0
    return config, folder / 'run/epoch_2.pth'


def unpickle(path: Path) -> list[dict]:
    return pickle.loads(path.read_bytes())  # written by the test itself


def test_metrics_are_written_and_equal_those_of_the_training(run, tmp_path):
    out = tmp_path / 'deep/metrics.json'
    assert run_tool('test.py', *run, '--work-dir', tmp_path, '--out', out) == 0

    metrics = json.loads(out.read_text())
    log = sorted(run[1].parent.glob('*/vis_data/scalars.json'))[-1].read_text().splitlines()
    assert metrics['accuracy/top1'] == pytest.approx(json.loads(log[-1])['accuracy/top1'])
    assert set(metrics) == {'accuracy/top1', 'accuracy/top5'}


def test_predictions_are_written_one_per_image(run, tmp_path):
    out = tmp_path / 'predictions.pkl'
    assert run_tool('test.py', *run, '--work-dir', tmp_path, '--out', out) == 0

    predictions = unpickle(out)
    assert len(predictions) == 20
    assert predictions[0]['pred_score'].shape == (10,)


def test_every_view_of_tta_is_seen_and_averaged(run, tmp_path):
    plain, views = tmp_path / 'plain.pkl', tmp_path / 'views.pkl'
    assert run_tool('test.py', *run, '--work-dir', tmp_path, '--out', plain) == 0
    assert run_tool('test.py', *run, '--work-dir', tmp_path, '--tta', '--out', views) == 0
    first, averaged = (unpickle(path)[0]['pred_score'] for path in (plain, views))
    assert averaged.sum() == pytest.approx(1)
    assert not torch.equal(first, averaged)


def test_tta_of_equal_views_is_the_plain_test(run, tmp_path):
    """EMAHook once swapped random weights in, for it did not find the averaged ones in the wrapper."""
    config, checkpoint = run
    assert 'ema_state_dict' in load_checkpoint_file(checkpoint)
    same = tmp_path / 'same_views.py'
    same.write_text(f"""
_base_ = '{config}'
tta_pipeline = [
    dict(type='grootv.LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='ResizeEdge', scale=32, backend='pillow', interpolation='bicubic')] * 2,
            [dict(type='PackInputs')],
        ],
    ),
]
""")
    plain, views = tmp_path / 'plain.pkl', tmp_path / 'views.pkl'
    arguments = (same, checkpoint, '--work-dir', tmp_path)
    assert run_tool('test.py', *arguments, '--out', plain) == 0
    assert run_tool('test.py', *arguments, '--tta', '--out', views) == 0
    for one, two in zip(unpickle(plain), unpickle(views), strict=True):
        torch.testing.assert_close(one['pred_score'], two['pred_score'])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--tta', '--show-dir', 'pictures'], '--tta averages several views'),
        (['--out', 'metrics.json', '--out-item', 'pred'], 'predictions are pickled'),
        (['--out', '/proc/nowhere/metrics.json'], 'its folder cannot be made'),
    ],
)
def test_what_cannot_be_written_is_told_before_the_test(run, tmp_path, capsys, options, message):
    assert run_tool('test.py', *run, '--work-dir', tmp_path, *options) == 1
    assert message in capsys.readouterr().err


def test_pictures_go_into_the_show_dir(run, tmp_path):
    folder = tmp_path / 'pictures'
    assert run_tool('test.py', *run, '--work-dir', tmp_path, '--show-dir', folder) == 0
    assert len(list(folder.glob('*.png'))) == 20


def test_amp_gives_nearly_the_same_scores(run, tmp_path):
    full, half = tmp_path / 'full.pkl', tmp_path / 'half.pkl'
    assert run_tool('test.py', *run, '--work-dir', tmp_path, '--out', full) == 0
    assert run_tool('test.py', *run, '--work-dir', tmp_path, '--amp', '--out', half) == 0
    first, second = (unpickle(path)[0]['pred_score'].float() for path in (full, half))
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, second, rtol=0, atol=0.05)  # bfloat16 has 8 bits


@pytest.mark.parametrize(
    'args, reason',
    [
        (['--out', 'result.txt'], 'end it in .json (metrics) or .pkl (predictions)'),
        (['--out-item', 'pred'], '--out says where'),
    ],
)
def test_unclear_output_is_refused(run, tmp_path, capsys, args, reason):
    assert run_tool('test.py', *run, '--work-dir', tmp_path, *args) == 1
    assert reason in capsys.readouterr().err


def test_tta_needs_views_in_the_config(run, tmp_path, capsys):
    options = ('tta_pipeline=None', 'tta_model=None')
    args = ('--work-dir', tmp_path, '--tta')
    assert run_tool('test.py', *run, *args, options=options) == 1
    assert 'has no tta_model and no tta_pipeline' in capsys.readouterr().err


def change(checkpoint: dict, fault: str) -> None:
    state = checkpoint['state_dict']
    weight = state.pop('head.fc.weight')
    if fault == 'unknown':
        state['head.fc.weight'] = weight
        state['neck.extra'] = weight
    elif fault == 'other shape':
        state['head.fc.weight'] = weight[:5]


@pytest.mark.parametrize(
    'fault, told',
    [
        ('missing', 'missing: head.fc.weight'),
        ('unknown', 'unknown: neck.extra'),
        ('other shape', 'head.fc.weight (5, 96) instead of (10, 96)'),
    ],
)
def test_a_foreign_checkpoint_is_an_error_that_names_the_weights(run, tmp_path, capsys, fault, told):
    config, path = run
    checkpoint = load_checkpoint_file(path)
    change(checkpoint, fault)
    torch.save(checkpoint, tmp_path / 'foreign.pth')

    assert run_tool('test.py', config, tmp_path / 'foreign.pth', '--work-dir', tmp_path) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('test.py: checkpoint does not fit the model ImageClassifier')
    assert told in error

    # The same through the wrapper of test-time augmentation.
    assert run_tool('test.py', config, tmp_path / 'foreign.pth', '--work-dir', tmp_path, '--tta') == 1
    assert told in capsys.readouterr().err


class DetectionHook:
    """Has the switches of mmdet's hook."""

    def __init__(self, draw=False, interval=50, show=False, wait_time=0.0, test_out_dir=None):
        pass


class SegmentationHook:
    """Has the switches of mmseg's hook, which writes where the visualizer does."""

    def __init__(self, draw=False, interval=50, show=False, wait_time=0.0):
        pass


@pytest.mark.parametrize('kind', [DetectionHook, SegmentationHook])
def test_pictures_of_other_libraries_are_switched_on_alike(tmp_path, kind):
    name = f'{__name__}.{kind.__name__}'
    cfg = Config(dict(default_hooks=dict(visualization=dict(type=name)), visualizer=dict(type='V')))
    args = argparse.Namespace(config='c.py', show=False, show_dir=str(tmp_path), interval=3, wait_time=2)
    load_tool('test.py').show_predictions(cfg, args)
    hook = cfg.default_hooks.visualization
    assert hook.draw is True and hook.interval == 3 and 'enable' not in hook
    if kind is DetectionHook:
        assert hook.test_out_dir == str(tmp_path) and 'save_dir' not in cfg.visualizer
    else:
        assert cfg.visualizer.save_dir == str(tmp_path) and 'test_out_dir' not in hook


def test_tta_reaches_the_pipeline_of_a_wrapped_dataset():
    inner = dict(type='Inner', pipeline=['plain'])
    loader = dict(dataset=dict(type='Repeat', dataset=inner))
    views = dict(tta_pipeline=['views'], tta_model=dict(type='Mean'))
    cfg = Config(dict(model=dict(type='Net'), test_dataloader=loader, **views))
    load_tool('test.py').use_tta(cfg, 'c.py')
    assert cfg.test_dataloader.dataset.dataset.pipeline == ['views']
    assert cfg.model == dict(type='Mean', module=dict(type='Net'))


def test_tensors_become_plain_numbers():
    plain = load_tool('test.py').plain
    assert plain(torch.tensor([[1, 2]])) == [[1, 2]]
    assert plain(0.5) == 0.5
