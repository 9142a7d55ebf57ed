import random
from types import SimpleNamespace

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.runner import Runner
from torch.utils.data import Dataset

from grootv.engine import EpochSeedHook


class Draws(Dataset):
    """Every sample is a draw of each generator."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])


def loader_of_mmengine(workers: int, seed: int = 1):
    cfg = dict(dataset=Draws(), batch_size=1, num_workers=workers)
    cfg.update(sampler=dict(type='DefaultSampler', shuffle=True))
    cfg.update(collate_fn=dict(type='default_collate'))
    return Runner.build_dataloader(cfg, seed=seed)


def runner(loader, seed: int = 1, rank: int = 0, iteration: int = 0, **randomness):
    cfg = Config(dict(randomness=randomness))
    fields = dict(train_dataloader=loader, seed=seed, rank=rank, iter=iteration, cfg=cfg)
    return SimpleNamespace(**fields)


def epoch(hook: EpochSeedHook, run) -> torch.Tensor:
    hook.before_train_epoch(run)
    return torch.cat(list(run.train_dataloader))


def test_an_epoch_draws_the_same_whatever_came_before():
    for workers in (0, 2):
        hook, run = EpochSeedHook(), runner(loader_of_mmengine(workers))
        hook.before_train(run)
        first = epoch(hook, run)
        run.iter = 4
        second = epoch(hook, run)
        torch.rand(7), random.random(), np.random.rand(3)
        torch.testing.assert_close(epoch(hook, run), second, rtol=0, atol=0)
        assert not torch.equal(first, second)


def test_ranks_and_seeds_draw_differently():
    draws = []
    for seed, rank in ((1, 0), (1, 1), (2, 0)):
        hook, run = EpochSeedHook(), runner(loader_of_mmengine(1), seed=seed, rank=rank)
        hook.before_train(run)
        draws.append(tuple(epoch(hook, run).flatten().tolist()))
    assert len(set(draws)) == 3


def test_the_sampler_takes_the_runs_seed():
    loader = loader_of_mmengine(0, seed=5)
    assert isinstance(loader.sampler, DefaultSampler) and loader.sampler.seed == 5
    EpochSeedHook().before_train(runner(loader, seed=9, diff_rank_seed=True))
    assert loader.sampler.seed == 5  # here the run's seed differs by rank, the sampler's must not
    EpochSeedHook().before_train(runner(loader, seed=9))
    assert loader.sampler.seed == 9


def test_a_seeding_function_of_the_user_stays():
    loader = loader_of_mmengine(0)
    loader.worker_init_fn = print
    EpochSeedHook().before_train(runner(loader))
    assert loader.worker_init_fn is print
