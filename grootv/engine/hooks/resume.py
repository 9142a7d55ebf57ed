"""Continue a run with the schedule that its user means, and with the validation that it missed."""

import math
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from mmengine.hooks import Hook
from mmengine.optim import BaseOptimWrapper, OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import Tensor

from grootv.checkpoint import check_resumable
from grootv.errors import UserError, first
from grootv.registry import HOOKS

# States of a parameter's shape in the optimizers of PyTorch.
_MOMENTS = {'exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'momentum_buffer'}
# Settings that every version of an optimizer that has them writes.
_SETTINGS = {'lr', 'betas', 'eps', 'momentum', 'weight_decay'}
# What a run changes in a scheduler; base_values are the initial values of the optimizer.
_PROGRESS = {'last_step', 'base_values', 'verbose', 'best', 'num_bad_epochs', 'cooldown_counter'}


@HOOKS.register_module()
class ResumeHook(Hook):
    """Compare the schedule of a checkpoint that is resumed with that of the config, and validate it first.

    MMEngine restores the schedulers and the settings of the optimizer from the checkpoint, whatever the
    config says. It writes a checkpoint before the validation of the same epoch or iteration, which is lost
    if the run is stopped then; here it is made up for, unless the checkpoint was written after it.

    Args:
        schedule: 'checkpoint' does the same; 'config' continues as if the config had been in force from the
            start; None refuses a checkpoint that differs from the config.
    """

    priority = 'LOWEST'  # CheckpointHook is ready when the validation begins

    def __init__(self, schedule: str | None = None):
        self.schedule = schedule
        self._validated = True

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        path: Any = runner._load_from
        check_resumable(checkpoint, path)
        self._validated = bool(checkpoint['meta'].get('validated'))
        wrappers, schedulers = _by_name(runner.optim_wrapper), _by_name(runner.param_schedulers)
        optimizers = _by_name(checkpoint['optimizer'], several=list(wrappers) != [''])
        saved_schedulers = _by_name(checkpoint.get('param_schedulers'))
        differences, foreign = [], False
        for name, wrapper in wrappers.items():
            _check_optimizer(optimizers.get(name), wrapper, path)
            states, mine = saved_schedulers.get(name), schedulers.get(name) or []
            states = states if isinstance(states, list) else []
            foreign |= len(states) != len(mine) or any(map(_other_kind, states, mine))
            differences += compare_settings(optimizers[name], states, wrapper, mine)
        if not differences:
            return
        text = first(dict.fromkeys(differences))
        if self.schedule is None:
            raise UserError(
                f'checkpoint {path} was trained with another schedule or optimizer than that of the config '
                f'({text}): add --resume-schedule config to continue as if the config had been in force from '
                'the start, or --resume-schedule checkpoint to keep the old one'
            )
        if self.schedule == 'config':
            progress = checkpoint['meta']['epoch'], checkpoint['meta']['iter']
            states = {}
            for name, wrapper in wrappers.items():
                states[name] = _replace(optimizers[name], wrapper, schedulers.get(name) or [], *progress)
            checkpoint['param_schedulers'] = states.get('', states)
        elif foreign:
            raise UserError(
                f'--resume-schedule checkpoint: {path} has other schedulers than the config ({text}): '
                'give the param_scheduler that it was trained with, or --resume-schedule config'
            )

    def before_train(self, runner: Runner) -> None:
        if runner.val_loop is not None and not self._validated and validation_is_due(runner.train_loop):
            runner.val_loop.run()


def validation_is_due(loop: Any) -> bool:
    """Whether MMEngine validates where a training is."""
    if isinstance(loop, IterBasedTrainLoop):
        progress, last = loop.iter, loop.max_iters
    elif isinstance(loop, EpochBasedTrainLoop) and loop.iter == loop.epoch * len(loop.dataloader):
        progress, last = loop.epoch, loop.max_epochs
    else:
        return False
    loop._decide_current_val_interval()
    return progress >= max(1, loop.val_begin) and (progress % loop.val_interval == 0 or progress == last)


def _by_name(value: Any, several: bool = True) -> dict[str, Any]:
    """What MMEngine keeps by the name of an optimizer where there are several; '' is the only one."""
    if isinstance(value, OptimWrapperDict):
        return dict(value.items())
    return {} if value is None else value if several and isinstance(value, dict) else {'': value}


def _check_optimizer(saved: Any, wrapper: BaseOptimWrapper, path: str) -> None:
    """Refuse states that the optimizer cannot take."""
    if not _fits(saved, wrapper.optimizer.param_groups):
        raise UserError(
            f'checkpoint {path} has an optimizer state that does not fit the '
            f'{type(wrapper.optimizer).__name__} of the config: set the optimizer and paramwise_cfg '
            f'that it was trained with, or start from its weights with --cfg-options load_from={path}'
        )


def _fits(saved: Any, groups: list[dict]) -> bool:
    old, states = (
        saved.get(name) if isinstance(saved, Mapping) else None for name in ('param_groups', 'state')
    )
    if not isinstance(old, list) or not isinstance(states, Mapping):
        return False
    if not all(isinstance(group, dict) and isinstance(group.get('params'), list) for group in old):
        return False
    if [len(group['params']) for group in old] != [len(group['params']) for group in groups]:
        return False
    if any(a.keys() - b.keys() and b.keys() - a.keys() for a, b in zip(old, groups, strict=True)):
        return False  # of another class
    if any(
        not _is_number(a.get('lr')) or (b.keys() & _SETTINGS) - a.keys()
        for a, b in zip(old, groups, strict=True)
    ):
        return False
    if not all(isinstance(state, Mapping) for state in states.values()):
        return False
    if len({frozenset(state) for state in states.values()}) > 1:
        return False
    keys, parameters = ([item for group in each for item in group['params']] for each in (old, groups))
    shapes = dict(zip(keys, (parameter.shape for parameter in parameters), strict=True))
    return all(
        getattr(value, 'shape', None) == shapes.get(key)
        if name in _MOMENTS and value is not None
        else _is_number(value) or name == 'momentum_buffer'
        for key, state in states.items()
        for name, value in state.items()
    )


def _is_number(value: Any) -> bool:
    return value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, int | float)


