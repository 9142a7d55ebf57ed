"""Trees: edge weights of a feature map, its minimum spanning tree, and the order of the tree's vertices."""

from typing import NamedTuple

import torch
from torch import Tensor

from ._library import ops
from ._register import (
    check_shapes,
    empty,
    refuse_tangents,
    register_constant,
    register_differentiable,
    register_fake,
    register_flops,
)
from .grid_graph import num_edges

METRICS = ('cosine', 'euclidean', 'manhattan')
"""Distances between two feature vectors x, y; each is written out in ``csrc/metric.h``.

========== ===================================================
cosine     exp(-cos(x, y)), norms below 1e-8 taken as 1e-8
euclidean  sum of (x - y)^2
manhattan  sum of abs(x - y)
========== ===================================================
"""


class Tree(NamedTuple):
    """A batch of rooted trees in breadth-first order.

    The children of a vertex are ordered by vertex index, the vertices of a level by their parent's
    position, so a spanning tree and a root have exactly one such order.

    Attributes:
        order: Vertex at each position, the root first, shape (B, L) int32.
        parent: Parent of each vertex (by vertex, not by position), the root's its own, (B, L) int32.
    """

    order: Tensor
    parent: Tensor

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> 'Tree':
        """Return the tree on a device, as ``Tensor.to``; its vertices stay int32."""
        if isinstance(device, torch.dtype):
            raise TypeError(f'Tree.to: vertices stay int32, give a device, got {device}')
        return Tree(*(tensor.to(device=device, non_blocking=non_blocking) for tensor in self))

    def levels(self) -> Tensor:
        """Count the edges from every vertex to the root, shape (B, L) int32; O(L log L)."""
        above = self.parent.long().clamp_min(0)  # what a CUDA device leaves of an invalid tree may hold -1
        level = (above != torch.arange(above.shape[1], device=above.device)).int()
        for _ in range((above.shape[1] - 1).bit_length()):  # every step doubles how far `above` looks
            level = level + level.gather(1, above)
            above = above.gather(1, above)
        return level


def grid_edge_weight(features: Tensor, metric: str = 'cosine') -> Tensor:
    """Compute the weight of every edge of the 4-connected grid.

    The arithmetic is float32 in a fixed order, so every device returns the same bits.

    Args:
        features: Feature map, shape (B, H, W, C), any floating dtype; converted to float32.
        metric: One of :data:`METRICS`.

    Returns:
        Shape (B, E) float32, edges as :func:`grootv.ops.grid_graph.grid_edges` numbers them. Not
        differentiable; O(H W C).

    Raises:
        RuntimeError: If ``features`` has another shape or is not floating.
        ValueError: If the metric is unknown.
    """
    check_metric('grid_edge_weight', metric)
    refuse_tangents('grid_edge_weight', features)
    return ops.grid_edge_weight(features.detach(), metric)


def minimum_spanning_tree(edge_weight: Tensor, height: int, width: int) -> Tensor:
    """Find the minimum spanning tree of each 4-connected grid of a batch.

    Edges are compared by weight, then by index; -0 equals 0 and NaN comes after infinity. Under this
    order the tree is unique, so every device returns the same one.

    Args:
        edge_weight: Shape (B, E) floating, compared in float32; edges as
            :func:`grootv.ops.grid_graph.grid_edges` numbers them.
        height, width: Rows and columns of the grid, at least 1.

    Returns:
        Indices of the tree's edges in ascending order, shape (B, H W - 1) int32.

    Raises:
        RuntimeError: If the weights are not as many as the grid has edges.
    """
    weight = _float32_weight('minimum_spanning_tree', edge_weight)
    return ops.minimum_spanning_tree(weight, height, width)


def minimum_spanning_tree_from_edges(edges: Tensor, edge_weight: Tensor, num_vertices: int) -> Tensor:
    """Find the minimum spanning tree of any connected graph.

    Args:
        edges: Vertex pairs, shape (M, 2) for one graph under all weights or (B, M, 2), int32 or int64.
        edge_weight: Shape (B, M) floating; ordered as in :func:`minimum_spanning_tree`.
        num_vertices: Number of vertices V.

    Returns:
        Indices of the tree's edges in ascending order, shape (B, V - 1) int32.

    Raises:
        RuntimeError: If a vertex is out of range, or the graph is not connected.
    """
    weight = _float32_weight('minimum_spanning_tree_from_edges', edge_weight)
    return ops.minimum_spanning_tree_from_edges(_edge_pairs(edges), weight, num_vertices)


