"""Two gloo processes compute what one process does, for each task; all runs share one pair of them.

What the optimizer sees in the first step of a run of tools/train.py is compared.
"""

import json
import os
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from torch import Tensor, multiprocessing

from grootv import distributed
from tests.tools.tiny_run import TinyRun, run_tool, scalars

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='the processes would use the GPU')
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


@dataclass
class Step:
    """One iteration of a task without randomness: no augmentation, no dropout, images in order.

    Attributes:
        task: Key of the tiny runs.
        images: Their indices; process r of two gets every second one from r on.
    """

    task: str
    images: tuple[int, ...]

    def write(self, folder: Path, run: TinyRun, processes: int) -> Path:
        """The config of this step in ``folder``, where its gradients go too."""
        folder.mkdir(parents=True)
        config = Config.fromfile(run.config)
        config.train_cfg.update(dict(max_iters=1) if self.task == 'segmentation' else dict(max_epochs=1))
        config.model.backbone.drop_path_rate = 0.0
        for head in ('decode_head', 'auxiliary_head'):
            if head in config.model:
                config.model[head].dropout_ratio = 0.0
        if self.task == 'detection':  # every anchor and every proposal is used: nothing is drawn
            config.model.train_cfg.rpn.sampler.num = config.model.train_cfg.rcnn.sampler.num = 10**6
        loader = config.train_dataloader
        loader.batch_size = len(self.images) // processes
        loader.sampler.shuffle = False
        loader.dataset.indices = list(self.images)
        if self.task == 'classification':
            loader.dataset.pipeline = config.test_dataloader.dataset.pipeline
        else:
            is_detection = self.task == 'detection'
            loader.dataset.pipeline = [
                dict(type='grootv.LoadImageFromFile'),
                dict(type='LoadAnnotations', **dict(with_bbox=True, with_mask=True) if is_detection else {}),
                dict(type='Resize', scale=(64, 64)),
                dict(type='PackDetInputs' if is_detection else 'PackSegInputs'),
            ]
            if not is_detection:
                config.model.data_preprocessor.size = (64, 64)
        config.optim_wrapper.clip_grad = None
        config.param_scheduler = None
        config.custom_hooks = [dict(type=f'{__name__}.FirstGradient', folder=str(folder))]
        path = folder / 'step.py'
        config.dump(path)
        return path


STEPS = [
    Step('classification', tuple(range(8))),
    Step('detection', (0, 1)),
    Step('segmentation', (0, 1, 2, 3)),
]
TESTED = ('detection', 'segmentation')


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
    steps = [step.write(folder / step.task, tiny_run(step.task), 2) for step in STEPS]
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


def in_one_process(step: Step, run: TinyRun, folder: Path) -> dict[str, Tensor]:
    config = step.write(folder, run, 1)
    train(config)
    return torch.load(folder / 'rank0.pth')


@pytest.mark.parametrize('step', STEPS, ids=lambda step: step.task)
def test_gradient_of_two_processes_is_the_mean_of_their_shares(two_processes, tiny_run, tmp_path, step):
    """Each process has its own BatchNorm statistics on the CPU, and its own number of objects."""
    found, same = (torch.load(two_processes / step.task / f'rank{rank}.pth') for rank in range(2))
    first, second = (
        in_one_process(replace(step, images=step.images[rank::2]), tiny_run(step.task), tmp_path / str(rank))
        for rank in range(2)
    )
    assert found.keys() == same.keys() == first.keys()
    largest = max(value.abs().max() for value in found.values())
    assert largest > 0
    for name, value in found.items():
        assert torch.equal(value, same[name]), name
        # Equal but for the order in which float32 numbers are added.
        expected = (first[name] + second[name]) / 2
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-6 * largest.item(), msg=name)


@pytest.mark.parametrize('task', TESTED)
def test_two_processes_find_the_metrics_of_one(two_processes, tiny_run, task):
    """Three images: one process tests one of them twice, and it counts once."""
    found = json.loads((two_processes / f'test-{task}/metrics.json').read_text())
    expected = scalars(tiny_run(task).work_dir)[-1]
    assert found == pytest.approx({name: value for name, value in expected.items() if name in found})
    assert 'coco/segm_mAP' in found or 'mIoU' in found
