import torch.nn.functional as F
from torch import Tensor, nn

from .initialization import linear
from .recompute import recompute


class MLP(nn.Module):
    """Linear, GELU, linear on the last dimension; the hidden layer is ``ratio`` times as wide."""

    def __init__(self, channels: int, ratio: float = 4.0):
        super().__init__()
        hidden = int(channels * ratio)
        self.fc1 = linear(channels, hidden)
        self.fc2 = linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return recompute(self.contract, self.fc1(x))

    def contract(self, hidden: Tensor) -> Tensor:
        return self.fc2(F.gelu(hidden))
