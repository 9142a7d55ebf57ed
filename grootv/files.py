"""Files and folders that appear whole or not at all, and configs whose data formats are data."""

import errno
import fcntl
import glob
import os
import shutil
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config
from mmengine.fileio import YamlHandler, register_handler

from grootv.errors import UserError


@register_handler(['yaml', 'yml'])
class SafeYamlHandler(YamlHandler):
    """MMEngine's reader of YAML, which makes numbers, texts, lists and dicts only, and calls nothing."""

    def load_from_fileobj(self, file, **_) -> Any:
        return yaml.safe_load(file)


def read_config(path: str | Path) -> Config:
    """Read a config file: a .py is run, .yaml, .yml and .json are data."""
    return Config.fromfile(path)


@contextmanager
def write_atomically(target: str | Path) -> Iterator[Path]:
    """Yield a path for a file or a folder, and rename it to ``target`` once the body has succeeded.

    If the body fails, what it wrote is removed and ``target`` stays as it was. What a process that was killed
    has left is removed by the next one that writes the same target.

    Args:
        target: File to create or replace, or folder to create. Missing parent folders are made.

    Yields:
        Hidden path in the same folder. The body writes the file, or makes the folder and fills it.
    """
    draft = _draft(Path(target))
    try:
        yield draft
        draft.replace(target)
    finally:
        _remove(draft)


@contextmanager
def write_named(target: str | Path) -> Iterator[Path]:
    """As :func:`write_atomically`, for a file whose writer looks at the ending of its name."""
    folder = _draft(Path(target))
    folder.mkdir()
    try:
        yield folder / Path(target).name
        (folder / Path(target).name).replace(target)
    finally:
        _remove(folder)


def _draft(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent, glob.escape(target.name))
    return target.with_name(f'.{target.name}.{os.getpid()}.tmp')


@contextmanager
def lock_folder(folder: str | Path) -> Iterator[None]:
    """Reserve a folder for this process while the body runs, however it ends.

    Where the file system knows no locks, a warning says so.

    Args:
        folder: Made if it does not exist. The lock is on its file ``train.lock``, which stays.

    Raises:
        UserError: If another process has reserved it.
    """
    path = Path(folder) / 'train.lock'
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a+') as file:
        try:
            # Unlike flock's, this lock is not inherited by processes that load data and may outlive a run.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise UserError(
                    f'work folder {folder} is in use by {file.read() or "another run"}: '
                    'wait for its end, or choose another --work-dir'
                ) from None
            warnings.warn(
                f'{path} cannot be locked ({error.strerror}): start no other run there', stacklevel=3
            )
        else:
            file.truncate(0)
            file.write(f'process {os.getpid()} on {socket.gethostname()}')
            file.flush()
        yield


def remove_leftovers(folder: Path, name: str = '*') -> None:
    """Remove what processes that were killed in :func:`write_atomically` have left.

    Args:
        folder: Of the targets.
        name: Pattern of their names.
    """
    for draft in folder.glob(f'.{name}.*.tmp'):
        process = draft.name.split('.')[-2]
        if process.isdecimal() and not _runs(int(process)):
            _remove(draft)


def _runs(process: int) -> bool:
    """Whether another process of this machine has the number; a dead one may have had our own."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
