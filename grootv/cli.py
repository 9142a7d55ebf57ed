"""Shared by the command-line tools: arguments, configs, and running with every failure in one sentence."""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
import difflib
import errno
import inspect
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.runner import Runner

from grootv.distributed import rank
from grootv.errors import UserError
from grootv.files import read_config
from grootv.options import KeyValueAction

# Top-level keys of a config that MMEngine reads and that are no argument of the Runner.
_RUNNER_KEYS = {'activation_checkpointing', 'compile', 'custom_imports', 'efficient_conv_bn_eval'}
_RUNNER_KEYS |= {'find_unused_parameters', 'model_wrapper_cfg', 'runner_type', 'strategy', 'sync_bn'}
_RUNNER_KEYS |= {'tta_model', 'tta_pipeline', *inspect.signature(Runner.__init__).parameters}
_TRACKERS = dict(tensorboard='TensorboardVisBackend', wandb='WandbVisBackend', mlflow='MLflowVisBackend')
_GROOTV = re.compile(re.escape(str(Path(__file__).resolve().parent)))
_LOST = re.compile(r'(gloo|nccl|socket).*(peer|remote|TCPStore)', re.IGNORECASE)
_OPENMMLAB = re.compile(r'[/\\](mmengine|mmcv|mmpretrain|mmdet|mmseg)[/\\]')


class Interrupted(BaseException):
    """A signal asked the process to stop.

    Args:
        number: The signal.
        hint: End of the sentence: what the user can do next.
    """

    def __init__(self, number: int, hint: str = ''):
        super().__init__(f'stopped by {signal.Signals(number).name}{hint}')
        self.number = number


_received: int | None = None  # the signal that asked this process to stop


def _on_signal(number: int, _frame: Any) -> NoReturn:
    global _received
    _received = number
    raise KeyboardInterrupt


@contextmanager
def stoppable(hint: Callable[[], str] = str) -> Iterator[None]:
    """Turn whatever exception a signal causes in the body into :class:`Interrupted`; report a full disk.

    Libraries may convert a KeyboardInterrupt into any other exception, so only the signal decides.

    Args:
        hint: Called once the body has stopped; its text ends the sentence.
    """
    try:
        yield
    except Interrupted:
        raise
    except BaseException as error:
        if _received is not None:
            raise Interrupted(_received, hint()) from None
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(_explain_os_error(error, _one_line(error)) + hint()) from error
        raise


class StopHook(Hook):
    """End a run at its next iteration if Python lost the exception of a signal.

    Python ignores exceptions in destructors and around a fork, where data-loading processes end and start.
    """

    priority = 'VERY_HIGH'

    def _before_iter(self, runner, batch_idx, data_batch=None, mode='train') -> None:
        if _received is not None:
            raise KeyboardInterrupt


def add_config_arguments(parser: argparse.ArgumentParser, checkpoint: bool = True) -> None:
    """Arguments that every tool which reads a config takes, and possibly a checkpoint."""
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=KeyValueAction,
        metavar='KEY=VALUE',
        help='settings that replace those of the config, for example '
        'train_dataloader.batch_size=64 or model.backbone.out_indices="[1,3]"',
    )
    if checkpoint:
        parser.add_argument(
            '--trust-checkpoint',
            action='store_true',
            help='unpickle checkpoints fully, which runs any code that their author put in',
        )


def add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that train.py and test.py share."""
    parser.add_argument('--work-dir', help='folder of logs and checkpoints; default work_dirs/CONFIG')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher'
    )
    # torch.distributed.launch adds this argument; torchrun uses the environment.
    parser.add_argument('--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS)


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that the tools of deployment share."""
    add_config_arguments(parser)
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file; without it the weights are random')
    parser.add_argument('--out', required=True, help='file to write')
    parser.add_argument(
        '--input-size',
        nargs=2,
        type=positive,
        default=[224, 224],
        metavar=('H', 'W'),
        help='images to trace and verify with, default 224 224; the model takes other sizes too',
    )
    parser.add_argument(
        '--verify', action='store_true', help='compare the file with PyTorch, at this size and others'
    )


def positive(text: str) -> int:
    """Type of an argument that is a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be 1 or more, got {text}')
    return int(text)


def share(text: str) -> float:
    """Type of an argument from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'must be from 0 to 1, got {text}')
    return value


def picture(text: str) -> Path:
    """Type of an argument that is a picture to write."""
    if Path(text).suffix.lower() not in ('.png', '.jpg', '.jpeg', '.pdf'):
        raise argparse.ArgumentTypeError(f'must end in .png, .jpg or .pdf, got {text}')
    return Path(text)


