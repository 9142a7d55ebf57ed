from torch import Tensor, nn


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a convolution to a map (B, H, W, C).

    The permuted view of a contiguous map is what PyTorch calls a channels-last tensor, so nothing
    is copied.
    """
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
