"""Layers that mix the vertices of a map: along a tree, along the raster, by attention."""

import torch
import torch.nn.functional as F
from gpu_checks.networks import seeded
from torch import Tensor, nn

from grootv.models.layers.tree_ssm import TreeSSM, linear
from grootv.ops import Tree

from .clock import Call
from .recorder import Recorder

HEAD_WIDTH = 40


class TreeScan(nn.Module):
    """TreeSSM on the spanning tree of its own map."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.ssm = TreeSSM(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.ssm(x)[0]


class RasterScan(nn.Module):
    """The same layer on the path through all vertices, row by row: a scan in both directions."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.ssm = TreeSSM(channels)
        for name, values in path(side * side)._asdict().items():
            self.register_buffer(name, values)

    def forward(self, x: Tensor) -> Tensor:
        return self.ssm(x, Tree(self.order, self.parent))[0]


def path(vertices: int) -> Tree:
    """The tree in which every vertex is the child of the one before it; a batch of one."""
    order = torch.arange(vertices, dtype=torch.int32).unsqueeze(0)
    return Tree(order, (order - 1).clamp(min=0))


class Attention(nn.Module):
    """Softmax attention of every vertex to every other one, in heads of 40 channels."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.heads = max(channels // HEAD_WIDTH, 1)
        self.qkv = linear(channels, 3 * channels)
        self.out_proj = linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        qkv = self.qkv(x).view(batch, height * width, 3, self.heads, channels // self.heads)
        y = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        return self.out_proj(y.transpose(1, 2).reshape(x.shape))


MIXERS = {'tree scan': TreeScan, 'raster scan': RasterScan, 'attention': Attention}
MODES = ('forward', 'training')


class MixerRuns:
    """What can be timed of a mixer: a call on one random map of side x side vertices.

    Args:
        device: 'cpu' or 'cuda'.
        name: A key of ``MIXERS``.
        channels: Width of the map.
        side: Its height and width.
    """

    def __init__(self, device: str, name: str, channels: int, side: int):
        self.mixer = seeded(0, lambda: MIXERS[name](channels, side)).to(device)
        self.map = seeded(1, lambda: torch.randn(1, side, side, channels)).to(device)

    def call(self, mode: str) -> Call:
        return {'forward': self.forward, 'training': self.training}[mode]

    def forward(self, _: int) -> None:
        with torch.inference_mode():
            self.mixer(self.map)

    def training(self, _: int) -> None:
        """Forward and backward, to the map and the parameters."""
        self.mixer.zero_grad()
        x = self.map.detach().requires_grad_()
        self.mixer(x).backward(self.map)  # a gradient as good as any


def operator_calls(runs: MixerRuns) -> dict[str, Call]:
    """The operators of grootv.ops in a forward pass, by name, each alone on the inputs that it has there."""
    with Recorder() as recorder:
        runs.forward(0)

    def alone(operator, arguments) -> Call:
        def call(_: int) -> None:
            with torch.inference_mode():
                operator(*arguments)

        return call

    return {name: alone(operator, arguments) for name, operator, arguments in recorder.calls}
