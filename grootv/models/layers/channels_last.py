import torch
from torch import Tensor, nn


def conv2d(*args, **options) -> nn.Conv2d:
    """A convolution for maps (B, H, W, C), its weight in channels-last memory.

    PyTorch would copy a weight of another format in every call.
    """
    return nn.Conv2d(*args, **options).to(memory_format=torch.channels_last)


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a convolution to a map (B, H, W, C).

    The permuted view of a contiguous map is what PyTorch calls a channels-last tensor, so nothing
    is copied.
    """
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
