"""tools/train.py: what a run leaves, how it stops and continues, and its options."""

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
from tests.tools.tiny_run import (
    ROOT,
    load_tool,
    losses,
    metrics,
    run_tool,
    scalars,
    starting_from,
    write_config,
)


@pytest.fixture(scope='module')
def config(tiny_run) -> Path:
    return tiny_run('classification').config


def test_run_leaves_checkpoints_config_and_log(tiny_run):
    folder = tiny_run('classification').work_dir
    names = {path.name.partition('_epoch')[0] for path in folder.iterdir()}
    assert names >= {'epoch_1.pth', 'epoch_2.pth', 'best_accuracy_top1', 'last_checkpoint', 'tiny.py'}
    assert [record['step'] for record in scalars(folder) if 'accuracy/top1' in record] == [1, 2]
    assert not list(folder.glob('.*'))  # no half-written file


def test_whole_imagenet_recipe_trains_on_a_folder_of_images(config, tmp_path):
    config = write_config(tmp_path, config.parent / 'images', 'classification/grootv-tiny_8xb128_in1k.py')
    assert run_tool('train.py', config, '--work-dir', tmp_path, '--no-validate') == 0
    assert len(losses(tmp_path)) == 6 and all(map(math.isfinite, losses(tmp_path).values()))


@pytest.mark.parametrize(
    'task, number, at, workers',
    [('classification', signal.SIGTERM, 4, 2), ('segmentation', signal.SIGINT, 6, 0)],
)
def test_stopped_run_ends_like_an_uninterrupted_one(
    tiny_run, tmp_path, monkeypatch, capsys, task, number, at, workers
):
    """Stopped between two checkpoints, of iterations 3 and 6 or of 4 and 8; the seed is left open."""
    run = tiny_run(task)
    options = (f'train_dataloader.num_workers={workers}', 'randomness.seed=None')
    # --resume starts from the beginning where there is no checkpoint.
    args = (run.config, '--work-dir', tmp_path / 'run', '--resume')

    def stop(self, runner, **_):
        if runner.iter == at:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(EpochSeedHook, 'before_train_iter', stop)
        assert run_tool('train.py', *args, options=options) == 128 + number
    checkpoint = Path((tmp_path / 'run/last_checkpoint').read_text())
    error = capsys.readouterr().err.strip()
    assert 'Traceback' not in error
    assert error.endswith(f'train.py: stopped by {number.name}; continue from {checkpoint} with --resume')
    assert list((tmp_path / 'run').glob('[ei]*_*.pth')) == [checkpoint]
    first = losses(tmp_path / 'run')

    # From a file into another folder, or from the latest one in the same.
    args = (run.config, '--work-dir', tmp_path / 'resumed', '--resume', checkpoint) if at == 4 else args
    time.sleep(1)  # a log folder is named after the second
    assert run_tool('train.py', *args, options=options) == 0
    whole = (run.config, '--work-dir', tmp_path / 'whole')
    options += (f'randomness.seed={load_checkpoint_file(checkpoint)["meta"]["seed"]}',)
    assert run_tool('train.py', *whole, options=options) == 0
    expected, second = losses(tmp_path / 'whole'), losses(args[2])
    last = load_checkpoint_file(checkpoint)['meta']['iter']
    assert list(first) == list(expected)[:at] and list(second) == list(expected)[last:]
    assert first | second == expected
    assert metrics(args[2]) == metrics(tmp_path / 'whole')
    whole, again = (load_checkpoint_file(f / run.checkpoint.name) for f in (tmp_path / 'whole', args[2]))
    for part in {'state_dict', 'ema_state_dict'} & whole.keys():
        assert whole[part].keys() == again[part].keys()
        for name, value in whole[part].items():
            assert torch.equal(again[part][name], value), name


