"""What fake kernels check before they promise a shape: the rules of csrc/checks.h that need no data."""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_dim(function: str, name: str, tensor: Tensor, dim: int, shape: str) -> None:
    if tensor.dim() != dim:
        raise RuntimeError(f'{function}: {name} must have shape {shape}, got {tuple(tensor.shape)}')


def check_shape(function: str, name: str, rule: str, tensor: Tensor, expected: tuple) -> None:
    if tuple(tensor.shape) != expected:
        found = tuple(tensor.shape)
        raise RuntimeError(f'{function}: {name} needs {rule}, shape {expected}, got {found}')


def check_same_device(function: str, **tensors: Tensor) -> None:
    (_, first), *others = tensors.items()
    for name, tensor in others:
        if tensor.device != first.device:
            raise RuntimeError(
                f'{function}: all tensors must be on one device, but {name} is on another than the first'
            )


def empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """A contiguous tensor of one dimension or more, on the device of another.

    PyTorch's own of symbolic sizes has strides with Max(1, size) in them: no compiler sees that such a
    tensor is contiguous, and sympy takes long over them.
    """
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return like.new_empty_strided(shape, strides, dtype=dtype)
