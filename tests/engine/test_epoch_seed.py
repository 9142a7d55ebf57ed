import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from grootv.engine import CheckpointHook, EpochSeedHook


class Draws(Dataset):
    """Samples of known indices, each with a draw of every generator."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return torch.tensor([index / 7, 1.0, random.random(), np.random.rand(), torch.rand(()).item()])


def loader_of_mmengine(workers: int, seed: int = 1):
    sampler, collate = dict(type='DefaultSampler', shuffle=True), dict(type='default_collate')
    cfg = dict(dataset=Draws(), batch_size=1, num_workers=workers, sampler=sampler, collate_fn=collate)
    return Runner.build_dataloader(cfg, seed=seed)


def runner(loader, seed: int = 1, rank: int = 0, **randomness):
    cfg = Config(dict(randomness=randomness))
    fields = dict(train_dataloader=loader, train_loop=None, hooks=[], seed=seed, rank=rank, iter=0, cfg=cfg)
    return SimpleNamespace(**fields)


def epoch(hook: EpochSeedHook, run) -> torch.Tensor:
    hook.before_train_epoch(run)
    return torch.cat(list(run.train_dataloader))


@pytest.mark.parametrize('workers', [0, 2])
def test_an_epoch_draws_the_same_whatever_came_before(workers):
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


def test_the_sampler_takes_the_runs_seed_and_a_function_of_the_user_stays():
    loader = loader_of_mmengine(0, seed=5)
    assert isinstance(loader.sampler, DefaultSampler) and loader.sampler.seed == 5
    EpochSeedHook().before_train(runner(loader, seed=9, diff_rank_seed=True))
    assert loader.sampler.seed == 5  # here the run's seed differs by rank, the sampler's must not
    loader.worker_init_fn = print
    EpochSeedHook().before_train(runner(loader, seed=9))
    assert loader.sampler.seed == 9
    assert loader.worker_init_fn is print


class Noisy(BaseModel):
    """Its weight shows what was drawn: order of samples, augmentations and dropout."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))

    def forward(self, *inputs, mode='tensor'):
        if mode == 'predict':  # draws, as any part of a validation may
            torch.rand(3), random.random(), np.random.rand()
            return [None]
        return dict(loss=(nn.functional.dropout(self.weight) * torch.stack(inputs)).square().sum())


def train(folder: Path, workers: int, resume: Path | None = None) -> torch.Tensor:
    """The weight after eight iterations; validation after 3, 6 and 8, checkpoints after 2, 4, 6 and 8."""
    data = dict(dataset=Draws(), batch_size=2, num_workers=workers, persistent_workers=False)
    data.update(collate_fn=dict(type='pseudo_collate'))
    hooks = dict(checkpoint=CheckpointHook(interval=2, by_epoch=False), epoch_seed=EpochSeedHook())
    runner = Runner(
        model=Noisy(),
        work_dir=str(folder),
        train_dataloader=dict(data, sampler=dict(type='InfiniteSampler', shuffle=True)),
        train_cfg=dict(by_epoch=False, max_iters=8, val_interval=3),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        val_dataloader=dict(data, sampler=dict(type='DefaultSampler', shuffle=False)),
        val_cfg=dict(),
        val_evaluator=Evaluator([]),
        default_hooks=dict(hooks, sampler_seed=dict(type='DistSamplerSeedHook')),
        load_from=resume and str(resume),
        resume=resume is not None,
        randomness=dict(seed=3),
        experiment_name=f'{folder}',
        log_level='ERROR',
    )
    runner.train()
    return runner.model.weight


@pytest.mark.parametrize('workers', [0, 2])
def test_a_resumed_run_by_iterations_equals_one_never_stopped(tmp_path, workers):
    whole = train(tmp_path / 'whole', workers)
    for step in (2, 4, 6):
        again = train(tmp_path / f'from{step}', workers, tmp_path / f'whole/iter_{step}.pth')
        torch.testing.assert_close(again, whole, rtol=0, atol=0, msg=f'resumed at {step}')


def test_a_loader_that_cannot_skip_is_left_alone():
    # MMEngine would step it on by that many batches, from where it is.
    run = runner(loader_of_mmengine(0))
    run.train_loop = SimpleNamespace(dataloader_iterator=SimpleNamespace(skip_iter=pytest.fail))
    run.hooks = [CheckpointHook(interval=1, by_epoch=False)]
    hook = EpochSeedHook()
    hook.before_train(run)
    hook.after_train_iter(run, 0)
    hook.after_val(run)
