"""Read checkpoints without running code that they may contain."""

import logging
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from grootv.utils.errors import UserError, first


def safe_globals() -> list:
    """What a checkpoint of MMEngine holds beside tensors: its log history, as numpy arrays."""
    multiarray = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    functions = [multiarray._reconstruct, multiarray.scalar]
    # NumPy renamed its core package in version 2; a checkpoint keeps the name it was written under.
    names = ['numpy.core.multiarray', 'numpy._core.multiarray']
    renamed = [(function, f'{name}.{function.__name__}') for function in functions for name in names]
    dtypes = [type(np.dtype(code)) for code in np.typecodes['AllInteger'] + np.typecodes['Float'] + '?']
    statistic = (_statistic, 'builtins.getattr')  # how pickle writes HistoryBuffer.mean
    return [HistoryBuffer, statistic, np.ndarray, np.dtype, *renamed, *dict.fromkeys(dtypes)]


def _statistic(owner: type, name: str) -> Callable:
    """Stands in for getattr while a checkpoint is read, and knows one class only."""
    known = {'min', 'max', 'current', 'mean', *HistoryBuffer._statistics_methods}
    if owner is not HistoryBuffer or name not in known:
        raise pickle.UnpicklingError(f'GLOBAL getattr of {owner} and {name}')
    return getattr(owner, name)


def load_checkpoint_file(path: str | Path, trust: bool = False, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint from disk.

    Args:
        path: File written by ``torch.save``: a state dict, or a dict that holds one.
        trust: Unpickle whatever the file contains, which runs any code its author put there.
        map_location: As for :func:`torch.load`.

    Raises:
        UserError: If the file is missing or damaged, holds anything but weights and logs, or is
            not a dict.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f'checkpoint {path} does not exist: check the path')
    return _read(path, str(path), trust, map_location)


def _read(file: Any, name: str, trust: bool, map_location: Any) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(safe_globals()):
            checkpoint = torch.load(file, map_location=map_location, weights_only=not trust)
    except pickle.UnpicklingError as error:
        foreign = re.search(r'GLOBAL ([\w.]+)|class ([\w.]+)', str(error).replace('`', ''))
        if foreign is None:
            raise UserError(_damaged(name)) from error
        raise UserError(
            f'checkpoint {name} holds more than weights ({foreign[1] or foreign[2]}), and loading '
            'that can run code: add --trust-checkpoint only if you trust its author'
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise UserError(_damaged(name)) from error
    if not isinstance(checkpoint, dict):
        raise UserError(
            f'checkpoint {name} holds a {type(checkpoint).__name__}, not a dict of weights: '
            'save model.state_dict(), or convert the file with a script of tools/model_converters'
        )
    if not trust and isinstance(checkpoint.get('meta'), dict):
        # MMEngine executes this text as a config when it resumes; its own files do not have it.
        checkpoint['meta'].pop('config', None)
    return checkpoint


def _damaged(name: str) -> str:
    return f'checkpoint {name} is cut short or was not written by torch.save: get the file again'


def install_safe_loader(trust: bool = False) -> None:
    """Make every load of MMEngine go through :func:`load_checkpoint_file`'s rules.

    MMEngine's own loader falls back to full unpickling with a warning. Addresses on the network
    are read with PyTorch's default, which is weights only.

    Args:
        trust: See :func:`load_checkpoint_file`.
    """

    def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
        return load_checkpoint_file(filename, trust, map_location)

    def load_any(file: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        return _read(file, str(getattr(file, 'name', file)), trust, map_location)

    CheckpointLoader.register_scheme('', load_from_local, force=True)
    if hasattr(mmengine_checkpoint, '_safe_torch_load'):  # the fork's helper of the other schemes
        mmengine_checkpoint._safe_torch_load = load_any


def state_dict_of(checkpoint: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The weights of a checkpoint, without the prefix of a data-parallel wrapper."""
    state = checkpoint.get('state_dict', checkpoint)
    return OrderedDict((name.removeprefix('module.'), value) for name, value in state.items())


def check_keys(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    strict: bool = True,
    classes: Sequence[str] | None = None,
) -> None:
    """Compare a checkpoint with a model by names and shapes.

    Args:
        model: The network, possibly inside a data-parallel or test-time augmentation wrapper.
        checkpoint: What :func:`load_checkpoint_file` returned.
        strict: Whether every weight must match. Otherwise one is enough, and a warning tells which
            ones are not loaded.
        classes: Classes of the data, to be told where the checkpoint has others.

    Raises:
        UserError: Names the first weights that do not fit.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        if isinstance(model, FullyShardedDataParallel):  # it alone knows the whole parameters
            break
        model = model.module
    wanted, found = model.state_dict(), state_dict_of(checkpoint)
    faults = misfits(wanted, found)
    if not faults:
        return
    text = describe(faults) + other_classes(checkpoint, classes)
    if strict:
        raise UserError(
            f'checkpoint does not fit the model {type(model).__name__} of the config '
            f'({text}): give the config that the checkpoint was trained with'
        )
    if not fitting(wanted, found):
        raise UserError(
            f'checkpoint shares no weight with the model {type(model).__name__} of the config '
            f'(it holds {first(found)}; the model needs {first(wanted)}): load another file'
        )
    print_log(
        f'checkpoint fits the model {type(model).__name__} in part, the rest is not loaded ({text})',
        'current',
        logging.WARNING,
    )


def load_weights(model: nn.Module, path: str | Path, trust: bool = False) -> None:
    """Give a network all the weights of a checkpoint, which must be its own.

    Args:
        model: The network.
        path: As for :func:`load_checkpoint_file`.
        trust: See :func:`load_checkpoint_file`.

    Raises:
        UserError: If the file cannot be read, or a weight does not fit.
    """
    checkpoint = load_checkpoint_file(path, trust)
    check_keys(model, checkpoint)
    # check_keys forgives a BatchNorm of the file that counts no batches, and strict loading would not.
    model.load_state_dict(state_dict_of(checkpoint), strict=False)


def misfits(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Names of the weights that cannot be loaded, by what is wrong with them."""
    faults = {
        'missing': [name for name in wanted if name not in found and 'num_batches_tracked' not in name],
        'unknown': [name for name in found if name not in wanted],
        'other shape': [
            f'{name} {tuple(found[name].shape)} instead of {tuple(wanted[name].shape)}'
            for name in wanted
            if name in found and found[name].shape != wanted[name].shape
        ],
    }
    return {kind: names for kind, names in faults.items() if names}


def describe(faults: Mapping[str, list[str]]) -> str:
    return '; '.join(f'{kind}: {first(names)}' for kind, names in faults.items())


def fitting(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Names of the weights that can be loaded."""
    return [name for name in wanted if name in found and found[name].shape == wanted[name].shape]


def other_classes(checkpoint: Mapping[str, Any], classes: Sequence[str] | None) -> str:
    """End of a sentence that tells how many classes the checkpoint and the data have, if they differ."""
    meta = checkpoint.get('meta')
    trained = (meta.get('dataset_meta') or {}).get('classes') if isinstance(meta, Mapping) else None
    if not trained or not classes or len(trained) == len(classes):
        return ''
    return (
        f'; it was trained with {len(trained)} classes, {first(trained)}, '
        f'and the config has {len(classes)}, {first(classes)}'
    )
