"""Files and folders that appear whole or not at all, and configs whose data formats are data."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config
from mmengine.fileio import YamlHandler, register_handler


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

    If the body fails, what it wrote is removed and ``target`` stays as it was.

    Args:
        target: File to create or replace, or folder to create. Missing parent folders are made.

    Yields:
        Hidden path in the same folder. The body writes the file, or makes the folder and fills it.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f'.{target.name}.{os.getpid()}.tmp')
    try:
        yield draft
        draft.replace(target)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink(missing_ok=True)
