import math
import os
import signal
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from grootv.checkpoint import load_checkpoint_file
from grootv.engine import EpochSeedHook
from tests.tools.tiny_run import load_tool, losses, run_tool, scalars, write_config


@pytest.fixture(scope='module')
def config(tiny_run) -> Path:
    return tiny_run('classification').config


def weights(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_checkpoint_file(path)
    return {
        **{f'mean.{name}': value for name, value in checkpoint['state_dict'].items()},
        **{f'raw.{name}': value for name, value in checkpoint['ema_state_dict'].items()},
    }


def assert_equal_weights(first: Path, second: Path) -> None:
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=0, msg=name)


def test_run_leaves_checkpoints_config_and_log(tiny_run):
    folder = tiny_run('classification').work_dir
    names = {path.name for path in folder.iterdir()}
    assert {'epoch_1.pth', 'epoch_2.pth', 'last_checkpoint', 'tiny.py'} <= names
    assert any(name.startswith('best_accuracy_top1_epoch_') for name in names)
    records = scalars(folder)
    assert [r['step'] for r in records if 'loss' in r] == [1, 2, 3, 4, 5, 6]
    assert [r['step'] for r in records if 'accuracy/top1' in r] == [1, 2]
    assert not list(folder.glob('.*'))  # no half-written file


def test_whole_imagenet_recipe_trains_on_a_folder_of_images(config, tmp_path):
    config = write_config(tmp_path, config.parent / 'images', 'classification/grootv-tiny_8xb128_in1k.py')
    assert run_tool('train.py', config, '--work-dir', tmp_path, '--no-validate') == 0
    assert len(losses(tmp_path)) == 6 and all(map(math.isfinite, losses(tmp_path).values()))


def test_run_resumed_after_an_epoch_ends_like_an_uninterrupted_one(config, tmp_path):
    # The seed is left open: the resumed run has to take it over.
    options = ('train_dataloader.num_workers=0', 'train_cfg.max_epochs=3', 'randomness.seed=None')
    assert run_tool('train.py', config, '--work-dir', tmp_path / 'whole', options=options) == 0
    first = tmp_path / 'whole/epoch_1.pth'
    assert load_checkpoint_file(first)['meta']['epoch'] == 1

    resumed = tmp_path / 'resumed'
    assert run_tool('train.py', config, '--work-dir', resumed, '--resume', first, options=options) == 0
    assert sorted(path.name for path in resumed.glob('epoch_*')) == ['epoch_2.pth', 'epoch_3.pth']
    assert [record['step'] for record in scalars(resumed) if 'loss' in record] == [4, 5, 6, 7, 8, 9]
    assert_equal_weights(tmp_path / 'whole/epoch_3.pth', resumed / 'epoch_3.pth')


def test_run_stopped_within_an_epoch_ends_like_an_uninterrupted_one(config, tmp_path, monkeypatch, capsys):
    options = ('train_dataloader.num_workers=2', 'train_cfg.max_epochs=3', 'randomness.seed=None')
    # --resume starts from the beginning where there is no checkpoint.
    args = ('--work-dir', tmp_path / 'run', '--no-validate', '--resume')

    def stop(self, runner, **_):
        if runner.iter == 4:  # the second of three iterations of the second epoch
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(EpochSeedHook, 'before_train_iter', stop)
        assert run_tool('train.py', config, *args, options=options) == 128 + signal.SIGTERM
    checkpoint = tmp_path / 'run/epoch_1.pth'
    error = capsys.readouterr().err
    assert 'Traceback' not in error
    assert error.strip().endswith(f'train.py: stopped by SIGTERM; continue from {checkpoint} with --resume')
    assert list((tmp_path / 'run').glob('epoch_*')) == [checkpoint]
    assert run_tool('train.py', config, *args, options=options) == 0

    options += (f'randomness.seed={load_checkpoint_file(checkpoint)["meta"]["seed"]}',)
    whole = ('--work-dir', tmp_path / 'whole', '--no-validate')
    assert run_tool('train.py', config, *whole, options=options) == 0
    assert_equal_weights(tmp_path / 'whole/epoch_3.pth', tmp_path / 'run/epoch_3.pth')


@pytest.mark.parametrize('note', ['', 'epoch_1.pth', '{folder}/epoch_1.pth', '/gone/epoch_1.pth'])
def test_latest_checkpoint_is_found_by_its_note_even_in_a_moved_folder(tmp_path, note):
    for epoch in (1, 2):
        (tmp_path / f'epoch_{epoch}.pth').touch()
        os.utime(tmp_path / f'epoch_{epoch}.pth', (epoch, epoch))
    (tmp_path / 'last_checkpoint').write_text(note.format(folder=tmp_path))
    expected = tmp_path / ('epoch_1.pth' if note else 'epoch_2.pth')
    assert load_tool('train.py').latest_checkpoint(str(tmp_path)) == str(expected)


def test_pretrained_weights_start_the_backbone_and_a_resumed_run_needs_none(tiny_run, config, tmp_path):
    source = tmp_path / 'source.pth'
    source.write_bytes(tiny_run('classification').checkpoint.read_bytes())
    options = tuple(
        f'model.backbone.init_cfg.{name}={value}'
        for name, value in dict(type='Pretrained', checkpoint=source, prefix='backbone.').items()
    )
    still = ('optim_wrapper.optimizer.lr=0.0', 'optim_wrapper.optimizer.weight_decay=0.0')
    args = ('--work-dir', tmp_path / 'run', '--no-validate')
    assert run_tool('train.py', config, *args, options=(*options, *still)) == 0
    given, taken = (load_checkpoint_file(path)['state_dict'] for path in (source, args[1] / 'epoch_2.pth'))
    assert torch.equal(given['backbone.stem.conv1.weight'], taken['backbone.stem.conv1.weight'])
    assert not torch.equal(given['head.fc.weight'], taken['head.fc.weight'])

    source.unlink()
    longer = (*options, 'train_cfg.max_epochs=3')
    assert run_tool('train.py', config, *args, '--resume', options=longer) == 0
    assert run_tool('test.py', config, args[1] / 'epoch_3.pth', *args[:2], options=options) == 0
    fresh = ('--work-dir', tmp_path / 'fresh', '--no-validate')
    assert run_tool('train.py', config, *fresh, options=options) == 1
    options += ('model.backbone.init_cfg=None',)
    assert run_tool('train.py', config, *fresh, options=options) == 0


def test_augmentations_differ_from_epoch_to_epoch(config, tmp_path):
    # One batch an epoch and constant weights: only the crops can change the loss. With MMEngine's seeding
    # of the data-loading processes they would not.
    options = ('train_dataloader.num_workers=1', 'train_dataloader.batch_size=20')
    options += ('optim_wrapper.optimizer.lr=0.0', 'model.backbone.drop_path_rate=0.0')
    options += ('train_dataloader.sampler.shuffle=False',)
    assert run_tool('train.py', config, '--work-dir', tmp_path, '--no-validate', options=options) == 0
    first, second = losses(tmp_path).values()
    assert first != pytest.approx(second, rel=1e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason='with a GPU, --amp is float16')
def test_amp_trains_without_a_gpu(config, tmp_path):
    assert run_tool('train.py', config, '--work-dir', tmp_path, '--amp', '--no-validate') == 0
    assert all(map(math.isfinite, losses(tmp_path).values()))
    assert Config.fromfile(tmp_path / 'tiny.py').optim_wrapper.type == 'grootv.BFloat16OptimWrapper'


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
