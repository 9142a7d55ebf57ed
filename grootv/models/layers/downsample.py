from torch import Tensor, nn

from .channels_last import conv2d, convolve


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2 and a LayerNorm: half the height and width, twice the channels.

    (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), 2C).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(convolve(self.conv, x))
