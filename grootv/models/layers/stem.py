import torch.nn.functional as F
from torch import Tensor, nn

from .channels_last import conv2d, convolve


class Stem(nn.Module):
    """From the image to the first map: two 3x3 convolutions of stride 2, each with a LayerNorm.

    Image (B, in_channels, H, W) -> map (B, ceil(H/4), ceil(W/4), channels).
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.conv1 = conv2d(in_channels, channels // 2, 3, stride=2, padding=1)
        self.norm1 = nn.LayerNorm(channels // 2, eps=1e-6)
        self.conv2 = conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, image: Tensor) -> Tensor:
        x = image.permute(0, 2, 3, 1).contiguous()
        x = F.gelu(self.norm1(convolve(self.conv1, x)))
        return self.norm2(convolve(self.conv2, x))
