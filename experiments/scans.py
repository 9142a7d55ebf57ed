"""The same network with other scans, to compare with: what ablation_digits.py builds."""

import torch.nn.functional as F
from torch import Tensor

from grootv.models import GrootV
from grootv.models.layers.tree_ssm import TreeSSM
from grootv.ops import Tree, build_tree, tree_scan
from grootv.registry import MODELS
from grootv.visualization.blocks import scans
from grootv.visualization.topology import random_tree, raster_tree


def spanning(guide: Tensor, metric: str, root: int) -> Tree:
    """GrootV's own: the minimum spanning tree of the map."""
    return build_tree(guide, metric, root)


def raster(guide: Tensor, metric: str, root: int) -> Tree:
    """The row-major path, whatever the map holds."""
    batch, height, width, _ = guide.shape
    return on_device(raster_tree(batch, height * width, root), guide)


def random(guide: Tensor, metric: str, root: int) -> Tree:
    """Another random spanning tree for every map, in training and in evaluation."""
    batch, height, width, _ = guide.shape
    return on_device(random_tree(batch, height, width, root), guide)


def on_device(tree: Tree, guide: Tensor) -> Tree:
    return Tree(*(part.to(guide.device) for part in tree))


PATHS = dict(tree=spanning, raster=raster, random=random)
ROOTS = ('all', 'first', 'last', 'none')


class OtherScan(TreeSSM):
    """A TreeSSM of the same parameters with its ``path`` and ``roots`` chosen; see :class:`ScanAblation`."""

    path: str
    roots: str

    def build_tree(self, guide: Tensor) -> Tree:
        last = guide.shape[1] * guide.shape[2] - 1
        return PATHS[self.path](guide, self.metric, last if self.roots == 'last' else 0)

    def forward(self, x: Tensor, tree: Tree | None = None) -> tuple[Tensor, Tree]:
        guide, z = self.project(x)
        tree = self.build_tree(guide) if tree is None else tree
        vertices = guide.flatten(1, 2)
        h, C = self.states(vertices, tree)
        y = self.out_norm(C * self.state_norm(h) + self.D * vertices) * F.silu(z.flatten(1, 2))
        return self.out_proj(y).view(x.shape), tree

    def states(self, vertices: Tensor, tree: Tree) -> tuple[Tensor, Tensor]:
        """States h (B, L, D) of the vertices (B, L, D), and what reads them out."""
        delta, A, B, C = self.scan_inputs(vertices)
        delta = F.softplus(delta + self.dt_proj.bias)
        signal, decay = delta * B * vertices, (delta * A.squeeze(1)).exp()
        if self.roots == 'none':
            return signal, C
        return tree_scan(signal, decay, tree, 'both' if self.roots == 'all' else 'up'), C


@MODELS.register_module()
class ScanAblation(GrootV):
    """GrootV whose scans run along another path, to one root only, or not at all.

    Parameters, their names and their initial values are GrootV's. Training in float32 only.

    Args:
        path: 'tree', 'raster' or 'random'.
        roots: 'all' aggregates over all vertices, as GrootV does. 'first' and 'last' scan from the leaves up
            to that vertex in reading order: a vertex aggregates those below it. 'none' does not scan.
        **options: As for :class:`grootv.models.GrootV`.
    """

    def __init__(self, path: str = 'tree', roots: str = 'all', **options):
        super().__init__(**options)
        for name, value, known in (('path', path, PATHS), ('roots', roots, ROOTS)):
            if value not in known:
                raise ValueError(f'ScanAblation: {name} must be one of {", ".join(known)}, got {value!r}')
        for ssm in scans(self).values():
            ssm.__class__ = OtherScan  # keeps the parameters, and the random numbers drawn for them
            ssm.path, ssm.roots = path, roots
