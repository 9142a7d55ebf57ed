"""Minimum spanning trees under the total order (float32 weight, edge index)."""

import torch
from torch import Tensor

from ._fake import check_dim, check_same_device, check_shape
from ._library import available, ops
from .grid_graph import num_edges


def minimum_spanning_tree(edge_weight: Tensor, height: int, width: int) -> Tensor:
    """Find the minimum spanning tree of each 4-connected grid of a batch.

    Edges are compared by weight, then by index; -0 equals 0 and NaN comes after infinity. Under this
    order the tree is unique, so every device returns the same one.

    Args:
        edge_weight: Shape (B, E) floating, compared in float32; edges as
            :func:`grootv.ops.grid_graph.grid_edges` numbers them.
        height: Rows of the grid, at least 1.
        width: Columns of the grid, at least 1.

    Returns:
        Indices of the tree's edges in ascending order, shape (B, H W - 1) int32.

    Raises:
        RuntimeError: If the number of weights is not that of the grid's edges.
    """
    weight = float32_weight('minimum_spanning_tree', edge_weight)
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
        RuntimeError: If a graph is not connected or an edge names a vertex outside 0 ... V - 1.
    """
    weight = float32_weight('minimum_spanning_tree_from_edges', edge_weight)
    return ops.minimum_spanning_tree_from_edges(edge_pairs(edges), weight, num_vertices)


def float32_weight(function: str, edge_weight: Tensor) -> Tensor:
    if not edge_weight.is_floating_point():
        raise RuntimeError(f'{function}: edge_weight must be floating, got {edge_weight.dtype}')
    return edge_weight.detach().float()


def edge_pairs(edges: Tensor) -> Tensor:
    """Edges as (1 or B, M, 2) int32; values beyond int32 stay out of range instead of wrapping."""
    if edges.dtype == torch.int64:
        edges = edges.clamp(-1, torch.iinfo(torch.int32).max).int()
    return edges.unsqueeze(0) if edges.dim() == 2 else edges


if available:

    @torch.library.register_fake('grootv::minimum_spanning_tree')
    def _(edge_weight, height, width):
        function, rule = 'minimum_spanning_tree', 'one value per edge of the grid'
        check_dim(function, 'edge_weight', edge_weight, 2, '(B, E)')
        batch, edges = edge_weight.shape[0], num_edges(height, width)
        check_shape(function, 'edge_weight', rule, edge_weight, (batch, edges))
        return edge_weight.new_empty((batch, height * width - 1), dtype=torch.int32)

    @torch.library.register_fake('grootv::minimum_spanning_tree_from_edges')
    def _(edges, edge_weight, num_vertices, wait=True):
        function, rule = 'minimum_spanning_tree_from_edges', 'one pair of vertices per weight'
        check_dim(function, 'edge_weight', edge_weight, 2, '(B, M)')
        check_dim(function, 'edges', edges, 3, '(M, 2) or (B, M, 2)')
        batch, count = edge_weight.shape
        graphs = 1 if edges.shape[0] == 1 else batch
        check_shape(function, 'edges', rule, edges, (graphs, count, 2))
        check_same_device(function, edges=edges, edge_weight=edge_weight)
        return edge_weight.new_empty((batch, num_vertices - 1), dtype=torch.int32)
