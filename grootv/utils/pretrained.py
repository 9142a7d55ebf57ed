"""Weights that a config's ``init_cfg`` loads: look for them, compare them with the model, do without."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model.weight_init import PretrainedInit
from mmengine.runner import CheckpointLoader
from torch import nn

from grootv.utils.checkpoint import describe, fitting, misfits, state_dict_of
from grootv.utils.errors import UserError, first


def is_pretrained(init: Any) -> bool:
    return isinstance(init, Mapping) and init.get('type') in ('Pretrained', PretrainedInit)


def members(init_cfg: Any) -> dict[str, Mapping]:
    """The dicts of an ``init_cfg``, which is one or a list, by the end of their dotted keys."""
    if isinstance(init_cfg, list):
        return {f'.{index}': init for index, init in enumerate(init_cfg)}
    return {'': init_cfg} if init_cfg else {}


def initialisations(node: Any, key: str) -> Iterator[tuple[str, dict]]:
    """Every dict below ``node`` that has an ``init_cfg``, and its dotted key."""
    if isinstance(node, Mapping):
        if node.get('init_cfg'):
            yield key, node
        for name, value in node.items():
            yield from initialisations(value, f'{key}.{name}')
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from initialisations(value, f'{key}.{index}')


def check_files(cfg: Config, configs: Path) -> None:
    """Look for the files before anything is built or written.

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
                    f'pretrained weights {path} do not exist: {how_to_make(Path(path), configs)}'
                    f'give their place with --cfg-options {key}.init_cfg{end}.checkpoint=FILE, '
                    f'or start from random weights with {key}.init_cfg=None'
                )


def how_to_make(path: Path, configs: Path) -> str:
    """The command that leaves a checkpoint in this place, where there is a config for it."""
    makers = sorted(configs.rglob(f'{path.parent.name}.py')) if path.parts[-3:-2] == ('work_dirs',) else []
    if not makers:
        return ''
    return f'make them with tools/train.py {Path(configs.name) / makers[0].relative_to(configs)}, '


def drop(cfg: Config) -> None:
    """Take the files out of the config, for a run whose weights all come from a checkpoint."""
    for _, node in initialisations(cfg.get('model'), 'model'):
        others = [init for init in members(node['init_cfg']).values() if not is_pretrained(init)]
        node['init_cfg'] = others or None


def check_fit(model: Any) -> None:
    """Compare the local files with the modules that are going to load them.

    MMEngine loads what fits and starts the rest at random.

    Args:
        model: The network; anything else, such as the config that a FlexibleRunner holds, is left alone.

    Raises:
        UserError: If not a single weight fits. Single ones that do not are told in a warning.
    """
    if not isinstance(model, nn.Module):
        return
    for module in model.modules():
        for init in members(getattr(module, 'init_cfg', None)).values():
            if is_pretrained(init) and '://' not in init['checkpoint']:
                compare(module, init['checkpoint'], init.get('prefix'))


def compare(module: nn.Module, path: str, prefix: str | None) -> None:
    wanted, name = module.state_dict(), type(module).__name__
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
    faults = misfits(wanted, found)
    if not fitting(wanted, found):
        raise UserError(
            f'pretrained weights {path} do not fit {name} ({describe(faults)}): '
            'load those of a network of the same arch'
        )
    if faults:
        print_log(
            f'pretrained weights {path} fit {name} in part, the rest starts at random ({describe(faults)})',
            'current',
            logging.WARNING,
        )
