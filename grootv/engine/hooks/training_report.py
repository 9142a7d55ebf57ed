"""What a training does with its data and parameters, in words."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.dist import get_world_size
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from grootv.checkpoint import warn
from grootv.errors import first


def training_lines(runner: Runner, loop: Any) -> Iterator[str]:
    """Items of an update, length of the run, learning rate, and what decays."""
    wrapper, loader = getattr(runner, 'optim_wrapper', None), loop.dataloader
    if not isinstance(wrapper, OptimWrapper) or not isinstance(loader.batch_size, int):
        return
    processes, counts = get_world_size(), wrapper._accumulative_counts
    factors = {'process': processes, 'batch': loader.batch_size, 'accumulated': counts}
    words = ' x '.join(f'{count} {name}' for name, count in factors.items())
    items = processes * loader.batch_size * counts
    once, rest = len(loader.dataset), loop.max_iters % counts
    yield 'training'
    last = f', {processes * loader.batch_size * rest} in the last one' if rest else ''
    yield f'update: {items} items ({words}){last}'
    epochs = loop.max_iters * processes * loader.batch_size / once
    yield f'length: {-(-loop.max_iters // counts)} updates, {epochs:.4g} times through {once} items'
    groups = wrapper.optimizer.param_groups
    rates = [group.get('initial_lr', group['lr']) for group in groups]
    yield (
        f'optimizer: {type(wrapper.optimizer).__name__}, learning rate {interval(rates)} '
        f'({interval([group["lr"] for group in groups])} at the start)'
    )
    for decay in sorted({group.get('weight_decay', 0.0) for group in groups}):
        chosen = [group for group in groups if group.get('weight_decay', 0.0) == decay]
        parameters = [each for group in chosen for each in group['params'] if each.requires_grad]
        peak = interval([group.get('initial_lr', group['lr']) for group in chosen])
        numbers = sum(parameter.numel() for parameter in parameters)
        count = f'{len(parameters)} parameters of {numbers} numbers'
        yield f'weight decay {decay:g}: {count}, learning rate {peak}'


def check_warm_up(runner: Runner, loop: Any) -> None:
    """A warm-up should end before the run does."""
    schedulers: Any = getattr(runner, 'param_schedulers', None)
    for index, scheduler in enumerate(schedulers if isinstance(schedulers, list) else []):
        rising = getattr(scheduler, 'start_factor', 1.0) < getattr(scheduler, 'end_factor', 1.0)
        if rising and not scheduler.by_epoch and scheduler.end > loop.max_iters:
            warn(
                f'the warm-up takes {scheduler.end} iterations and the run has {loop.max_iters}, so that it '
                f'never reaches its learning rate: lower param_scheduler.{index}.end'
            )


def interval(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f'{low:.4g}' if low == high else f'{low:.4g} to {high:.4g}'


def check_held_out(datasets: Mapping[str, list]) -> None:
    """What validates or tests should not have been learned."""
    for side in ('validation', 'test'):
        shared = [common(a, b) for a in datasets.get('training', ()) for b in datasets.get(side, ())]
        if any(shared):
            warn(
                f'the training learns {first(filter(None, shared))} of the {side} data: their figures show '
                'what is known by heart, hold items out'
            )


def common(dataset: Any, other: Any) -> str:
    """What two data sets share, in words: items of a file of texts, or all images."""
    if hasattr(dataset, 'numbers') and hasattr(other, 'numbers'):
        shared = len(set(dataset.numbers) & set(other.numbers))
        return f'{shared} items' if shared and dataset.path.samefile(other.path) else ''
    places = source(dataset)
    return 'the images' if places and places == source(other) else ''


def source(dataset: Any) -> list[str]:
    """Annotations and folders of a whole data set of OpenMMLab; empty for another one."""
    prefix = getattr(dataset, 'data_prefix', None)
    if not isinstance(prefix, Mapping) or getattr(dataset, '_indices', None) is not None:
        return []
    return [os.path.realpath(str(place)) for place in (dataset.ann_file, *prefix.values())]
