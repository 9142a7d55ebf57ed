"""The CUDA operators as the tests call them, and how near to the CPU they have to be."""

import os

import torch
from torch import Tensor

from tests.ops import emulation

# The emulated kernels take a team of the whole grid from 65 vertices on, the device from 4097.
LARGE = {'emulated': [(20, 17), (1, 130), (130, 1)], 'cuda': [(65, 64), (200, 320), (1, 5000), (5000, 1)]}
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}

BACKENDS = ['emulated', *['cuda'] * torch.cuda.is_available()]
# With the blocks of a device, for a few cases. Sanitizers see the small ones.
FULL_SIZE = ['emulated at full size'] * ('GROOTV_SANITIZER' not in os.environ)


class Backend:
    """Calls operators of another library or device with tensors of the CPU."""

    def __init__(self, name: str):
        self.name = name
        self.device = 'cuda' if name == 'cuda' else 'cpu'
        self.large = LARGE['emulated' if name == 'emulated' else 'cuda']
        kind = 'full_size' if name in FULL_SIZE else 'small'
        self._library = torch.ops.grootv if name == 'cuda' else emulation.load(kind)

    def __getattr__(self, name: str):
        operator = getattr(self._library, name)

        def call(*args, **options):
            args = (a.to(self.device) if isinstance(a, Tensor) else a for a in args)
            result = operator(*args, **options)
            return result.cpu() if isinstance(result, Tensor) else tuple(part.cpu() for part in result)

        return call


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    difference = (found.double() - expected.double()).norm()
    assert difference <= TOLERANCE[found.dtype] * expected.double().norm()


def assert_close_sums(found: Tensor, expected: Tensor) -> None:
    """For sums over vertices or channels, whose terms cancel."""
    assert found.dtype == expected.dtype
    difference, norm = (found.double() - expected.double()).norm(), expected.double().norm()
    assert difference <= 10 * TOLERANCE[found.dtype] * (1 + norm)


def graphs(vertices: int = 150):
    """Edge lists whose trees are deep, wide or both, with more edges than a tree has."""
    parent = {
        'star': lambda v: 0,
        'path': lambda v: v - 1,
        'comb': lambda v: v - 1 if v < vertices // 2 else v - vertices // 2,
        'binary': lambda v: (v - 1) // 2,
        'spider': lambda v: v - 1 if (v - 1) % 20 else 0,
    }
    for name, of in parent.items():
        tree = torch.tensor([[v, of(v)] for v in range(1, vertices)]).view(-1, 2)
        others = torch.randint(0, vertices, (100, 2), generator=torch.Generator().manual_seed(0))
        yield name, torch.cat([others, tree]).int(), vertices
