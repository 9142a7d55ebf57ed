"""The same network with other scans, to compare with: what ablation_digits.py builds."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from grootv.models import GrootV
from grootv.models.layers.tree_ssm import TreeSSM
from grootv.ops import Tree, build_tree, tree_scan
from grootv.registry import MODELS
from grootv.visualization.blocks import scans
from grootv.visualization.topology import random_tree, raster_tree

PATHS = ('tree', 'raster', 'random')
ROOTS = ('all', 'first', 'last', 'none')


@MODELS.register_module()
class ScanAblation(GrootV):
    """GrootV whose scans run along another path, to one root only, or not at all.

    Parameters, their names and their initial values are GrootV's. Training in float32 only.

    Args:
        path: 'tree', 'raster' or 'random': another spanning tree for every map, in training and evaluation.
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
            ssm.build_tree = partial(other_tree, metric=ssm.metric, path=path, last=roots == 'last')
            if roots != 'all':
                ssm.scan = partial(other_scan, ssm, roots)


def other_tree(x: Tensor, metric: str, path: str, last: bool) -> Tree:
    batch, height, width, _ = x.shape
    root = height * width - 1 if last else 0
    if path == 'tree':
        return build_tree(x, metric, root)
    raster = path == 'raster'
    tree = raster_tree(batch, height * width, root) if raster else random_tree(batch, height, width, root)
    return Tree(*(part.to(x.device) for part in tree))


def other_scan(ssm: TreeSSM, roots: str, x: Tensor, tree: Tree) -> tuple[Tensor, Tensor, Tensor]:
    """As :meth:`TreeSSM.scan`, but up to the tree's root only, or not at all."""
    x = x.flatten(1, 2)
    delta, A, B, C = ssm.scan_inputs(x)
    delta = F.softplus(delta + ssm.dt_proj.bias)
    signal, decay = delta * B * x, (delta * A.squeeze(1)).exp()
    return signal if roots == 'none' else tree_scan(signal, decay, tree, 'up'), C, x
