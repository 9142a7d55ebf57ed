"""Inputs that the operator tests and benchmarks share."""

import math

import torch
from torch import Tensor

from grootv import ops

GRIDS = [(1, 1), (1, 6), (6, 1), (2, 2), (3, 5), (7, 7), (13, 9)]
SCAN_DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def features(kind: str, batch: int, height: int, width: int, channels: int) -> Tensor:
    """Feature maps: 'normal', 'equal' (every weight ties), 'binary' (many ties) or 'special' (NaN, inf)."""
    generator = torch.Generator().manual_seed(height * 1000 + width * 10 + channels)
    shape = (batch, height, width, channels)
    if kind == 'equal':
        return torch.ones(shape)
    if kind == 'binary':
        return torch.randint(0, 2, shape, generator=generator).float()
    normal = torch.randn(shape, generator=generator)
    if kind == 'special':
        choice = torch.rand(shape, generator=generator)
        normal[choice < 0.1] = math.nan
        normal[(choice > 0.1) & (choice < 0.2)] = math.inf
        normal[(choice > 0.2) & (choice < 0.3)] = -math.inf
    return normal


def scan_inputs(
    batch: int, height: int, width: int, channels: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, ops.Tree]:
    """A signal, decays in (0, 1) and the spanning tree of a random map."""
    generator = torch.Generator().manual_seed(height * 1000 + width * 10 + channels)
    shape = (batch, height * width, channels)
    signal = torch.randn(shape, generator=generator).to(dtype)
    decay = torch.rand(shape, generator=generator).to(dtype)
    return signal, decay, ops.build_tree(features('normal', batch, height, width, 4))


def assert_same_tree(found: ops.Tree, expected: ops.Tree) -> None:
    for name, ours, theirs in zip(ops.Tree._fields, found, expected, strict=True):
        assert torch.equal(ours, theirs), name


def trained(tensors, dtype=None):
    """Copies that ask for their gradient, and the list of those that are there."""
    copies = [t if t is None else t.detach().clone().to(dtype or t.dtype).requires_grad_() for t in tensors]
    return copies, [copy for copy in copies if copy is not None]
