"""Minimum spanning trees under the total order (float32 weight, edge index)."""

import torch
from torch import Tensor

from ._library import available, ops


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
    return ops.minimum_spanning_tree(edge_weight.detach().float(), height, width)


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
    weight = edge_weight.detach().float()
    return ops.minimum_spanning_tree_from_edges(edge_pairs(edges), weight, num_vertices)


def edge_pairs(edges: Tensor) -> Tensor:
    """Edges as (1 or B, M, 2) int32; values beyond int32 stay out of range instead of wrapping."""
    if edges.dtype == torch.int64:
        edges = edges.clamp(-1, torch.iinfo(torch.int32).max).int()
    return edges.unsqueeze(0) if edges.dim() == 2 else edges


if available:

    @torch.library.register_fake('grootv::minimum_spanning_tree')
    def _(edge_weight, height, width):
        return edge_weight.new_empty((edge_weight.shape[0], height * width - 1), dtype=torch.int32)

    @torch.library.register_fake('grootv::minimum_spanning_tree_from_edges')
    def _(edges, edge_weight, num_vertices):
        return edge_weight.new_empty((edge_weight.shape[0], num_vertices - 1), dtype=torch.int32)