def breadth_first_order(tree_edges: Tensor, height: int, width: int, root: int = 0) -> Tree:
    """Root the spanning tree of each grid and order its vertices.

    Args:
        tree_edges: Edge indices of a spanning tree, shape (B, H W - 1) int32, in any sequence.
        height, width: Rows and columns of the grid.
        root: Root vertex, row-major.

    Returns:
        Order and parents, on the device of ``tree_edges``; O(H W).

    Raises:
        RuntimeError: If the edges are not a spanning tree, or the root is no vertex.
    """
    return Tree(*ops.breadth_first_order(tree_edges, height, width, root))


def breadth_first_order_from_edges(
    edges: Tensor, tree_edges: Tensor, num_vertices: int, root: int = 0
) -> Tree:
    """Root the spanning tree of each graph and order its vertices.

    Args:
        edges: Vertex pairs of the graph, shape (M, 2) or (B, M, 2), int32 or int64.
        tree_edges: Rows of ``edges`` that form a spanning tree, shape (B, V - 1) int32.
        num_vertices: Number of vertices V.
        root: Root vertex.

    Returns:
        Order and parents, on the device of ``tree_edges``.

    Raises:
        RuntimeError: If the edges are not a spanning tree, or the root is no vertex.
    """
    return Tree(*ops.breadth_first_order_from_edges(_edge_pairs(edges), tree_edges, num_vertices, root))


def build_tree(features: Tensor, metric: str = 'cosine', root: int = 0) -> Tree:
    """Build the minimum spanning tree of a feature map and order it, in one step.

    Equal to :func:`grid_edge_weight`, :func:`minimum_spanning_tree` and
    :func:`breadth_first_order` one after the other, without their intermediate tensors.

    Args:
        features: Feature map, shape (B, H, W, C), any floating dtype. Receives no gradient.
        metric: One of :data:`grootv.ops.METRICS`.
        root: Root vertex, row-major.

    Returns:
        Order and parents of H W vertices, on the device of ``features``.

    Raises:
        RuntimeError: If ``features`` has another shape or is not floating, or the root is no vertex.
        ValueError: If the metric is unknown.
    """
    check_metric('build_tree', metric)
    return Tree(*ops.build_tree(features.detach(), metric, root))


def tree_edge_distance(features: Tensor, tree: Tree, metric: str = 'cosine') -> Tensor:
    """Compute the distance of every vertex to its parent, of any tree, differentiably.

    The arithmetic is float32, and float64 for float64, under autocast too. In the backward pass every vertex
    gathers from its parent and its children, so every run on a device returns the same bits; devices may
    differ by rounding.

    Args:
        features: Vectors of the vertices, shape (B, L, C), or a feature map (B, H, W, C) with L = H W, any
            floating dtype.
        tree: Order and parents of L vertices, of a grid or of any other graph.
        metric: ``'cosine'``, 1 - cos(x, y) with norms below 1e-8 taken as 1e-8, in [0, 2]; ``'euclidean'`` or
            ``'manhattan'`` as in :data:`METRICS`.

    Returns:
        Shape (B, L) float32, float64 if ``features`` is; 0 at the root. Differentiable in ``features`` only,
        for manhattan with gradient 0 in equal channels; O(L C).

    Raises:
        RuntimeError: If shapes, dtypes or devices do not fit, or an item's tree is not in breadth-first order
            (on a CUDA device its distances are NaN).
        ValueError: If the metric is unknown.
    """
    check_metric('tree_edge_distance', metric)
    if not features.is_floating_point():
        raise RuntimeError(f'tree_edge_distance: features must be floating, got {features.dtype}')
    vectors = features.flatten(1, 2) if features.dim() == 4 else features
    wide = torch.promote_types(features.dtype, torch.float32)
    return ops.tree_edge_distance(vectors.to(wide), *tree, metric)


