"""Two gloo processes with FSDP train as two with DistributedDataParallel do."""

import os
import socket
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import multiprocessing

from grootv import distributed
from grootv.checkpoint import load_checkpoint_file
from tests.tools.tiny_run import ROOT, losses, metrics, run_tool, scalars, write_config, write_images

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='the processes would use the GPU')
CONFIG = ROOT / 'configs/classification/grootv-base_fsdp_8xb128_in1k.py'


def work(rank: int, port: int, runs: dict[Path, tuple[Path, tuple[str, ...]]]) -> None:
    """What each of the two processes does: a config and further arguments by work folder."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), OMP_NUM_THREADS='1')
    for work_dir, (config, args) in runs.items():
        assert run_tool('train.py', config, '--work-dir', work_dir, '--launcher', 'pytorch', *args) == 0
    distributed.leave()


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """A folder with four runs: ddp, fsdp, and fsdp's second epoch after the first of either."""
    folder = tmp_path_factory.mktemp('sharding')
    ddp = Config.fromfile(write_config(folder, write_images(folder / 'images', train=4)))
    ddp.randomness.seed = 0
    assert ddp.custom_hooks[0].type == 'EMAHook'
    ddp.optim_wrapper.clip_grad.max_norm = 0.5
    fsdp, published = ddp.copy(), Config.fromfile(CONFIG)
    fsdp.update(runner_type=published.runner_type, strategy=published.strategy)
    fsdp.custom_hooks[0].type = published.custom_hooks[0].type
    ddp.dump(folder / 'ddp.py')
    fsdp.dump(folder / 'fsdp.py')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    resume = {name: ('--resume', str(folder / name / 'epoch_1.pth')) for name in ('ddp', 'fsdp')}
    runs = {
        folder / 'ddp': (folder / 'ddp.py', ()),
        folder / 'fsdp': (folder / 'fsdp.py', ()),
        folder / 'resumed': (folder / 'fsdp.py', resume['fsdp']),
        folder / 'crossed': (folder / 'fsdp.py', resume['ddp']),
    }
    multiprocessing.spawn(work, (port, runs), nprocs=2)
    return folder


def logged(work_dir: Path) -> list[list[float]]:
    """Iteration, loss and norm of the gradients."""
    return [[r['step'], r['loss'], r['grad_norm']] for r in scalars(work_dir) if 'loss' in r]


def weights(checkpoint: Path, key: str = 'state_dict') -> dict[str, torch.Tensor]:
    return load_checkpoint_file(checkpoint)[key]


def test_losses_and_norms_are_those_of_ddp(folder):
    expected, found = logged(folder / 'ddp'), logged(folder / 'fsdp')
    assert len(expected) == 6 and expected[0][2] > 0.5, 'the gradients are clipped'
    for row, other in zip(expected, found, strict=True):
        assert other == pytest.approx(row, rel=1e-5)
    assert metrics(folder / 'fsdp') == metrics(folder / 'ddp')


@pytest.mark.parametrize('key', ['state_dict', 'ema_state_dict'])
def test_a_checkpoint_is_that_of_the_unsharded_network(folder, key):
    """Trained alike: were weight decay left out, the weights would differ by 1e-4 after three steps.

    The weights are the averaged ones, and ema_state_dict has those that are trained on.
    """
    for checkpoint in ('epoch_1.pth', 'epoch_2.pth'):
        expected, found = (weights(folder / name / checkpoint, key) for name in ('ddp', 'fsdp'))
        assert found.keys() == expected.keys()
        # The head's BatchNorm takes this bias out again: its gradient is rounding, which AdamW enlarges.
        for name in expected:
            if not name.endswith(('backbone.stages.3.norm.bias', 'head.norm.running_mean')):
                torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=2e-6, msg=name)
    both = [weights(folder / 'fsdp/epoch_2.pth', key)[name] for key, name in AVERAGED_AND_NOT]
    assert not torch.equal(*both)


AVERAGED_AND_NOT = (('state_dict', 'head.fc.weight'), ('ema_state_dict', 'module.head.fc.weight'))


def test_the_unsharded_network_is_tested_and_trained_on_with_it(folder):
    checkpoint, work_dir = folder / 'fsdp/epoch_2.pth', ('--work-dir', folder / 'alone')
    assert run_tool('test.py', folder / 'ddp.py', checkpoint, *work_dir) == 0
    options = ('train_cfg.max_epochs=3', 'param_scheduler=None')
    args = ('--resume', checkpoint, '--resume-schedule', 'config', *work_dir)
    assert run_tool('train.py', folder / 'ddp.py', *args, options=options) == 0
    assert sorted(losses(folder / 'alone')) == list(range(7, 12)), 'five batches of one process'


def test_a_sharded_run_resumes(folder):
    assert logged(folder / 'resumed') == logged(folder / 'fsdp')[3:]
    for key in ('state_dict', 'ema_state_dict'):
        expected, found = (weights(folder / name / 'epoch_2.pth', key) for name in ('fsdp', 'resumed'))
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    for row, other in zip(logged(folder / 'fsdp')[3:], logged(folder / 'crossed'), strict=True):
        assert other == pytest.approx(row, rel=1e-4)


def test_what_sharding_does_not_take_is_refused(folder, failure):
    work_dir = ('--work-dir', folder / 'refused')
    assert 'needs a launcher, even for a single' in failure('train.py', folder / 'fsdp.py', *work_dir)
    options = ('strategy.model_wrapper.type=MMFullyShardedDataParallel',)
    sentence = failure('train.py', folder / 'fsdp.py', *work_dir, options=options)
    assert 'strategy.model_wrapper has no effect on grootv.FSDPStrategy' in sentence
