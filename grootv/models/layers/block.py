import torch
from timm.layers import DropPath
from torch import Tensor, nn

from grootv.ops import Tree

from .mlp import MLP
from .tree_ssm import TreeSSM


class Block(nn.Module):
    """Two residual branches: TreeSSM mixes the vertices, MLP mixes the channels.

    Args:
        channels: Width of the map.
        drop_path: Probability that a training sample skips a branch.
        metric: Distance of the spanning tree.
        mlp_ratio: Width of the MLP's hidden layer over ``channels``.
        layer_scale: Initial value of a learned factor per channel on each branch; None leaves it
            out.
        post_norm: Normalise what a branch puts out in place of what it takes in.
    """

    def __init__(
        self,
        channels: int,
        drop_path: float = 0.0,
        metric: str = 'cosine',
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        post_norm: bool = False,
    ):
        super().__init__()
        self.post_norm = post_norm
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.ssm = TreeSSM(channels, metric)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = MLP(channels, mlp_ratio)
        self.drop_path = DropPath(drop_path)
        for name in ('gamma1', 'gamma2'):
            scale = None if layer_scale is None else nn.Parameter(layer_scale * torch.ones(channels))
            self.register_parameter(name, scale)

    def forward(self, x: Tensor, tree: Tree | None = None) -> tuple[Tensor, Tree]:
        """Map (B, H, W, channels) -> new map and the tree it used (``tree`` or its own)."""
        if self.post_norm:
            update, tree = self.ssm(x, tree)
            x = x + self.branch(self.norm1(update), self.gamma1)
            update = self.norm2(self.mlp(x))
        else:
            update, tree = self.ssm(self.norm1(x), tree)
            x = x + self.branch(update, self.gamma1)
            update = self.mlp(self.norm2(x))
        return x + self.branch(update, self.gamma2), tree

    def branch(self, update: Tensor, gamma: Tensor | None) -> Tensor:
        return self.drop_path(update if gamma is None else gamma * update)
