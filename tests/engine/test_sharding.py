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
from tests.tools.tiny_run import ROOT, run_tool, scalars, write_config, write_images

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
    """A folder with three runs: ddp, fsdp, and resumed, which is fsdp's second epoch."""
    folder = tmp_path_factory.mktemp('sharding')
    ddp = Config.fromfile(write_config(folder, write_images(folder / 'images', train=4)))
    ddp.custom_hooks, ddp.randomness.seed = [], 0
    ddp.optim_wrapper.clip_grad.max_norm = 0.5
    fsdp, published = ddp.copy(), Config.fromfile(CONFIG)
    fsdp.update(runner_type=published.runner_type, strategy=published.strategy)
    ddp.dump(folder / 'ddp.py')
    fsdp.dump(folder / 'fsdp.py')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    resume = ('--resume', str(folder / 'fsdp/epoch_1.pth'))
    runs = {
        folder / 'ddp': (folder / 'ddp.py', ()),
        folder / 'fsdp': (folder / 'fsdp.py', ()),
        folder / 'resumed': (folder / 'fsdp.py', resume),
    }
    multiprocessing.spawn(work, (port, runs), nprocs=2)
    return folder


def logged(work_dir: Path) -> list[list[float]]:
    """Iteration, loss and norm of the gradients."""
    return [[r['step'], r['loss'], r['grad_norm']] for r in scalars(work_dir) if 'loss' in r]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint_file(checkpoint)['state_dict']


def test_losses_and_norms_are_those_of_ddp(folder):
    expected, found = logged(folder / 'ddp'), logged(folder / 'fsdp')
    assert len(expected) == 6 and expected[0][2] > 0.5, 'the gradients are clipped'
    for row, other in zip(expected, found, strict=True):
        assert other == pytest.approx(row, rel=1e-5)


def test_a_checkpoint_is_that_of_the_unsharded_network(folder):
    """Trained alike: were weight decay left out, the weights would differ by 1e-4 after three steps."""
    expected, found = (weights(folder / name / 'epoch_1.pth') for name in ('ddp', 'fsdp'))
    assert found.keys() == expected.keys()
    # The head's BatchNorm takes this bias out again: its gradient is rounding, which AdamW enlarges.
    for name in expected.keys() - {'backbone.stages.3.norm.bias', 'head.norm.running_mean'}:
        value = expected[name]
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
    checkpoint = folder / 'fsdp/epoch_2.pth'
    assert run_tool('test.py', folder / 'ddp.py', checkpoint, '--work-dir', folder / 'test') == 0


def test_a_sharded_run_resumes(folder):
    assert logged(folder / 'resumed') == logged(folder / 'fsdp')[3:]
    expected, found = (weights(folder / name / 'epoch_2.pth') for name in ('fsdp', 'resumed'))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
