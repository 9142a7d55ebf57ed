"""Where the operators' tests run: the public functions, and the device of their tensors."""

import importlib
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

from grootv import ops

NAMES = ('cpu', 'emulated', 'cuda')


@dataclass(frozen=True)
class Backend:
    """A place to compute.

    Attributes:
        name: 'cpu', 'emulated', 'emulated full size' or 'cuda'.
        device: Device of the tensors.
        ops: The public functions of ``grootv.ops``.
        library: The operators themselves, as ``torch.ops.grootv``.
        large: Grids that take another path than small ones: the emulated kernels give all blocks to a tree
            from 65 vertices on, the device from 4,097.
    """

    name: str
    device: str
    ops: SimpleNamespace | ModuleType
    library: object
    large: tuple[tuple[int, int], ...] = ((20, 17), (1, 130), (130, 1))

    @property
    def raises(self) -> bool:
        """Whether a scan raises an error for an invalid tree; a device that is not waited for gives NaN."""
        return self.name == 'cpu'


@cache
def load(name: str) -> Backend:
    if name == 'cpu':
        return Backend(name, 'cpu', ops, torch.ops.grootv)
    if name == 'cuda':
        large = ((56, 56), (65, 63), (128, 130), (200, 320), (1, 5000), (5000, 1))
        return Backend(name, 'cuda', ops, torch.ops.grootv, large)
    from tests.ops import emulation  # builds the kernels, which not everyone needs

    library = emulation.load('full_size' if 'full' in name else 'small')
    # Watching for races makes a grid take a hundred times as long.
    watched = os.environ.get('GROOTV_SANITIZER') == 'thread'
    large = ((9, 8), (70, 1)) if watched else Backend.large
    return Backend(name, 'cpu', functions_over(library), library, large)


def functions_over(library) -> SimpleNamespace:
    """The public functions over another library than ``torch.ops.grootv``, with its own autograd and fakes.

    Imports the modules of ``grootv.ops`` a second time, as a package whose ``_library`` is the given one.
    """
    package, loaded = ModuleType(f'{library.name}_ops'), ModuleType(f'{library.name}_ops._library')
    package.__path__ = [str(Path(ops.__file__).parent)]
    loaded.ops, loaded.available, loaded.KEEPS_DECOMPOSITION = library, True, ('cpu',)
    sys.modules |= {package.__name__: package, loaded.__name__: loaded}
    modules = [importlib.import_module(f'{package.__name__}.{name}') for name in ('tree', 'scan', 'tokens')]
    return SimpleNamespace(
        **{name: getattr(module, name) for module in modules for name in ops.__all__ if hasattr(module, name)}
    )