def check_metric(function: str, metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f'{function}: metric must be one of {", ".join(METRICS)}, got {metric!r}')


def _float32_weight(function: str, edge_weight: Tensor) -> Tensor:
    if not edge_weight.is_floating_point():
        raise RuntimeError(f'{function}: edge_weight must be floating, got {edge_weight.dtype}')
    return edge_weight.detach().float()


def _edge_pairs(edges: Tensor) -> Tensor:
    """Edges as (1 or B, M, 2) int32; values beyond int32 stay out of range instead of wrapping."""
    if edges.dtype == torch.int64:
        edges = edges.clamp(-1, torch.iinfo(torch.int32).max).int()
    return edges.unsqueeze(0) if edges.dim() == 2 else edges


MAPS = {'features': ('B H W C', 'a feature map')}


register_constant('grid_edge_weight')


def _empty_tree(like: Tensor, vertices: int) -> tuple[Tensor, Tensor]:
    shape = like.shape[0], vertices
    return empty(like, shape, torch.int32), empty(like, shape, torch.int32)


@register_fake('grid_edge_weight')
def _(features, metric):
    sizes = check_shapes('grid_edge_weight', {}, features=(features, *MAPS['features']))
    return empty(features, (sizes['B'], num_edges(sizes['H'], sizes['W'])), torch.float32)


@register_fake('minimum_spanning_tree')
def _(edge_weight, height, width):
    weight = edge_weight, 'B E', 'one value per edge of the grid'
    check_shapes('minimum_spanning_tree', {'E': num_edges(height, width)}, edge_weight=weight)
    return empty(edge_weight, (edge_weight.shape[0], height * width - 1), torch.int32)


@register_fake('minimum_spanning_tree_from_edges')
def _(edges, edge_weight, num_vertices, wait=True):
    weight = edge_weight, 'B M', 'one value per edge'
    pairs = edges, '1 M 2' if edges.shape[:1] == (1,) else 'B M 2', 'one pair of vertices per weight'
    check_shapes('minimum_spanning_tree_from_edges', {'1': 1}, edge_weight=weight, edges=pairs)
    return empty(edge_weight, (edge_weight.shape[0], num_vertices - 1), torch.int32)


@register_fake('breadth_first_order')
def _(tree_edges, height, width, root):
    chosen = tree_edges, 'B H*W-1', 'one edge less than the grid has vertices'
    check_shapes('breadth_first_order', {'H*W-1': height * width - 1}, tree_edges=chosen)
    return _empty_tree(tree_edges, height * width)


@register_fake('breadth_first_order_from_edges')
def _(edges, tree_edges, num_vertices, root, wait=True):
    function, sizes = 'breadth_first_order_from_edges', {'V-1': num_vertices - 1}
    pairs = edges, 'G M 2', 'one list of vertex pairs per tree, or one for all'
    chosen = tree_edges, 'B V-1', 'one edge less than the graph has vertices'
    check_shapes(function, sizes, edges=pairs, tree_edges=chosen)
    return _empty_tree(tree_edges, num_vertices)


@register_fake('build_tree')
def _(features, metric, root):
    sizes = check_shapes('build_tree', {}, features=(features, *MAPS['features']))
    return _empty_tree(features, sizes['H'] * sizes['W'])


def _edge_terms(B: int, H: int, W: int, C: int, metric: str, **_) -> int:
    """Multiply-adds of the distance along every edge, and for cosine of the norm of every vertex."""
    return B * C * (num_edges(H, W) + (H * W if metric == 'cosine' else 0))


for _name in ('grid_edge_weight', 'build_tree'):
    register_flops(_name, MAPS, _edge_terms)

register_differentiable(
    'tree_edge_distance',
    dict(features=('B L C', 'one vector per vertex'))
    | dict.fromkeys(Tree._fields, ('B L', 'one entry per vertex of each item')),
    results={'features': 'B L'},
    gradients=1,
    # As for the edges of a grid.
    multiply_adds=lambda B, L, C, metric, **_: (2 if metric == 'cosine' else 1) * B * L * C,
)
