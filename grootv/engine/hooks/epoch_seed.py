"""Randomness that depends on the run's seed and the epoch, not on the process's past."""

import random

import numpy as np
import torch
from mmengine.dataset import worker_init_fn as static_worker_seed
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from grootv.registry import HOOKS


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Make a run that was resumed at an epoch's end equal to one that was never interrupted.

    MMEngine restores weights, averages, optimizer and schedules, but neither the random state nor,
    where the config leaves the seed open, the sampler's seed. This hook draws both anew at each
    epoch from (seed of the run, rank, iteration).

    It also lets PyTorch seed the data-loading processes. MMEngine's own function gives them the
    same seed in every epoch, which repeats the same augmentations. Processes that outlive an epoch
    (``persistent_workers=True``) keep a random state that no checkpoint holds: with them a resumed
    run is as random as the original one, but not equal to it.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        loader: DataLoader = runner.train_dataloader
        if getattr(loader.worker_init_fn, 'func', None) is static_worker_seed:
            loader.worker_init_fn = None
        if runner.cfg.get('randomness', {}).get('diff_rank_seed', False):
            return
        sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
        if isinstance(getattr(sampler, 'seed', None), int):
            sampler.seed = runner.seed

    def before_train_epoch(self, runner: Runner) -> None:
        entropy = np.random.SeedSequence([runner.seed, runner.rank, runner.iter])
        seed = int(entropy.generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
