"""Randomness that depends on the run's seed and the progress, not on the process's past."""

import random
from typing import Any

import numpy as np
import torch
from mmengine.dataset import worker_init_fn as static_worker_seed
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from grootv.registry import HOOKS


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Make a run that was resumed from a checkpoint equal to one that was never interrupted.

    MMEngine restores weights, averages, optimizer and schedules, but neither the random state nor,
    where the config leaves the seed open, the sampler's seed. This hook draws both again from (seed
    of the run, rank, iteration): at each epoch, and in a training by iterations at its start, at
    every step that writes a checkpoint and after every validation. There the data loader starts
    again too, as it does in a resumed run: its processes end, and the sampler counts off what has
    been used. What follows a checkpoint then depends on the checkpoint alone.

    It also lets PyTorch seed the data-loading processes. MMEngine's own function gives them the
    same seed in every epoch, which repeats the same augmentations.

    A resumed run is as random as the original one, but not equal to it, with processes that outlive
    an epoch (``persistent_workers=True``), with another number of processes, and in a training by
    iterations with a sampler that cannot skip, unlike MMEngine's InfiniteSampler, or gradients
    accumulated across a checkpoint.
    """

    priority = 'LOWEST'  # nothing draws between this hook and the next batch

    def __init__(self):
        self._batches = None  # endless iterator of a training by iterations
        self._writers: list[CheckpointHook] = []

    def before_train(self, runner: Runner) -> None:
        loader: DataLoader = runner.train_dataloader
        if getattr(loader.worker_init_fn, 'func', None) is static_worker_seed:
            loader.worker_init_fn = None
        if hasattr(loader.sampler, 'skip'):  # otherwise MMEngine steps on from where the loader is
            self._batches = getattr(runner.train_loop, 'dataloader_iterator', None)
        self._writers = [h for h in runner.hooks if isinstance(h, CheckpointHook) and not h.by_epoch]
        if runner.cfg.get('randomness', {}).get('diff_rank_seed', False):
            return
        sampler: Any = getattr(loader.batch_sampler, 'sampler', loader.sampler)
        if isinstance(getattr(sampler, 'seed', None), int):
            sampler.seed = runner.seed

    def before_train_epoch(self, runner: Runner) -> None:
        draw_again(runner, runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if any(self.every_n_train_iters(runner, h.interval, h.save_begin) for h in self._writers):
            self._start_again(runner, runner.iter + 1)

    def after_val(self, runner: Runner) -> None:
        self._start_again(runner, runner.iter)

    def _start_again(self, runner: Runner, iteration: int) -> None:
        if self._batches is not None:
            self._batches.skip_iter(iteration)  # counted from the start of the run
            draw_again(runner, iteration)


def draw_again(runner: Runner, iteration: int) -> None:
    entropy = np.random.SeedSequence([runner.seed, runner.rank, iteration])
    seed = int(entropy.generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
