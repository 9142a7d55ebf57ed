"""Two gloo processes compute what one process does, for each task; all runs share one pair of them."""

import json
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from torch import multiprocessing

from grootv import distributed
from tests.tools.tiny_run import TinyRun, metrics, run_tool

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='the processes would use the GPU')
IMAGES = dict(classification=range(8), detection=range(2), segmentation=range(4))
TESTED = ('detection', 'segmentation')
TIMEOUT = 1800


class FirstGradient(Hook):
    """Write what the optimizer's first step sees, one file a process."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def before_train(self, runner) -> None:
        model = getattr(runner.model, 'module', runner.model)

        def record(*_) -> None:
            gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
            torch.save(gradients, self.folder / f'rank{distributed.rank()}.pth')

        runner.optim_wrapper.optimizer.register_step_pre_hook(record)


def write_step(folder: Path, run: TinyRun, images: Sequence[int], processes: int) -> Path:
    """One iteration of a run without randomness: no augmentation, no dropout, images in order.

    Args:
        folder: Where the config and its gradients go.
        run: A finished run of the task.
        images: Indices; process r of two gets every second one from r on.
        processes: How many share them.
    """
    folder.mkdir(parents=True)
    config = Config.fromfile(run.config)
    config.train_cfg.update(dict(max_iters=1) if 'max_iters' in config.train_cfg else dict(max_epochs=1))
    config.model.backbone.drop_path_rate = 0.0
    for head in {'decode_head', 'auxiliary_head'} & config.model.keys():
        config.model[head].dropout_ratio = 0.0
    if 'roi_head' in config.model:  # every anchor and every proposal is used: nothing is drawn
        config.model.train_cfg.rpn.sampler.num = config.model.train_cfg.rcnn.sampler.num = 10**6
    loader = config.train_dataloader
    loader.batch_size = len(images) // processes
    loader.sampler.shuffle = False
    loader.dataset.update(indices=list(images), pipeline=config.test_dataloader.dataset.pipeline)
    config.optim_wrapper.clip_grad = config.param_scheduler = None
    config.custom_hooks = [dict(type=f'{__name__}.FirstGradient', folder=str(folder))]
    config.dump(folder / 'step.py')
    return folder / 'step.py'


def train(config: Path, *args: str) -> None:
    assert run_tool('train.py', config, '--work-dir', config.parent / 'run', '--no-validate', *args) == 0


def work(rank: int, port: int, steps: list[Path], tests: dict[Path, TinyRun]) -> None:
    """What each of the two processes does."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), OMP_NUM_THREADS='1')
    for config in steps:
        train(config, '--launcher', 'pytorch')
    for folder, run in tests.items():
        args = ('--work-dir', folder, '--out', folder / 'metrics.json', '--launcher', 'pytorch')
        assert run_tool('test.py', run.config, run.checkpoint, *args) == 0
    distributed.leave()  # a spawned process skips what is registered with atexit


@pytest.fixture(scope='module')
def two_processes(tiny_run, tmp_path_factory) -> Path:
    """A folder with the gradients of every step, and the metrics of every task, on two processes."""
    folder = tmp_path_factory.mktemp('two')
    steps = [write_step(folder / task, tiny_run(task), images, 2) for task, images in IMAGES.items()]
    tests = {folder / f'test-{task}': tiny_run(task) for task in TESTED}
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    context = multiprocessing.spawn(work, (port, steps, tests), nprocs=2, join=False)
    end = time.monotonic() + TIMEOUT
    try:
        while not context.join(timeout=5):
            assert time.monotonic() < end, 'the two processes wait for each other'
    finally:
        for process in context.processes:
            process.kill()
    return folder


@pytest.mark.parametrize('task', IMAGES)
def test_gradient_of_two_processes_is_the_mean_of_their_shares(two_processes, tiny_run, tmp_path, task):
    """Each process has its own BatchNorm statistics on the CPU, and its own number of objects."""
    found, same = (torch.load(two_processes / task / f'rank{rank}.pth') for rank in range(2))
    shares = []
    for rank in range(2):
        train(write_step(tmp_path / str(rank), tiny_run(task), IMAGES[task][rank::2], 1))
        shares.append(torch.load(tmp_path / str(rank) / 'rank0.pth'))
    assert found.keys() == same.keys() == shares[0].keys()
    largest = max(value.abs().max().item() for value in found.values())
    assert largest > 0
    for name, value in found.items():
        assert torch.equal(value, same[name]), name
        # Equal but for the order in which float32 numbers are added.
        expected = (shares[0][name] + shares[1][name]) / 2
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize('task', TESTED)
def test_two_processes_find_the_metrics_of_one(two_processes, tiny_run, task):
    """Three images: one process tests one of them twice, and it counts once."""
    found = json.loads((two_processes / f'test-{task}/metrics.json').read_text())
    assert found == pytest.approx(metrics(tiny_run(task).work_dir))
    assert 'coco/segm_mAP' in found or 'mIoU' in found
