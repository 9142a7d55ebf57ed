import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from grootv.checkpoint import load_checkpoint_file
from grootv.engine import EpochSeedHook
from tests.tools.tiny_run import ROOT, load_tool, run_tool, write_config, write_images


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('train')
    return write_config(folder, write_images(folder / 'data'))


def weights(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_checkpoint_file(path)
    return {
        **{f'mean.{name}': value for name, value in checkpoint['state_dict'].items()},
        **{f'raw.{name}': value for name, value in checkpoint['ema_state_dict'].items()},
    }


def scalars(work_dir: Path) -> list[dict]:
    """Log records of the last start."""
    path = sorted(work_dir.glob('*/vis_data/scalars.json'))[-1]
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_checkpoint_config_and_log(config, tmp_path):
    assert run_tool('train.py', config, '--work-dir', tmp_path) == 0

    names = {path.name for path in tmp_path.iterdir()}
    assert {'epoch_1.pth', 'epoch_2.pth', 'last_checkpoint', 'tiny.py'} <= names
    assert any(name.startswith('best_accuracy_top1_epoch_') for name in names)
    records = scalars(tmp_path)
    assert [r['step'] for r in records if 'loss' in r] == [1, 2, 3, 4, 5, 6]
    assert [r['step'] for r in records if 'accuracy/top1' in r] == [1, 2]
    assert not list(tmp_path.glob('.*'))  # no half-written file


def test_the_whole_imagenet_recipe_runs_on_a_folder_of_images(config, tmp_path):
    data = config.parent / 'data'
    config = write_config(tmp_path, data, 'classification/grootv-tiny_8xb128_in1k.py')

    assert run_tool('train.py', config, '--work-dir', tmp_path, '--no-validate') == 0
    losses = [record['loss'] for record in scalars(tmp_path)]
    assert len(losses) == 6 and all(loss == loss for loss in losses)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_resumed_run_ends_like_an_uninterrupted_one(config, tmp_path, workers):
    options = (f'train_dataloader.num_workers={workers}', 'train_cfg.max_epochs=3')
    # The seed is left open: the resumed run has to take it over.
    options += ('randomness.seed=None',)
    run_tool('train.py', config, '--work-dir', tmp_path / 'whole', options=options)
    once = load_checkpoint_file(tmp_path / 'whole/epoch_1.pth')
    whole = weights(tmp_path / 'whole/epoch_3.pth')

    resumed = tmp_path / 'resumed'
    first = tmp_path / 'whole/epoch_1.pth'
    assert once['meta']['epoch'] == 1
    assert run_tool('train.py', config, '--work-dir', resumed, '--resume', first, options=options) == 0
    assert sorted(path.name for path in resumed.glob('epoch_*')) == ['epoch_2.pth', 'epoch_3.pth']
    again = weights(resumed / 'epoch_3.pth')
    assert again.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0, msg=name)


def test_a_run_stopped_within_an_epoch_ends_like_an_uninterrupted_one(config, tmp_path, monkeypatch):
    options = ('train_dataloader.num_workers=1', 'train_cfg.max_epochs=3', 'randomness.seed=None')
    args = ('--work-dir', tmp_path / 'run', '--no-validate')

    def stop(self, runner, **_):
        if runner.iter == 4:  # the second of three iterations of the second epoch
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(EpochSeedHook, 'before_train_iter', stop)
        assert run_tool('train.py', config, *args, options=options) == 128 + signal.SIGTERM
    assert [path.name for path in (tmp_path / 'run').glob('epoch_*')] == ['epoch_1.pth']
    assert run_tool('train.py', config, *args, '--resume', options=options) == 0

    seed = load_checkpoint_file(tmp_path / 'run/epoch_1.pth')['meta']['seed']
    whole = ('--work-dir', tmp_path / 'whole', '--no-validate')
    assert run_tool('train.py', config, *whole, options=(*options, f'randomness.seed={seed}')) == 0
    first, second = (weights(tmp_path / name / 'epoch_3.pth') for name in ('run', 'whole'))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_pretrained_weights_start_the_backbone_and_a_resumed_run_needs_none(config, tmp_path):
    assert run_tool('train.py', config, '--work-dir', tmp_path / 'first', '--no-validate') == 0
    source = tmp_path / 'first/epoch_2.pth'
    options = tuple(
        f'model.backbone.init_cfg.{name}={value}'
        for name, value in dict(type='Pretrained', checkpoint=source, prefix='backbone.').items()
    )
    still = ('optim_wrapper.optimizer.lr=0.0', 'optim_wrapper.optimizer.weight_decay=0.0')
    args = ('--work-dir', tmp_path / 'second', '--no-validate')
    assert run_tool('train.py', config, *args, options=(*options, *still)) == 0
    given, taken = (load_checkpoint_file(path)['state_dict'] for path in (source, args[1] / 'epoch_2.pth'))
    assert torch.equal(given['backbone.stem.conv1.weight'], taken['backbone.stem.conv1.weight'])
    assert not torch.equal(given['head.fc.weight'], taken['head.fc.weight'])

    source.unlink()
    longer = (*options, 'train_cfg.max_epochs=3')
    assert run_tool('train.py', config, *args, '--resume', options=longer) == 0
    assert run_tool('test.py', config, args[1] / 'epoch_3.pth', *args[:2], options=options) == 0
    fresh = ('--work-dir', tmp_path / 'third', '--no-validate')
    assert run_tool('train.py', config, *fresh, options=options) == 1
    options += ('model.backbone.init_cfg=None',)
    assert run_tool('train.py', config, *fresh, options=options) == 0


