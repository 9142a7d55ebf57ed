import torch.nn.functional as F
from torch import Tensor, nn

from .initialization import linear


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution as the matrix product that it is.

    On small maps PyTorch's is slower, and a convolution in the graph makes torch.compile lay out every map
    with four dimensions as if its channels were the second one.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class Classifier(nn.Module):
    """Layers of the classifier head: 1x1 convolution, BatchNorm, GELU; after a pool, a linear layer.

    The heads for the libraries derive from it or hold it, and pool in between.

    Args:
        in_channels: Channels of the backbone's last map.
        num_classes: Number of classes; 0 leaves the linear layer out.
        hidden_ratio: Channels after the convolution over ``in_channels``.
        **others: Arguments of the class that follows in a head with more than one base.
    """

    def __init__(self, in_channels: int, num_classes: int, hidden_ratio: float = 1.5, **others):
        super().__init__(**others)
        hidden = int(in_channels * hidden_ratio)
        self.conv = PointwiseConv2d(in_channels, hidden, 1, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.act = nn.GELU()
        self.fc = linear(hidden, num_classes) if num_classes else nn.Identity()

    def project(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) -> (B, hidden, H, W), to be pooled."""
        return self.act(self.norm(self.conv(x)))
