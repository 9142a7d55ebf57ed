"""Checkpoints: read them without running code, compare them with a model, build a model from one."""

import copy
import hashlib
import io
import json
import logging
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from numbers import Number
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import safetensors.torch
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from grootv.datasets.summary import difference
from grootv.errors import UserError, first
from grootv.files import read_config
from grootv.pretrained import drop_pretrained


def build_model(
    cfg: Config | str | Path, checkpoint: str | Path | None = None, trust: bool = False
) -> nn.Module:
    """Build the model of a config with the weights of a checkpoint.

    Args:
        cfg: Config or config file.
        checkpoint: Weights of the whole model. None leaves its initial weights, the same at every call.
        trust: See :func:`load_checkpoint_file`.

    Returns:
        The model in evaluation mode, on the CPU. Its library's default scope is in force afterwards.

    Raises:
        UserError: If the config has no model, or the checkpoint cannot be read or is not the model's own.
    """
    cfg = copy.deepcopy(cfg) if isinstance(cfg, Config) else read_config(cfg)
    if cfg.get('model') is None:
        raise UserError(f'{cfg.filename or "the config"} has no model: give a config that builds a network')
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)  # as the Runner does
    drop_pretrained(cfg)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
    if checkpoint is not None:
        load_weights(model, checkpoint, trust)
    return model.eval()


def load_weights(model: nn.Module, path: str | Path, trust: bool = False) -> None:
    """Load all weights of a checkpoint into the model it belongs to.

    Args:
        model: The network.
        path: As for :func:`load_checkpoint_file`.
        trust: See :func:`load_checkpoint_file`.

    Raises:
        UserError: If the file cannot be read, or a weight does not fit.
    """
    checkpoint = load_checkpoint_file(path, trust)
    check_keys(model, checkpoint)
    # check_keys accepts a file whose BatchNorm counts no batches; strict loading would not.
    with loading(str(path)):
        model.load_state_dict(state_dict_of(checkpoint), strict=False)


