"""The trees that the blocks of a network build in a forward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from grootv.models.backbones import GrootV
from grootv.models.layers.tree_ssm import TreeSSM
from grootv.ops import Tree


@dataclass
class BlockTree:
    """A tree, and the features it was built from.

    Attributes:
        features: What the tree was built from, shape (B, H, W, C), in float32 or wider.
        tree: Its L = H * W vertices are theirs, row-major.
        metric: Distance that the tree minimises.
        decay_along: Gives the factor of the edge from every vertex to its parent in a tree, (B, L, D).
    """

    features: Tensor
    tree: Tree
    metric: str
    decay_along: Callable[[Tree], Tensor]

    @property
    def grid(self) -> tuple[int, int]:
        _, height, width, _ = self.features.shape
        return height, width

    @property
    def vertices(self) -> Tensor:
        """Features by vertex, shape (B, L, C)."""
        return self.features.flatten(1, 2)


@contextmanager
def recorded(backbone: GrootV) -> Iterator[dict[tuple[int, int], BlockTree]]:
    """Keep the tree of every block that runs inside, by (stage, block); each run replaces the last one's.

    A tree that serves a whole stage is kept for each of its blocks, with that block's own features.
    """
    found: dict[tuple[int, int], BlockTree] = {}

    def keep(place: tuple[int, int], ssm: TreeSSM, args: tuple, output: tuple) -> None:
        x, _ = ssm.project(args[0])
        x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        vertices = x.flatten(1, 2)
        found[place] = BlockTree(x, output[1], ssm.metric, lambda tree: ssm.decay(vertices, tree).detach())

    hooks = [
        ssm.register_forward_hook(lambda *call, place=place: keep(place, *call))
        for place, ssm in scans(backbone).items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def scans(backbone: GrootV) -> dict[tuple[int, int], TreeSSM]:
    """The scan of every block by (stage, block)."""
    return {
        (i, k): block.ssm for i, stage in enumerate(backbone.stages) for k, block in enumerate(stage.blocks)
    }
