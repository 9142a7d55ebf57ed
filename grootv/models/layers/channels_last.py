import torch
from torch import Tensor, nn

from grootv.ops import convolution


def conv2d(*args, **options) -> nn.Conv2d:
    """A convolution for maps (B, H, W, C), its weight in channels-last memory.

    PyTorch would copy a weight of another format in every call. ``fully_shard`` takes contiguous weights
    only: call ``model.to(memory_format=torch.contiguous_format)`` before.
    """
    return nn.Conv2d(*args, **options).to(memory_format=torch.channels_last)


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a convolution to a map (B, H, W, C).

    The permuted view of a contiguous map is what PyTorch calls a channels-last tensor, so nothing
    is copied.
    """
    if torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting():
        return convolve_opaquely(conv, x)
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def convolve_opaquely(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The same by the operator that compilers do not look into: :mod:`grootv.ops.convolution` says why."""
    tensors = x, conv.weight, conv.bias
    if torch.is_autocast_enabled(x.device.type) and x.dtype is not torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        tensors = (tensor if tensor is None else tensor.to(dtype) for tensor in tensors)
    return convolution.convolve(*tensors, conv.stride[0], conv.groups)
