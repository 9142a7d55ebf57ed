"""What several sections need of the operators."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .environment import import_ops

ops = import_ops()


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')


def selective_definition(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, tree, bias, softplus: bool
) -> Tensor:
    """What ``selective_tree_scan`` computes, by PyTorch and the plain scan."""
    delta = delta if bias is None else delta + bias
    delta = F.softplus(delta) if softplus else delta
    return ops.tree_scan(delta * B.unsqueeze(-1) * x, torch.exp(delta * A), tree)


def selective_scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, tree, bias: Tensor) -> Tensor:
    return ops.selective_tree_scan(x, delta, A, B, tree, delta_bias=bias)
