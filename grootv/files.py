"""Files and folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
