"""Checks of the user's config, data, files and checkpoints, made before a run builds or writes anything.

Each function raises a UserError that names the setting, what was found, and the fix. What a check needs to
know of a single sample is in ``grootv.datasets``; checkpoints are compared with models in
``grootv.checkpoint``.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import CheckpointLoader
from torch import nn

from grootv.checkpoint import compare, state_dict_of, warn
from grootv.errors import UserError, first
from grootv.pretrained import initialisations, is_pretrained, members
from grootv.registry import class_name


def check_data(cfg: Config, names: Sequence[str]) -> None:
    """Check that the data exist.

    Args:
        cfg: Config of the run.
        names: Keys of its model, loaders and evaluators.

    Raises:
        UserError: If a data folder, an annotation file, a language model or a tokenizer below one of them
            does not exist.
    """
    for name in names:
        _check_data_below(cfg.get(name), name)


def _check_data_below(node: Any, key: str) -> None:
    def look(kind: str, path: Any, name: str, place: str, exists: Callable[[Path], bool]) -> None:
        if isinstance(path, str) and path and '://' not in path and not exists(Path(path)):
            raise UserError(
                f'{kind} {path} does not exist: put the data there, or give its place '
                f'with --cfg-options {key}.{name}={place}'
            )

    if isinstance(node, Mapping):
        look('language model', node.get('pretrained'), 'pretrained', 'FOLDER', Path.exists)
        look('tokenizer', node.get('tokenizer'), 'tokenizer', 'FOLDER', Path.exists)
        root = node.get('data_root') or ''
        look('data folder', root, 'data_root', 'FOLDER', Path.is_dir)
        look('annotation file', _join(root, node.get('ann_file') or ''), 'ann_file', 'FILE', Path.exists)
        prefixes = node.get('data_prefix') or {}
        for name, prefix in prefixes.items() if isinstance(prefixes, Mapping) else [('', prefixes)]:
            name = f'data_prefix.{name}'.removesuffix('.')
            look('data folder', _join(root, prefix or ''), name, 'FOLDER', Path.is_dir)
        for name in ('dataset', 'datasets'):
            _check_data_below(node.get(name), f'{key}.{name}')
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for index, element in enumerate(node):
            _check_data_below(element, f'{key}.{index}')


def _join(root: str, path: Any) -> Any:
    """A path below the data folder as MMEngine joins it."""
    return os.path.join(root, path) if isinstance(path, str) and path and '://' not in path else path


def check_checkpoint(path: str) -> None:
    """Check that ``path`` is a file or an address on the network."""
    if '://' not in path and not Path(path).expanduser().is_file():
        raise UserError(f'checkpoint {path} does not exist: check the path')


def check_pretrained_files(cfg: Config, configs: Path) -> None:
    """Check that the files exist which the ``init_cfg`` of the model's parts load.

    Args:
        cfg: Config of the run.
        configs: Folder of configs, one of which may make the file.

    Raises:
        UserError: Names the first file that does not exist, and how to make it or do without.
    """
    for key, node in initialisations(cfg.get('model'), 'model'):
        for end, init in members(node['init_cfg']).items():
            path = init.get('checkpoint') if is_pretrained(init) else None
            if path and '://' not in path and not Path(path).expanduser().is_file():
                raise UserError(
                    f'pretrained weights {path} do not exist (docs/model_zoo.md says where there are some): '
                    f'{_how_to_make(Path(path), configs)}'
                    f'give their place with --cfg-options {key}.init_cfg{end}.checkpoint=FILE, '
                    f'or start from random weights with {key}.init_cfg=None'
                )


def _how_to_make(path: Path, configs: Path) -> str:
    """The command that leaves a checkpoint in this place, where there is a config for it."""
    makers = sorted(configs.rglob(f'{path.parent.name}.py')) if path.parts[-3:-2] == ('work_dirs',) else []
    if not makers:
        return ''
    return f'make them with tools/train.py {Path(configs.name) / makers[0].relative_to(configs)}, '


def check_pretrained_fit(model: Any) -> None:
    """Compare the local files of ``init_cfg`` with the modules that are going to load them.

    MMEngine loads what fits and starts the rest at random, which a warning says here.

    Args:
        model: The network; anything else, such as the config that a FlexibleRunner holds, is left alone.

    Raises:
        UserError: If no weight of a file fits its module.
    """
    for module in model.modules() if isinstance(model, nn.Module) else ():
        for init in members(getattr(module, 'init_cfg', None)).values():
            if is_pretrained(init) and '://' not in init['checkpoint']:
                _compare_pretrained(module, init['checkpoint'], init.get('prefix'))


def _compare_pretrained(module: nn.Module, path: str, prefix: str | None) -> None:
    name = type(module).__name__
    checkpoint = CheckpointLoader.load_checkpoint(path, 'cpu')
    if prefix is None:
        found = state_dict_of(checkpoint)
    else:
        prefix = prefix.removesuffix('.') + '.'
        state = checkpoint.get('state_dict', checkpoint)
        found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if not found:
            raise UserError(
                f'pretrained weights {path} have none under the prefix {prefix} that {name} asks for '
                f'(they hold {first(state)}): set the prefix in init_cfg, or load another file'
            )
    misfits, fits = compare(module.state_dict(), found)
    if not fits:
        raise UserError(
            f'pretrained weights {path} do not fit {name} ({misfits}): '
            'load those of a network of the same arch'
        )
    if misfits:
        warn(f'pretrained weights {path} fit {name} in part, the rest starts at random ({misfits})')


def check_schedule(cfg: Config) -> None:
    """Check that every learning-rate schedule begins, and none reaches a rate of 0, before the run ends."""
    counts = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    if isinstance(counts, bool) or not isinstance(counts, int) or counts < 1:
        raise UserError(f'optim_wrapper.accumulative_counts is a whole number from 1 on, got {counts!r}')
    schedulers = cfg.get('param_scheduler')
    for index, scheduler in enumerate(schedulers if isinstance(schedulers, list) else []):
        unit = 'epoch' if scheduler.get('by_epoch', True) else 'iter'
        last, begin, end = cfg.train_cfg.get(f'max_{unit}s'), scheduler.get('begin', 0), scheduler.get('end')
        if unit == 'epoch' and last is not None and begin >= last:
            raise UserError(
                f'param_scheduler.{index} begins at epoch {begin} and the run has {last}: '
                f'raise train_cfg.max_epochs, or lower param_scheduler.{index}.begin and the end before it'
            )
        kind = class_name(scheduler.get('type'))
        stops = kind in ('PolyLR', 'CosineAnnealingLR') and not (
            scheduler.get('eta_min') or scheduler.get('eta_min_ratio')
        )
        if stops and last is not None and end is not None and end < last:
            raise UserError(
                f'param_scheduler.{index} ({kind}) ends at {unit} {end} with a rate of 0, and the run has '
                f'{last}: set param_scheduler.{index}.end={last}, or give it an eta_min'
            )


def check_layer_decay(cfg: Config) -> None:
    """Check that something reads a layer-wise rate: MMEngine's own constructor ignores it."""
    wrapper = cfg.get('optim_wrapper') or {}
    if 'layer_decay_rate' in (wrapper.get('paramwise_cfg') or {}) and not wrapper.get('constructor'):
        raise UserError(
            'optim_wrapper.paramwise_cfg.layer_decay_rate has no effect by itself: add '
            '--cfg-options optim_wrapper.constructor=grootv.LayerDecayOptimWrapperConstructor'
        )


def check_amp(cfg: Config) -> None:
    """Check that mixed precision does not fail in the middle of a run."""
    if cfg.get('default_scope') == 'mmdet' and get_device() == 'cpu':
        raise UserError(
            '--amp: without a GPU mmcv cannot suppress overlapping boxes in bfloat16, leave --amp out'
        )
