"""Rooted trees: breadth-first order and parents."""

from typing import NamedTuple

import torch
from torch import Tensor

from ._fake import check_dim, check_same_device, check_shape, empty
from ._library import available, ops
from .edge_weight import check_metric
from .spanning_tree import edge_pairs


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

    def levels(self) -> Tensor:
        """Count the edges from every vertex to the root, shape (B, L) int32; O(L log L)."""
        above = self.parent.long().clamp_min(0)  # what a CUDA device leaves of an invalid tree may hold -1
        level = (above != torch.arange(above.shape[1], device=above.device)).int()
        for _ in range((above.shape[1] - 1).bit_length()):  # every step doubles how far `above` looks
            level = level + level.gather(1, above)
            above = above.gather(1, above)
        return level


def breadth_first_order(tree_edges: Tensor, height: int, width: int, root: int = 0) -> Tree:
    """Root the spanning tree of each grid and order its vertices.

    Args:
        tree_edges: Edge indices of a spanning tree, shape (B, H W - 1) int32, in any sequence.
        height: Rows of the grid.
        width: Columns of the grid.
        root: Root vertex, row-major.

    Raises:
        RuntimeError: If the edges are not a spanning tree of the grid or the root is not in it.
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

    Raises:
        RuntimeError: If the edges are not a spanning tree of the graph or the root is not in it.
    """
    pairs = edge_pairs(edges)
    return Tree(*ops.breadth_first_order_from_edges(pairs, tree_edges, num_vertices, root))


def build_tree(features: Tensor, metric: str = 'cosine', root: int = 0) -> Tree:
    """Grow the minimum spanning tree of a feature map and order it, in one step.

    Equal to :func:`grid_edge_weight`, :func:`minimum_spanning_tree` and
    :func:`breadth_first_order` one after the other, without their intermediate tensors.

    Args:
        features: Feature map, shape (B, H, W, C), any floating dtype. Receives no gradient.
        metric: One of :data:`grootv.ops.METRICS`.
        root: Root vertex, row-major.

    Raises:
        ValueError: If the metric is unknown.
        RuntimeError: If ``features`` is not four-dimensional and floating, or the root is outside.
    """
    check_metric('build_tree', metric)
    return Tree(*ops.build_tree(features.detach(), metric, root))


def _empty_tree(like: Tensor, batch: int, vertices: int) -> tuple[Tensor, Tensor]:
    return tuple(empty(like, (batch, vertices), torch.int32) for _ in range(2))


if available:

    @torch.library.register_fake('grootv::breadth_first_order')
    def _(tree_edges, height, width, root):
        function, rule = 'breadth_first_order', 'one edge less than the grid has vertices'
        check_dim(function, 'tree_edges', tree_edges, 2, '(B, H * W - 1)')
        batch, vertices = tree_edges.shape[0], height * width
        check_shape(function, 'tree_edges', rule, tree_edges, (batch, vertices - 1))
        return _empty_tree(tree_edges, batch, vertices)

    @torch.library.register_fake('grootv::breadth_first_order_from_edges')
    def _(edges, tree_edges, num_vertices, root, wait=True):
        function, rule = 'breadth_first_order_from_edges', 'one edge less than the graph has vertices'
        check_dim(function, 'tree_edges', tree_edges, 2, '(B, V - 1)')
        check_dim(function, 'edges', edges, 3, '(M, 2) or (B, M, 2)')
        batch = tree_edges.shape[0]
        check_shape(function, 'tree_edges', rule, tree_edges, (batch, num_vertices - 1))
        check_same_device(function, edges=edges, tree_edges=tree_edges)
        return _empty_tree(tree_edges, batch, num_vertices)

    @torch.library.register_fake('grootv::build_tree')
    def _(features, metric, root):
        check_dim('build_tree', 'features', features, 4, '(B, H, W, C)')
        batch, height, width, _ = features.shape
        return _empty_tree(features, batch, height * width)