def test_augmentations_differ_from_epoch_to_epoch(config, tmp_path):
    # One batch an epoch and weights that stand still: only the crops can change the loss. With
    # MMEngine's seeding of the data-loading processes they would not.
    options = ('train_dataloader.num_workers=1', 'train_dataloader.batch_size=20')
    options += ('optim_wrapper.optimizer.lr=0.0', 'model.backbone.drop_path_rate=0.0')
    options += ('train_dataloader.sampler.shuffle=False',)
    assert run_tool('train.py', config, '--work-dir', tmp_path, '--no-validate', options=options) == 0
    first, second = (record['loss'] for record in scalars(tmp_path))
    assert first != pytest.approx(second, rel=1e-6)


def test_auto_resume_takes_the_latest_checkpoint_even_of_a_moved_folder(config, tmp_path):
    run_tool('train.py', config, '--work-dir', tmp_path / 'old')
    moved = (tmp_path / 'old').rename(tmp_path / 'new')

    options = ('train_cfg.max_epochs=3',)
    assert run_tool('train.py', config, '--work-dir', moved, '--resume', options=options) == 0
    assert load_checkpoint_file(moved / 'epoch_3.pth')['meta']['epoch'] == 3
    assert [r['step'] for r in scalars(moved) if 'loss' in r] == [7, 8, 9]


@pytest.mark.parametrize('note', ['', 'epoch_1.pth', '{folder}/epoch_1.pth', '/gone/epoch_1.pth'])
def test_the_latest_checkpoint_is_found_by_its_note_or_without(tmp_path, note):
    for epoch in (1, 2):
        (tmp_path / f'epoch_{epoch}.pth').touch()
        os.utime(tmp_path / f'epoch_{epoch}.pth', (epoch, epoch))
    (tmp_path / 'last_checkpoint').write_text(note.format(folder=tmp_path))
    expected = tmp_path / ('epoch_1.pth' if note else 'epoch_2.pth')
    assert load_tool('train.py').latest_checkpoint(str(tmp_path)) == str(expected)


def test_auto_resume_without_a_checkpoint_starts_from_the_beginning(config, tmp_path):
    args = ('--work-dir', tmp_path, '--resume', 'auto', '--no-validate')
    assert run_tool('train.py', config, *args, options=('train_cfg.max_epochs=2',)) == 0
    assert (tmp_path / 'epoch_2.pth').is_file()


def test_amp_trains_without_a_gpu(config, tmp_path):
    if torch.cuda.is_available():
        pytest.skip('with a GPU, --amp is float16')
    assert run_tool('train.py', config, '--work-dir', tmp_path, '--amp', '--no-validate') == 0
    losses = [record['loss'] for record in scalars(tmp_path)]
    assert all(loss == loss for loss in losses)
    saved = Config.fromfile(tmp_path / 'tiny.py')
    assert saved.optim_wrapper.type == 'grootv.BFloat16OptimWrapper'


def test_auto_scale_lr_scales_rate_warm_up_and_floor_alike(config, tmp_path):
    args = ('--work-dir', tmp_path, '--auto-scale-lr', '--no-validate')
    options = ('auto_scale_lr.base_batch_size=16', 'train_cfg.max_epochs=4')
    assert run_tool('train.py', config, *args, options=options) == 0

    rates = [record['lr'] for record in scalars(tmp_path)]
    rate = 2e-3 * 8 / 16
    assert len(rates) == 12 and max(rates) == pytest.approx(rate)
    assert rates[0] == pytest.approx(1e-3 * rate)
    floor = 1e-2 * rate  # the last of nine steps down a cosine
    assert rates[-1] == pytest.approx(floor + (rate - floor) * (1 + math.cos(math.pi * 8 / 9)) / 2)


def test_a_stopped_run_says_how_to_go_on(config, tmp_path):
    command = [
        sys.executable,
        str(ROOT / 'tools/train.py'),
        str(config),
        '--work-dir',
        str(tmp_path),
    ]
    options = ['--cfg-options', 'train_cfg.max_epochs=1000']
    process = subprocess.Popen(
        command + options,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    end = time.monotonic() + 60
    while not (tmp_path / 'last_checkpoint').is_file() and time.monotonic() < end:
        time.sleep(0.05)
    process.terminate()
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 128 + signal.SIGTERM
    assert 'Traceback' not in stderr
    last = stderr.strip().splitlines()[-1]
    assert last.startswith('train.py: stopped by SIGTERM; continue from')
    checkpoint = Path((tmp_path / 'last_checkpoint').read_text())
    assert str(checkpoint) in last
    assert load_checkpoint_file(checkpoint)['meta']['epoch'] >= 1


def test_a_run_shorter_than_its_warm_up_is_refused(tmp_path, capsys):
    config = write_config(tmp_path, write_images(tmp_path / 'data'))
    options = ('train_cfg.max_epochs=1',)
    assert run_tool('train.py', config, '--work-dir', tmp_path / 'run', options=options) == 1
    assert 'param_scheduler.1 begins at epoch 1 and the run has 1' in capsys.readouterr().err