def test_ctrl_c_ends_in_one_sentence_with_loading_processes(tiny_run, tmp_path):
    """A terminal sends SIGINT to every process of the run.

    Right after a checkpoint these processes end and start, where Python loses the exception of a signal.
    """
    config = tiny_run('segmentation').config
    command = [sys.executable, ROOT / 'tools/train.py', config, '--work-dir', tmp_path, '--no-validate']
    options = ['--cfg-options', 'train_dataloader.num_workers=1', 'train_cfg.max_iters=100000']
    options += ['param_scheduler.1.end=100000']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([*command, *options], env=environment, start_new_session=True, **pipes)
    try:
        end = time.monotonic() + 600
        while not (tmp_path / 'last_checkpoint').is_file() and time.monotonic() < end:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=300)
    finally:
        process.kill()

    assert process.returncode == 128 + signal.SIGINT, stderr
    # A loader that was being made may add what Python ignored at its end.
    (line,) = [line for line in stderr.splitlines() if line.startswith('train.py: ')]
    assert line.startswith('train.py: stopped by SIGINT; continue from') and line.endswith('with --resume')
    assert load_checkpoint_file((tmp_path / 'last_checkpoint').read_text())['meta']['iter'] % 4 == 0


@pytest.mark.parametrize('note', ['', 'epoch_1.pth', '{folder}/epoch_1.pth', '/gone/epoch_1.pth'])
def test_latest_checkpoint_is_found_by_its_note_even_in_a_moved_folder(tmp_path, note):
    for epoch in (1, 2):
        (tmp_path / f'epoch_{epoch}.pth').touch()
        os.utime(tmp_path / f'epoch_{epoch}.pth', (epoch, epoch))
    (tmp_path / 'last_checkpoint').write_text(note.format(folder=tmp_path))
    expected = tmp_path / ('epoch_1.pth' if note else 'epoch_2.pth')
    assert load_tool('train.py').latest_checkpoint(str(tmp_path)) == str(expected)


def test_pretrained_weights_start_the_backbone_and_a_resumed_run_needs_none(
    tiny_run, config, tmp_path, failure
):
    source = tmp_path / 'source.pth'
    source.write_bytes(tiny_run('classification').checkpoint.read_bytes())
    options = starting_from(source)
    still = ('optim_wrapper.optimizer.lr=0.0', 'optim_wrapper.optimizer.weight_decay=0.0')
    args = ('--work-dir', tmp_path / 'run')
    assert run_tool('train.py', config, *args, '--no-validate', options=(*options, *still)) == 0
    given, taken = (load_checkpoint_file(path)['state_dict'] for path in (source, args[1] / 'epoch_2.pth'))
    assert torch.equal(given['backbone.stem.conv1.weight'], taken['backbone.stem.conv1.weight'])
    assert not torch.equal(given['head.fc.weight'], taken['head.fc.weight'])

    source.unlink()
    longer = (*options, 'train_cfg.max_epochs=3')
    args += ('--resume',)
    sentence = failure('train.py', config, *args, '--no-validate', options=(*longer, *still))
    assert 'param_scheduler.1.T_max 3 instead of 6' in sentence
    args += ('--resume-schedule', 'config')
    assert run_tool('train.py', config, *args, '--no-validate', options=longer) == 0
    args = args[:2]
    assert run_tool('test.py', config, args[1] / 'epoch_3.pth', *args, options=options) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason='with a GPU, --amp is float16')
def test_amp_trains_and_tests_without_a_gpu(tiny_run, tmp_path):
    run, args = tiny_run('segmentation'), ('--work-dir', tmp_path, '--amp')
    options = ('train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2')
    assert run_tool('train.py', run.config, *args, options=options) == 0
    assert all(map(math.isfinite, losses(tmp_path).values()))
    assert Config.fromfile(tmp_path / 'tiny.py').optim_wrapper.type == 'grootv.BFloat16OptimWrapper'
    assert run_tool('test.py', run.config, tmp_path / 'iter_2.pth', *args) == 0


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
