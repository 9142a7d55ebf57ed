from torch import Tensor, nn

from .initialization import linear


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
        self.conv = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.act = nn.GELU()
        self.fc = linear(hidden, num_classes) if num_classes else nn.Identity()

    def project(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) -> (B, hidden, H, W), to be pooled."""
        return self.act(self.norm(self.conv(x)))