def load_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config file and replace single settings of it.

    Args:
        path: Config file.
        options: Values by dotted key; an integer in a key counts the elements of a list.

    Raises:
        UserError: If the file is missing or does not parse, or an option has no place in it.
    """
    if not Path(path).is_file():
        raise UserError(
            f'config {path} does not exist: give a file such as '
            'configs/classification/grootv-tiny_8xb128_in1k.py'
        )
    try:
        cfg = read_config(path)
    except ImportError as error:
        cause = error  # below the errors that MMEngine raises for custom_imports
        while isinstance(cause.__context__, ImportError):
            cause = cause.__context__
        raise UserError(
            f'config {path} imports what is not installed ({_one_line(cause)}): '
            'install the requirements/*.txt of its task'
        ) from error
    except Exception as error:  # a config is a program: it can raise anything
        raise UserError(
            f'config {path} does not parse: {type(error).__name__}: {_one_line(error)}'
        ) from error
    known = _RUNNER_KEYS | set(cfg.keys())
    for key, value in (options or {}).items():
        head = key.split('.')[0]
        similar = difflib.get_close_matches(head, known - {head}, n=1)
        if head not in known and similar:
            raise UserError(f'--cfg-options {key}: {path} has no {head}, did you mean {similar[0]}?')
        try:
            cfg.merge_from_dict({key: value})
        except (KeyError, TypeError, IndexError) as error:
            raise UserError(
                f'--cfg-options {key} has no place in {path} ({_one_line(error)}): compare it with the config'
            ) from error
    return cfg


def apply_runner_arguments(cfg: Config, args: argparse.Namespace) -> None:
    """Write the work folder and the launcher into the config.

    The visualizer gets the run's own name: its logs would otherwise go on in the folder of an earlier run of
    the same process.
    """
    if cfg.get('visualizer'):
        cfg.visualizer.pop('name', None)
        name_trackers(cfg.visualizer)
    if args.local_rank is not None:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.launcher = args.launcher
    if args.work_dir == '':
        raise UserError('--work-dir is empty: give a folder, or leave it out')
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    prepare_for_cpu(cfg)


def name_trackers(visualizer: dict[str, Any]) -> None:
    """Names in ``vis_backends`` in place of their configs: trackers besides the files of a run.

    Raises:
        UserError: If a name is unknown.
    """
    backends = visualizer.get('vis_backends')
    names = [backends] if isinstance(backends, str) else backends or []
    if not names or not all(isinstance(name, str) for name in names):
        return
    unknown = [name for name in names if name not in _TRACKERS]
    if unknown:
        raise UserError(
            f'visualizer.vis_backends knows no {unknown[0]}: give {", ".join(_TRACKERS)}, '
            'or a list of configs'
        )
    kinds = dict.fromkeys(['LocalVisBackend', *(_TRACKERS[name] for name in names)])
    settings: dict[str, dict[str, Any]] = {kind: dict(type=kind) for kind in kinds}
    if 'mlflow' in names:  # MMEngine would not read the variable; its files are in the run's folder
        settings[_TRACKERS['mlflow']]['tracking_uri'] = os.environ.get('MLFLOW_TRACKING_URI')
        os.environ.setdefault('MLFLOW_ALLOW_FILE_STORE', 'true')
    visualizer['vis_backends'] = [*settings.values()]


def prepare_for_cpu(cfg: Config) -> None:
    """Without a GPU: pin no memory, and leave a core to each process that loads data.

    PyTorch warns about the first at every epoch. The second matters more: computing threads that
    wait for each other lose tenfold when they share a core. OMP_NUM_THREADS has precedence.
    """
    if get_device() != 'cpu':
        return
    names = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    loaders = [cfg[name] for name in names if cfg.get(name) is not None]
    for loader in loaders:
        loader.pin_memory = False
    if 'OMP_NUM_THREADS' not in os.environ:
        busy = max((loader.get('num_workers', 0) for loader in loaders), default=0)
        torch.set_num_threads(max(1, torch.get_num_threads() - busy))


def explain(error: BaseException) -> str | None:
    """One sentence for a failure that the user can fix; None for any other."""
    # An exception from a data-loading process carries the whole traceback as its text.
    lines = str(error).strip().splitlines() or ['']
    from_worker = lines[0].startswith('Caught ')
    text = re.sub(r'^[\w.]+: ', '', lines[-1].strip()) if from_worker else _one_line(error)
    if isinstance(error, UserError | Interrupted):
        return text
    if isinstance(error, OSError):
        return _explain_os_error(error, text)
    if isinstance(error, ImportError):
        return text if text.startswith('grootv.ops') else f'cannot import what is needed: {text}'
    if isinstance(error, KeyError) and ' registry' in text:
        name = re.search(r'(\S+) is not in the (\S+ ?\w*)::([\w ]+) registry', text.strip('\'"'))
        if name:
            return (
                f'the config asks for {name[1]}, which no {name[3]} registry of {name[2]} knows: '
                'check the spelling, and the scope before the dot'
            )
    if isinstance(error, TypeError):
        option = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text)
        if option:
            return f'the config gives {option[1]} an option {option[2]!r} that it does not have'
    tracker = type(error).__module__.split('.')[0]
    if tracker in ('wandb', 'mlflow'):
        offline = ', or set WANDB_MODE=offline' if tracker == 'wandb' else ''
        return f'{tracker} does not start ({text[:200]}): check its settings{offline}'
    if type(error).__name__ == 'OutOfMemoryError':
        return 'the GPU has too little memory: lower train_dataloader.batch_size, or use --amp'
    memory = re.match(r'(\w+): out of memory(?:: (cannot allocate \d+ bytes))?$', text)
    if isinstance(error, RuntimeError) and memory:
        size = f' ({memory[2]})' if memory[2] else ''
        return (
            f'memory ran out in grootv.ops.{memory[1]}{size}: lower train_dataloader.batch_size, or the size '
            'of the images'
        )
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in text:
        return 'memory ran out: lower train_dataloader.batch_size, or the size of the images'
    if isinstance(error, ValueError) and text.startswith('Expected more than 1 value per channel'):
        return (
            'a BatchNorm layer got a single value for every channel: raise train_dataloader.batch_size '
            'to 2 or more, or set train_dataloader.drop_last=True if the last batch of an epoch has one item'
        )
    if isinstance(error, RuntimeError) and _LOST.search(text):
        return f'lost another process of the run ({text[:120]}): read why that one has ended'
    if isinstance(error, RuntimeError) and 'PytorchStreamWriter failed' in text:
        return f'a file cannot be written, as on a full disk ({text[:200]}): free some space'
    if isinstance(error, RuntimeError) and text.startswith('Found 0 files'):
        return f'no images in the data folder: {text}'
    if isinstance(error, RuntimeError) and 'scalar type' in text and _raised_in(error, _OPENMMLAB):
        return f'an operator of mmcv lacks reduced precision on this device ({text}): leave out --amp'
    if (
        isinstance(error, ValueError)
        and text == 'need at least one array to concatenate'
        and _building(error)
    ):
        return 'a data set of the config has no image: check its data_root, data_prefix and file endings'
    # OpenMMLab checks a config by assertions, and every constructor by errors of its own.
    if isinstance(error, AssertionError) and text and _raised_in(error, _OPENMMLAB):
        return text
    if isinstance(error, ValueError | TypeError | AttributeError | KeyError) and text and _building(error):
        kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
        return f'the config is refused: {kind}{text[:300]}'
    if isinstance(error, ValueError) and _raised_in(error, _GROOTV):
        return text
    return None


def _explain_os_error(error: OSError, text: str) -> str:
    if isinstance(error, FileNotFoundError):
        path = error.filename or re.sub(r".*No such file or directory: '(.*)'$", r'\1', text)
        return f'{path} does not exist: check the path'
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f'the disk is full ({text}): free some space'
    return text


def _raised_in(error: BaseException, place: re.Pattern[str]) -> bool:
    """Whether a file of ``place`` raised the error itself."""
    return any(place.search(frame.filename) for frame in traceback.extract_tb(error.__traceback__)[-1:])


def _building(error: BaseException) -> bool:
    """Whether the error passed through an OpenMMLab function that builds something from the config."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(
        frame.name.startswith(('build', 'from_cfg')) and _OPENMMLAB.search(frame.filename) for frame in frames
    )


def _one_line(error: BaseException) -> str:
    return ' '.join(str(error).split())


def run(main: Callable[[], None]) -> None:
    """Run a tool; any failure ends in a sentence on stderr and a status that is not 0.

    A failure that the user can fix prints the sentence alone; GROOTV_TRACEBACK=1 adds the
    traceback. Any other failure is a fault of the program and keeps its traceback.

    Args:
        main: The tool. It returns on success.
    """
    global _received
    _received = None
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, _on_signal) for number in numbers}
    try:
        with stoppable():
            main()
    except (Exception, Interrupted) as error:
        sentence = explain(error)
        if sentence is None or os.environ.get('GROOTV_TRACEBACK') == '1':
            traceback.print_exc()
        if sentence is None:
            summary = (str(error).strip().splitlines() or [''])[-1]
            sentence = f'unexpected {type(error).__name__}: {summary}'
        place = f'[rank {rank()}] ' if rank() else ''
        sys.stdout.flush()
        print(f'{Path(sys.argv[0]).name}: {place}{sentence}', file=sys.stderr, flush=True)
        sys.exit(128 + error.number if isinstance(error, Interrupted) else 1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
