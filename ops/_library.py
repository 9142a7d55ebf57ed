"""Load the compiled operators; the one place that explains a missing or unusable build."""

from pathlib import Path

import torch

_CPU = Path(__file__).with_name('_cpu.so')


class _Missing:
    """Stands in for ``torch.ops.grootv`` where the library cannot be loaded."""

    def __init__(self, reason: str):
        self._reason = reason

    def __getattr__(self, name: str):
        raise ImportError(f'grootv.ops.{name} needs the compiled library: {self._reason}')


def _load():
    if not _CPU.exists():
        return _Missing(
            f'{_CPU.name} is not in {_CPU.parent}; build it with '
            '`pip install --no-build-isolation -e .` in the checkout.'
        )
    try:
        torch.ops.load_library(_CPU)
    except OSError as error:
        return _Missing(
            f'{_CPU} does not load under torch {torch.__version__} ({error}); build it again with '
            '`pip install --no-build-isolation -e .` in the checkout.'
        )
    return torch.ops.grootv


ops = _load()
available = not isinstance(ops, _Missing)


def require() -> None:
    """Raise an ImportError that names the mend if the compiled library is not there."""
    _ = ops.tree_scan
