import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grootv.ops import Tree, build_tree, gated_read_out, selective_tree_scan

from .channels_last import conv2d, convolve
from .initialization import linear, step_projection
from .recompute import recompute


class TreeSSM(nn.Module):
    """A selective state-space model whose scan runs along the spanning tree of the map itself.

    The map is projected to twice its width and convolved to the guide x, which the tree is built
    from. Every vertex chooses its own step delta, and B and C; per channel then ::

        decay a = exp(delta A)      signal u = delta B x      state h = tree_scan(u, a)
        y = LayerNorm(C LayerNorm(h) + D x) silu(z)

    with a gate z, and y is projected back.

    Args:
        channels: Width of the map.
        metric: Distance between neighbouring vertices, one of ``grootv.ops.METRICS``.
    """

    def __init__(self, channels: int, metric: str = 'cosine'):
        super().__init__()
        width, rank = 2 * channels, math.ceil(channels / 16)
        self.metric = metric
        self.in_proj = linear(channels, 2 * width, bias=False)
        self.conv = conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.x_proj = nn.Linear(width, rank + 2, bias=False)
        self.dt_proj = step_projection(rank, width)
        self.A_log = nn.Parameter(torch.zeros(width, 1))
        self.D = nn.Parameter(torch.ones(width))
        self.state_norm = nn.LayerNorm(width)
        self.out_norm = nn.LayerNorm(width)
        self.out_proj = linear(width, channels, bias=False)

    def forward(self, x: Tensor, tree: Tree | None = None) -> tuple[Tensor, Tree]:
        """Mix the vertices of a map (B, H, W, channels) along a tree.

        Args:
            x: The map.
            tree: Tree to scan along; None builds it from the map. It passes no gradient on.

        Returns:
            The new map, of the same shape, and the tree that was used.
        """
        guide, z = self.project(x)
        if tree is None:
            tree = self.build_tree(guide)
        y = recompute(self.project_out, *self.scan(guide, tree), z.flatten(1, 2))
        return y.view(x.shape), tree

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map to scan, which also guides the tree, and the gate z; both (B, H, W, D)."""
        # One projection and a split would leave two strided halves that later steps must copy.
        to_guide, to_gate = self.in_proj.weight.chunk(2)
        guide = convolve(self.conv, F.linear(x, to_guide))
        return F.silu(guide, inplace=not guide.requires_grad), F.linear(x, to_gate)

    def build_tree(self, guide: Tensor) -> Tree:
        """The minimum spanning tree of the guide (B, H, W, D)."""
        return build_tree(guide, self.metric)

    def scan(self, guide: Tensor, tree: Tree) -> tuple[Tensor, Tensor, Tensor]:
        """Scan the guide along the tree.

        A half-precision guide is computed on in float32: long products of decays need it.

        Returns:
            The states h (B, L, D), C (B, L, 1) and the vertices that were scanned (B, L, D).
        """
        with torch.autocast(guide.device.type, enabled=False):
            x = guide.flatten(1, 2).to(torch.promote_types(guide.dtype, torch.float32))
            delta, rate, write, read = self.scan_inputs(x)
            return selective_tree_scan(x, delta, rate, write, tree, self.dt_proj.bias), read, x

    def project_out(self, h: Tensor, read: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """Read the states out through the gate and project them back, (B, L, channels)."""
        norms = [(norm.weight, norm.bias) for norm in (self.state_norm, self.out_norm)]
        with torch.autocast(x.device.type, enabled=False):
            y = gated_read_out(h, read, x, self.D, z, *norms, self.out_norm.eps)
        return self.out_proj(y)

    def scan_inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the scan takes besides the vertices x (B, L, D), and what reads it out.

        Returns:
            The step delta (B, L, D) before its bias and softplus; A (D, 1); B and C (B, L, 1).
        """
        low, write, read = _linear(self.x_proj, x).split([self.dt_proj.in_features, 1, 1], dim=-1)
        delta = F.linear(low, self.dt_proj.weight.to(x.dtype))
        return delta, -self.A_log.to(x.dtype).exp(), write, read

    def decay(self, x: Tensor) -> Tensor:
        """Factor of the edge from every vertex to its parent, (B, L, D)."""
        delta, rate, _, _ = self.scan_inputs(x)
        return torch.exp(F.softplus(delta + self.dt_proj.bias.to(x.dtype)) * rate.squeeze(1))


# A model cast to half precision as a whole has half parameters; its scan still runs in float32.
def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    bias = layer.bias
    return F.linear(x, layer.weight.to(x.dtype), bias if bias is None else bias.to(x.dtype))