def _other_kind(state: Any, scheduler: Any) -> bool:
    new = vars(scheduler)
    if not isinstance(state, Mapping) or _settings(state).keys() != _settings(new).keys():
        return True
    counts = {'last_step', '_global_step'} & new.keys()
    lists = {'base_values', '_last_value'} & new.keys()
    return not all(isinstance(state.get(name), int) for name in counts) or not all(
        isinstance(state.get(name), list) and len(state[name]) == len(new[name]) for name in lists
    )


def _settings(state: Mapping) -> dict[str, Any]:
    return {k: v for k, v in state.items() if str(k)[:1] != '_' and k not in _PROGRESS and k != 'optimizer'}


def compare_settings(saved: Mapping, states: list, wrapper: BaseOptimWrapper, schedulers: list) -> list[str]:
    """The settings in which a checkpoint differs from what was built from the config, in words."""
    found = []
    if len(states) != len(schedulers):
        found.append(f'{len(states)} instead of {len(schedulers)} in param_scheduler')
    for index, (state, scheduler) in enumerate(zip(states, schedulers, strict=False)):
        place = f'param_scheduler.{index}'
        if _other_kind(state, scheduler):
            found.append(f'{place} is another than {type(scheduler).__name__}')
        else:
            found += _differences(_settings(state), _settings(vars(scheduler)), place)
    changed = {'params', *(scheduler.param_name for scheduler in schedulers)}
    if 'momentum' in changed:
        changed.add('betas')  # MMEngine's schedulers of the momentum write it there too
    for group, own in zip(saved['param_groups'], wrapper.optimizer.param_groups, strict=True):
        fixed = {name: value for name, value in group.items() if name not in changed}
        found += _differences(fixed, own, 'optim_wrapper.optimizer')
    return found


def _differences(old: Mapping, new: Mapping, place: str) -> Iterator[str]:
    for name, value in old.items():
        if name in new and not _same(value, new[name]):
            setting = f'{place}.{name.removeprefix("initial_")}'
            yield f'{setting} {_short(value)} instead of {_short(new[name])}'


def _same(old: Any, new: Any) -> bool:
    old, new = (value.tolist() if isinstance(value, Tensor) else value for value in (old, new))
    numbers = isinstance(old, int | float) and isinstance(new, int | float)
    if numbers:
        return math.isclose(old, new, rel_tol=1e-6)
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return len(old) == len(new) and all(map(_same, old, new))
    return old == new


def _short(value: Any) -> str:
    return f'{value:g}' if isinstance(value, float) else str(value)


def _replace(
    saved: dict, wrapper: BaseOptimWrapper, schedulers: list, epochs: int, iterations: int
) -> list[dict]:
    """Write the settings of the config into an optimizer's saved state; the states of the schedulers."""
    states, settings = replay(schedulers, wrapper, epochs, iterations)
    base = saved.get('base_param_settings')
    for group, values in zip([*saved['param_groups'], base or {}], settings, strict=False):
        group.update(values)
    return states


def replay(
    schedulers: list, wrapper: BaseOptimWrapper, epochs: int, iterations: int
) -> tuple[list[dict], list[dict]]:
    """Step schedulers through a run.

    Args:
        schedulers: As they were built.
        wrapper: Their optimizer, which does not change.
        epochs: Of the run until then, each of about as many iterations as another.
        iterations: Of the run until then.

    Returns:
        States of the schedulers, and settings of the optimizer's groups, the wrapper's own one at the end.

    Raises:
        UserError: If a scheduler follows a metric.
    """
    settings = [{k: v for k, v in group.items() if k != 'params'} for group in wrapper.param_groups]
    # Groups of equal settings stay equal: there may be as many groups as parameters, and few settings.
    kinds = [repr(sorted(values.items())) for values in settings]
    places = {kind: index for index, kind in reversed([*enumerate(kinds)])}
    numbers = {kind: number for number, kind in enumerate(places)}
    groups = [dict(settings[index]) for index in places.values()]
    proxy = SimpleNamespace(param_groups=groups, _global_step=0, step=SimpleNamespace(_with_counter=True))
    copies = []
    for scheduler in schedulers:
        if getattr(scheduler, 'need_val_args', False):
            raise UserError(
                f'--resume-schedule config: {type(scheduler).__name__} follows a metric of the run, which '
                'cannot be replayed: use --resume-schedule checkpoint, or a schedule of epochs or iterations'
            )
        copy = object.__new__(type(scheduler))
        copy.__dict__.update(vars(scheduler), optimizer=proxy)
        copy.base_values = [scheduler.base_values[index] for index in places.values()]
        copies.append(copy)
    for iteration in range(iterations):
        ends = (iteration + 1) * epochs // iterations > iteration * epochs // iterations
        for copy in copies:
            if not copy.by_epoch or ends:
                copy.step()
    states = []
    for scheduler, copy in zip(schedulers, copies, strict=True):
        state = {**vars(copy), 'base_values': scheduler.base_values}
        state['_last_value'] = [copy._last_value[numbers[kind]] for kind in kinds]
        states.append({name: value for name, value in state.items() if name != 'optimizer'})
    return states, [groups[numbers[kind]] for kind in kinds]
