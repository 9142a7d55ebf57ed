"""The state-space layer of the network, and the small parts that it shares with the rest of the network.

Maps are (B, H, W, C) and contiguous, from the stem to the last stage.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from grootv.modules import call, is_plain
from grootv.ops import (
    Tree,
    build_tree,
    convolution,
    gated_read_out,
    selective_tree_scan,
    tree_edge_distance,
)


class TreeSSM(nn.Module):
    """A selective state-space model whose scan runs along the spanning tree of the map itself.

    The map is projected to twice its width and convolved to x, which the tree is built from. Every
    vertex chooses its own step delta, and B and C; per channel then ::

        decay a = exp(delta A)      signal u = delta B x      state h = tree_scan(u, a)
        y = LayerNorm(C LayerNorm(h) + D x) silu(z)

    with a gate z, and y is projected back. With ``edge_decay`` the decay is ``a = exp(delta A - s d)``: d is
    the distance of a vertex to its parent, and s a learned scale of every channel, ``softplus(edge_scale)``.

    Args:
        channels: Width of the map.
        metric: Distance between neighbouring vertices, one of ``grootv.ops.METRICS``.
        edge_decay: Let the decay of an edge depend on the distance of its ends, which receives a gradient.
            The scale starts at 1; at 1 over the number of scanned channels for metrics that are sums.
    """

    edge_scale: nn.Parameter | None

    def __init__(self, channels: int, metric: str = 'cosine', edge_decay: bool = False):
        super().__init__()
        width, rank = 2 * channels, math.ceil(channels / 16)
        self.metric = metric
        self.in_proj = linear(channels, 2 * width, bias=False)
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.x_proj = nn.Linear(width, rank + 2, bias=False)
        self.dt_proj = step_projection(rank, width)
        self.A_log = nn.Parameter(torch.zeros(width, 1))
        self.D = nn.Parameter(torch.ones(width))
        scale = inverse_softplus(torch.full((width,), 1.0 if metric == 'cosine' else 1 / width))
        self.register_parameter('edge_scale', nn.Parameter(scale) if edge_decay else None)
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
        vertices, z = self.project(x)
        if tree is None:
            tree = self.build_tree(vertices)
        y = recompute(self.project_out, *self.scan(vertices, tree), z.flatten(1, 2))
        return y.view(x.shape), tree

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map to scan, which the tree is built from, and the gate z; both (B, H, W, D)."""
        in_proj = self.in_proj
        if is_plain(in_proj, nn.Linear) and in_proj.bias is None:
            # One projection and a split would leave two strided halves that later steps must copy.
            to_scan, to_gate = in_proj.weight.chunk(2)
            convolved = convolve(self.conv, F.linear(x, to_scan))
            z = F.linear(x, to_gate)
        else:
            scanned, z = (half.contiguous() for half in in_proj(x).chunk(2, -1))
            convolved = convolve(self.conv, scanned)
        return F.silu(convolved, inplace=not convolved.requires_grad), z

    def build_tree(self, x: Tensor) -> Tree:
        """The minimum spanning tree of a projected map (B, H, W, D)."""
        return build_tree(x, self.metric)

    def scan(self, x: Tensor, tree: Tree) -> tuple[Tensor, Tensor, Tensor]:
        """Scan a projected map (B, H, W, D) along the tree.

        Half precision is computed on in float32: long products of decays need it.

        Returns:
            The states h (B, L, D), C (B, L, 1) and the vertices x that were scanned (B, L, D).
        """
        with torch.autocast(x.device.type, enabled=False):
            x = x.flatten(1, 2).to(torch.promote_types(x.dtype, torch.float32))
            delta, A, B, C = self.scan_inputs(x)
            edge = self.edge_terms(x, tree)
            return selective_tree_scan(x, delta, A, B, tree, self.delta_bias(), True, *edge), C, x

    def project_out(self, h: Tensor, C: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """Read the states out through the gate and project them back, (B, L, channels)."""
        inner, outer = self.state_norm, self.out_norm
        fused = inner.eps == outer.eps if is_affine(inner) and is_affine(outer) else False
        with torch.autocast(x.device.type, enabled=False):
            if fused:
                norms = (inner.weight, inner.bias), (outer.weight, outer.bias)
                y = gated_read_out(h, C, x, self.D, z, *norms, outer.eps)
            else:
                y = call(outer, C * call(inner, h) + self.D.to(x.dtype) * x)
                y = (y * F.silu(z.to(y.dtype))).to(z.dtype)
        return self.out_proj(y)

    def scan_inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Parameters of the state-space model at the vertices x (B, L, D).

        Returns:
            The step delta (B, L, D) before :meth:`delta_bias` and softplus; A (D, 1); B and C (B, L, 1).
        """
        projected = project_wide(self.x_proj, x)
        low, B, C = projected.split([projected.shape[-1] - 2, 1, 1], -1)
        return project_wide(self.dt_proj, low), -self.A_log.to(x.dtype).exp(), B, C

    def delta_bias(self) -> Tensor | None:
        """What the scan adds to delta: the bias of ``dt_proj``, unless ``dt_proj`` has added it itself."""
        dt_proj = self.dt_proj
        return dt_proj.bias if is_plain(dt_proj, nn.Linear) else None

    def edge_terms(self, x: Tensor, tree: Tree) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Distances (B, L) of the vertices x (B, L, D) to their parents, and their scale (D,), or None."""
        if self.edge_scale is None:
            return None, None
        return tree_edge_distance(x, tree, self.metric), F.softplus(self.edge_scale.to(x.dtype))

    def decay(self, x: Tensor, tree: Tree) -> Tensor:
        """Factor of the edge from every vertex of x (B, L, D) to its parent, (B, L, D)."""
        delta, A, _, _ = self.scan_inputs(x)
        bias = self.delta_bias()
        step = F.softplus(delta if bias is None else delta + bias.to(x.dtype))
        distance, scale = self.edge_terms(x, tree)
        exponent = step * A.squeeze(1)
        if distance is not None and scale is not None:
            exponent = exponent - scale * distance.unsqueeze(-1)
        return exponent.exp()


def project_wide(layer: nn.Module, x: Tensor) -> Tensor:
    """Project in the dtype of the input; without the bias if the layer is a plain linear one.

    A model cast to half precision as a whole has half parameters; its scan still runs in float32.
    """
    if is_plain(layer, nn.Linear):
        weight: Any = layer.weight
        return F.linear(x, weight.to(x.dtype))
    return call(layer, x)


def is_affine(norm: nn.Module) -> bool:
    """Whether a layer is a plain LayerNorm with weight and bias."""
    return is_plain(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None


def linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """A linear layer with weights from a truncated normal of deviation 0.02 and zero biases."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def step_projection(rank: int, width: int, shortest: float = 1e-3, longest: float = 1e-1) -> nn.Linear:
    """The linear layer rank -> width whose softplus is the step size delta of a state-space model.

    As in Mamba (Gu and Dao, 2023): the weight keeps the variance of its input, and the bias makes
    the first steps log-uniform between ``shortest`` and ``longest``.
    """
    layer = nn.Linear(rank, width)
    nn.init.uniform_(layer.weight, -(rank**-0.5), rank**-0.5)
    span = math.log(longest) - math.log(shortest)
    step = torch.exp(torch.rand(width) * span + math.log(shortest)).clamp(min=1e-4)
    with torch.no_grad():
        layer.bias.copy_(inverse_softplus(step))
    return layer


def inverse_softplus(x: Tensor) -> Tensor:
    """The y with softplus(y) = x, for x > 0; exact for small x."""
    return x + torch.log(-torch.expm1(-x))


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a convolution to a map (B, H, W, C).

    The permuted view of a contiguous map is what PyTorch calls a channels-last tensor, so nothing
    is copied.
    """
    compiling = torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()
    if compiling and is_plain(conv, nn.Conv2d):
        return convolve_opaquely(conv, x)
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def convolve_opaquely(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The same by the operator that compilers do not look into: :mod:`grootv.ops.convolution` says why."""
    tensors = x, conv.weight, conv.bias
    if torch.is_autocast_enabled(x.device.type) and x.dtype is not torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        tensors = (tensor if tensor is None else tensor.to(dtype) for tensor in tensors)
    return convolution.convolve(*tensors, conv.stride[0], conv.groups)


def recompute(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Call a function of cheap steps whose results are not worth keeping for the backward pass.

    Only ``tensors`` are kept; the backward pass computes again what it needs. The function may end in an
    expensive step, which is not repeated, and draws no random numbers.
    """
    if not torch.is_grad_enabled():
        return function(*tensors)
    return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)
