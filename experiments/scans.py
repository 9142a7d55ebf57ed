"""The same network with other scans, to compare with: what ablation_digits.py and edge_decay.py build."""

from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grootv.models import GrootV
from grootv.models.layers.tree_ssm import TreeSSM, inverse_softplus
from grootv.ops import (
    Tree,
    breadth_first_order_from_edges,
    build_tree,
    grid_edge_weight,
    minimum_spanning_tree_from_edges,
    tree_edge_distance,
    tree_scan,
)
from grootv.ops.grid_graph import grid_edges
from grootv.registry import MODELS
from grootv.visualization.blocks import scans
from grootv.visualization.topology import random_tree, raster_tree

PATHS = ('tree', 'raster', 'random', 'cross', 'diagonals', 'grid')
MOST = 0.999  # decay of an edge of a grid, where 1 has no resolvent
ROOTS = ('all', 'first', 'last', 'none')

fixed_tree = lru_cache(raster_tree)


@MODELS.register_module()
class ScanAblation(GrootV):
    """GrootV whose scans run along another path, to one root only, or not at all.

    Parameters, their names and their initial values are GrootV's. Training in float32 only.

    Args:
        path: 'tree', 'raster' or 'random': another spanning tree for every map, in training and evaluation.
            'cross' sums four causal scans, along rows and columns from either end, as VMamba does, with the
            parameters of one. 'diagonals': the minimum spanning tree of the 8-connected grid. 'grid': the
            whole 4-connected grid with its cycles, by :func:`grid_scan`; needs ``edge_alone``.
        roots: 'all' aggregates over all vertices, as GrootV does. 'first' and 'last' scan from the leaves up
            to that vertex in reading order: a vertex aggregates those below it. 'none' does not scan.
        trees: Number of trees of a block, each of and for an equal part of the channels.
        projected: Make trees and distances from a learned linear projection, a parameter more in every block
            that starts as the identity.
        edge_alone: Decays ``exp(-s d)`` of the distance alone, by one scale s for all channels, the mean of
            the learned ones; needs ``edge_decay``.
        start: Initial scale of the distances; None is the network's own.
        **options: As for :class:`grootv.models.GrootV`.
    """

    def __init__(
        self,
        path: str = 'tree',
        roots: str = 'all',
        trees: int = 1,
        projected: bool = False,
        edge_alone: bool = False,
        start: float | None = None,
        **options,
    ):
        super().__init__(**options)
        for name, value, known in (('path', path, PATHS), ('roots', roots, ROOTS)):
            if value not in known:
                raise ValueError(f'ScanAblation: {name} must be one of {", ".join(known)}, got {value!r}')
        edge = bool(options.get('edge_decay'))
        grid = edge_alone and roots == 'all' and trees == 1 and options.get('metric', 'cosine') == 'cosine'
        rules = {
            'edge_alone and start need edge_decay': edge or not (edge_alone or start is not None),
            "path 'cross' and roots 'none' read no edge_decay": not (
                edge and (path == 'cross' or roots == 'none')
            ),
            "path 'cross' needs roots 'all'": path != 'cross' or roots == 'all',
            "path 'grid' needs edge_alone, roots 'all', one tree and the cosine": path != 'grid' or grid,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(f'ScanAblation: {rule}')
        for ssm in scans(self).values():
            ssm.guide = nn.Linear(*2 * [ssm.D.numel()], bias=False) if projected else nn.Identity()
            if projected:
                nn.init.eye_(ssm.guide.weight)
            if start is not None:
                ssm.edge_scale.data.copy_(inverse_softplus(torch.full_like(ssm.edge_scale, start)))
            ssm.build_tree = partial(other_tree, ssm, path, roots == 'last')
            if roots != 'all' or path == 'cross' or trees > 1 or projected or edge_alone:
                ssm.scan = partial(other_scan, ssm, path, roots, trees, edge_alone)


def other_tree(ssm: TreeSSM, path: str, last: bool, x: Tensor) -> Tree:
    """The tree of a projected map (B, H, W, D), or the path in its place."""
    return tree_along(path, ssm.guide(x), ssm.metric, last)


def tree_along(path: str, x: Tensor, metric: str, last: bool = False) -> Tree:
    batch, height, width, _ = x.shape
    root = height * width - 1 if last else 0
    if path in ('tree', 'grid'):  # a grid reads no tree
        return build_tree(x, metric, root)
    if path == 'diagonals':
        return tree_with_diagonals(x, metric, root)
    random = path == 'random'
    tree = random_tree(batch, height, width, root) if random else fixed_tree(batch, height * width, root)
    return Tree(*(part.to(x.device) for part in tree))


def tree_with_diagonals(x: Tensor, metric: str, root: int = 0) -> Tree:
    """The minimum spanning tree of the 8-connected grid of a map (B, H, W, D)."""
    batch, height, width, _ = x.shape
    vertex = torch.arange(height * width, device=x.device, dtype=torch.int32).view(height, width)
    falling = torch.stack([vertex[:-1, :-1], vertex[1:, 1:]], -1).flatten(0, 1)
    rising = torch.stack([vertex[1:, :-1], vertex[:-1, 1:]], -1).flatten(0, 1)
    edges = torch.cat([grid_edges(height, width, x.device), falling, rising])
    ends = x.detach().flatten(1, 2)[:, edges.long()]  # (B, M, 2, D), a grid of one edge each
    weight = grid_edge_weight(ends.flatten(0, 1).unsqueeze(1), metric).view(batch, -1)
    chosen = minimum_spanning_tree_from_edges(edges, weight, height * width)
    return breadth_first_order_from_edges(edges, chosen, height * width, root)


def other_scan(
    ssm: TreeSSM, path: str, roots: str, trees: int, edge_alone: bool, x: Tensor, tree: Tree
) -> tuple[Tensor, Tensor, Tensor]:
    """As :meth:`TreeSSM.scan`, but to the root only, four ways, over several trees, or not at all."""
    features, x = ssm.guide(x), x.flatten(1, 2)
    delta, A, B, C = ssm.scan_inputs(x)
    step = F.softplus(delta + ssm.dt_proj.bias)
    signal, exponent = step * B * x, step * A.squeeze(1)
    if roots == 'none':
        return signal, C, x
    if path == 'cross':
        return cross_scan(signal, exponent.exp(), *features.shape[1:3]), C, x
    direction, states = 'both' if roots == 'all' else 'up', []
    scale = None if ssm.edge_scale is None else F.softplus(ssm.edge_scale)
    if edge_alone:
        exponent, scale = torch.zeros_like(exponent), scale.mean().expand(len(scale))
    if path == 'grid':
        return grid_scan(signal, features, scale[0]), C, x
    scale = scale if scale is None else scale.chunk(trees)
    for i, part in enumerate(features.chunk(trees, -1)):
        if trees > 1:
            tree = tree_along(path, part, ssm.metric, roots == 'last')
        decay = exponent.chunk(trees, -1)[i]
        if scale is not None:
            distance = tree_edge_distance(part.flatten(1, 2), tree, ssm.metric)
            decay = decay - scale[i] * distance.unsqueeze(-1)
        states.append(tree_scan(signal.chunk(trees, -1)[i], decay.exp(), tree, direction))
    return torch.cat(states, -1), C, x


def grid_scan(signal: Tensor, features: Tensor, scale: Tensor) -> Tensor:
    """Scan along the 4-connected grid of a map (B, H, W, D) with all its cycles, (B, L, D).

    The decay of an edge is a = exp(-scale d), d the cosine distance of its ends. On a tree, the products of
    the decays along the paths are the inverse of the matrix with 1 + sum of a^2 / (1 - a^2) over a vertex'
    edges on its diagonal and -a / (1 - a^2) at every edge. Here that of the grid is solved, O(L^3).
    """
    batch, height, width, _ = features.shape
    first, second = grid_edges(height, width, features.device).long().unbind(1)
    vertices = features.flatten(1, 2)
    distance = 1 - F.cosine_similarity(vertices[:, first], vertices[:, second], dim=-1)
    a = torch.exp(-scale * distance).clamp(max=MOST)
    own, other = a.square() / (1 - a.square()), -a / (1 - a.square())
    matrix = torch.eye(height * width).repeat(batch, 1, 1).to(signal)
    item = torch.arange(batch, device=signal.device).unsqueeze(1)
    entries = (first, first, own), (second, second, own), (first, second, other), (second, first, other)
    for i, j, value in entries:
        place = item, i.expand(batch, -1), j.expand(batch, -1)
        matrix = matrix.index_put(place, value, accumulate=True)
    return torch.linalg.solve(matrix, signal)


def cross_scan(signal: Tensor, decay: Tensor, height: int, width: int) -> Tensor:
    """Sum h[i] = decay[i] h[i - 1] + signal[i] over rows and columns, forwards and backwards, (B, L, D)."""
    rows = torch.arange(height * width, device=signal.device)
    columns = rows.view(height, width).t().flatten()
    path = Tree(*(part.to(signal.device) for part in fixed_tree(len(signal), len(rows), len(rows) - 1)))
    total = torch.zeros_like(signal)
    for way in (rows, rows.flip(0), columns, columns.flip(0)):
        along = decay[:, way].roll(-1, 1)  # the decay of an edge of the path is that of its later end
        total = total + tree_scan(signal[:, way], along, path, 'up')[:, way.argsort()]
    return total