def load_checkpoint_file(path: str | Path, trust: bool = False, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint from disk.

    Args:
        path: File written by ``torch.save``, a state dict or a dict that holds one, or by safetensors.
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
    kind = 'safetensors' if name.lower().endswith('.safetensors') else 'torch.save'
    damaged = f'checkpoint {name} is cut short or was not written by {kind}: get the file again'
    if kind == 'safetensors':
        try:
            content = file.read() if hasattr(file, 'read') else Path(file).read_bytes()
            return safetensors.torch.load(content)
        except SafetensorError as error:
            raise UserError(damaged) from error
    try:
        with torch.serialization.safe_globals(safe_globals()):
            checkpoint = torch.load(file, map_location=map_location, weights_only=not trust)
    except pickle.UnpicklingError as error:
        foreign = re.search(r'GLOBAL ([\w.]+)|class ([\w.]+)', str(error).replace('`', ''))
        if foreign is None:
            raise UserError(damaged) from error
        raise UserError(
            f'checkpoint {name} holds more than weights ({foreign[1] or foreign[2]}), and loading '
            'that can run code: add --trust-checkpoint only if you trust its author'
        ) from error
    except Exception as error:  # damaged bytes make the unpickler raise any of them
        raise UserError(damaged) from error
    if not isinstance(checkpoint, dict):
        raise UserError(
            f'checkpoint {name} holds a {type(checkpoint).__name__}, not a dict of weights: '
            'save model.state_dict(), or convert the file with a script of tools/model_converters'
        )
    check_parts(checkpoint, name)
    return checkpoint if trust else without_configs(checkpoint)


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Name the checkpoint in whatever error loading it into a model or an optimizer raises."""
    try:
        yield
    except (UserError, OSError, ImportError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what the parts of a damaged file make their owners raise
        text = ' '.join(str(error).split())[:200]
        raise UserError(
            f'checkpoint {name} cannot be loaded ({type(error).__name__}: {text}): it is damaged, '
            'or of another program: get the file again'
        ) from error


def explain_loading(runner: Any) -> None:
    """Make a runner load and resume its checkpoint under :func:`loading`."""
    load_or_resume = runner.load_or_resume

    def load() -> None:
        with loading(runner._load_from):
            load_or_resume()

    runner.load_or_resume = load


# Types of the parts that MMEngine writes.
_PARTS = dict(state_dict=Mapping, ema_state_dict=Mapping, meta=Mapping, message_hub=Mapping)
_PARTS |= dict(optimizer=Mapping, param_schedulers=(Mapping, list))


def check_parts(checkpoint: dict[Any, Any], name: str) -> None:
    """Check that the parts of a checkpoint are what their names say.

    Raises:
        UserError: Names the first that is not.
    """
    again = 'get the file again, or save it again as {"state_dict": model.state_dict()}'
    for part, kind in _PARTS.items() if 'state_dict' in checkpoint else ():
        if part in checkpoint and not isinstance(checkpoint[part], kind):
            found = type(checkpoint[part]).__name__
            raise UserError(f'checkpoint {name} has a {found} as its {part}: {again}')
    states = [checkpoint.get('state_dict', checkpoint), checkpoint.get('ema_state_dict', {})]
    for key, value in (item for state in states for item in state.items()):
        if not isinstance(key, str):
            raise UserError(f'checkpoint {name} has a weight named {key!r}, which is no text: {again}')
        fault = _no_weight(value)
        if fault and 'state_dict' in checkpoint and not key.endswith('_extra_state'):
            raise UserError(f'checkpoint {name} has a {fault} as its weight {key}: {again}')


def _no_weight(value: Any) -> str:
    """What a value is if it is no weight, or ''."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    faults = dict(meta=value.is_meta, sparse=value.layout != torch.strided, quantized=value.is_quantized)
    faults['complex'] = value.is_complex()
    return next((f'{name} tensor' for name, found in faults.items() if found), '')


# What CheckpointHook notes of a run.
_NOTES = dict(best_score=(Number, Tensor), best_ckpt=str, keep_ckpt_ids=int, superseded=str)
_LISTS = {'keep_ckpt_ids', 'superseded'}


def check_resumable(checkpoint: Mapping[str, Any], name: str) -> None:
    """Check that a checkpoint has what a run needs to continue.

    Raises:
        UserError: Names what is missing.
    """
    found = checkpoint.get('meta')
    meta = found if isinstance(found, Mapping) else {}
    progress = [meta.get('epoch'), meta.get('iter')]
    absent = [part for part in ('optimizer', 'message_hub') if part not in checkpoint]
    if any(isinstance(count, bool) or not isinstance(count, int) or count < 0 for count in progress):
        absent.append('number of epochs and iterations')
    if absent:
        raise UserError(
            f'checkpoint {name} has no {absent[0]}, so that --resume would start the schedule again: resume '
            f'from epoch_N.pth or iter_N.pth, or start from its weights with --cfg-options load_from={name}'
        )
    runtime = checkpoint['message_hub'].get('runtime_info', {})
    good = isinstance(runtime, Mapping) and all(isinstance(key, str) for key in runtime)
    for key, kind in _NOTES.items() if good else ():
        values = runtime.get(key)
        values = values if key in _LISTS and isinstance(values, list) else [values]
        good &= key not in runtime or all(isinstance(value, kind) for value in values)
    if not good:
        raise UserError(
            f'checkpoint {name} has damaged notes of the run (message_hub.runtime_info): resume another'
        )


def without_configs(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Remove the texts that MMEngine executes as configs when it resumes or an inferencer gets no config."""
    hub = checkpoint.get('message_hub')
    places = checkpoint.get('meta'), hub.get('runtime_info') if isinstance(hub, dict) else None
    for place in places:
        if isinstance(place, dict):
            for name in ('cfg', 'config'):
                place.pop(name, None)
    return checkpoint


def safe_globals() -> list:
    """Classes and functions that MMEngine's checkpoints name for their log history, as numpy arrays."""
    numpy: Any = np  # whose name for its core package depends on its version
    multiarray = numpy._core.multiarray if hasattr(np, '_core') else numpy.core.multiarray
    functions = [multiarray._reconstruct, multiarray.scalar]
    # NumPy renamed its core package in version 2; a checkpoint keeps the name it was written under.
    names = ['numpy.core.multiarray', 'numpy._core.multiarray']
    renamed = [(function, f'{name}.{function.__name__}') for function in functions for name in names]
    dtypes = [type(np.dtype(code)) for code in np.typecodes['AllInteger'] + np.typecodes['Float'] + '?']
    statistic = (_statistic, 'builtins.getattr')  # how pickle writes HistoryBuffer.mean
    return [HistoryBuffer, statistic, np.ndarray, np.dtype, *renamed, *dict.fromkeys(dtypes)]


def _statistic(owner: type, name: str) -> Callable:
    """Replace getattr while a checkpoint is read: give statistics of HistoryBuffer and nothing else."""
    known = {'min', 'max', 'current', 'mean', *HistoryBuffer._statistics_methods}
    if owner is not HistoryBuffer or name not in known:
        raise pickle.UnpicklingError(f'GLOBAL getattr of {owner} and {name}')
    return getattr(owner, name)


def install_safe_loader(trust: bool = False) -> None:
    """Make every load of MMEngine follow the rules of :func:`load_checkpoint_file`, from the network too.

    MMEngine's own loaders unpickle what they find, some with a warning.

    Args:
        trust: See :func:`load_checkpoint_file`.
    """

    def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
        return load_checkpoint_file(filename, trust, map_location)

    def load_any(file: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        return _read(file, str(getattr(file, 'name', file)), trust, map_location)

    def load_url(
        url: str, model_dir: str | None = None, map_location: Any = None, **_: Any
    ) -> dict[str, Any]:
        return _read(download(url, model_dir), url, trust, map_location)

    with suppress(ImportError):  # a task without images may lack MMCV
        import_module('grootv.datasets.transforms')  # and read images in the inferencers as in training
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    mmengine_checkpoint.load_url = load_url  # every scheme but those of cloud clients ends in it
    if hasattr(mmengine_checkpoint, '_safe_torch_load'):  # the fork's helper of the other schemes
        mmengine_checkpoint._safe_torch_load = load_any


def download(url: str, folder: str | None = None) -> Path:
    """Fetch a file, once: it is kept in ``folder``, torch.hub's unless given.

    Raises:
        UserError: If the address cannot be read.
    """
    address = hashlib.sha256(url.encode()).hexdigest()[:16]  # equal names at two addresses are two files
    path = Path(folder or f'{torch.hub.get_dir()}/checkpoints', address, Path(urlsplit(url).path).name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path))
        except OSError as error:
            raise UserError(f'checkpoint {url} cannot be downloaded ({error}): check the address') from error
    return path


def pack_weights(state_dict: Mapping[str, Tensor], meta: Mapping[str, Any], kind: str) -> bytes:
    """The content of a checkpoint file that holds weights alone.

    Args:
        state_dict: The weights.
        meta: What can be said of them, of types that JSON has.
        kind: Ending of the file's name, 'safetensors' or any other, which is a file of ``torch.save``.
    """
    if kind == 'safetensors':
        notes = {name: json.dumps(value) for name, value in meta.items()}
        return safetensors.torch.save(dict(state_dict), notes)
    content = io.BytesIO()
    torch.save(dict(state_dict=dict(state_dict), meta=dict(meta)), content)
    return content.getvalue()


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
        strict: Whether every weight must match. Otherwise one is enough, and a warning says which
            ones are not loaded.
        classes: Classes of the data, reported where the checkpoint has others.

    Raises:
        UserError: Names the first weights that do not fit.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        if isinstance(model, FullyShardedDataParallel):  # it alone knows the whole parameters
            break
        inner: Any = model.module
        model = inner
    wanted, found = model.state_dict(), state_dict_of(checkpoint)
    misfits, fits = compare(wanted, found)
    if not misfits:
        return
    name, text = type(model).__name__, misfits + other_classes(checkpoint, classes)
    if strict:
        raise UserError(
            f'checkpoint does not fit the model {name} of the config ({text}): '
            'give the config that the checkpoint was trained with'
        )
    if not fits:
        raise UserError(
            f'checkpoint shares no weight with the model {name} of the config '
            f'(it holds {first(found)}; the model needs {first(wanted)}): load another file'
        )
    warn(f'checkpoint fits the model {name} in part, the rest is not loaded ({text})')


def compare(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[str, bool]:
    """The weights that cannot be loaded, in words (empty if there are none), and whether any can."""
    shared = [name for name in wanted if name in found]
    other = [name for name in shared if shape_of(found[name]) != shape_of(wanted[name])]
    typed = {name: (found[name].dtype, wanted[name].dtype) for name in shared if name not in other}
    rounded = [
        name for name, (has, needs) in typed.items() if needs.is_floating_point > has.is_floating_point
    ]
    misfits = {
        'missing': [name for name in wanted if name not in found and 'num_batches_tracked' not in name],
        'unknown': [name for name in found if name not in wanted],
        'other shape': [
            f'{name} {shape_of(found[name])} instead of {shape_of(wanted[name])}' for name in other
        ],
        'other type': ['{} {} instead of {}'.format(name, *typed[name]) for name in rounded],
    }
    text = '; '.join(f'{kind}: {first(names)}' for kind, names in misfits.items() if names)
    return text, len(shared) > len(other) + len(rounded)


def shape_of(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def warn(text: str) -> None:
    print_log(text, 'current', logging.WARNING)


def other_classes(checkpoint: Mapping[str, Any], classes: Sequence[str] | None) -> str:
    """End of a sentence: the numbers of classes of the checkpoint and of the data, if they differ."""
    meta = checkpoint.get('meta')
    trained = (meta.get('dataset_meta') or {}).get('classes') if isinstance(meta, Mapping) else None
    if not trained or not classes or len(trained) == len(classes):
        return ''
    return (
        f'; it was trained with {len(trained)} classes, {first(trained)}, '
        f'and the config has {len(classes)}, {first(classes)}'
    )


def check_names(checkpoint: Mapping[str, Any], classes: Sequence[str] | None) -> None:
    """Compare the names of the classes with those of the training, where there are as many.

    Raises:
        UserError: If they are the same in another order. Other names are warned of.
    """
    meta = checkpoint.get('meta')
    trained = (meta.get('dataset_meta') or {}).get('classes') if isinstance(meta, Mapping) else None
    if not trained or not classes or len(trained) != len(classes) or list(trained) == list(classes):
        return
    place, theirs, ours = difference(list(trained), list(classes))
    text = (
        f'checkpoint was trained with other names from class {place} on, {theirs}, than the data have, {ours}'
    )
    if sorted(trained) == sorted(classes):
        raise UserError(f'{text}: give metainfo.classes and the data in the order of the training')
    warn(text)
