"""Figures of rooted trees over the pixels of a map, and the trees to compare them with."""

import torch
from torch import Tensor

from grootv.ops import (
    Tree,
    breadth_first_order,
    breadth_first_order_from_edges,
    grid_edge_weight,
    minimum_spanning_tree,
    tree_scan,
)
from grootv.ops.grid_graph import num_edges


def raster_tree(batch: int, num_vertices: int, root: int = 0) -> Tree:
    """The row-major raster scan: the path 0 - 1 - 2 ..., from each row's end to the next one's start."""
    vertex = torch.arange(num_vertices, dtype=torch.int32)
    edges = torch.stack([vertex[:-1], vertex[1:]], dim=1)
    return breadth_first_order_from_edges(edges, vertex[:-1].expand(batch, -1), num_vertices, root)


def random_tree(
    batch: int, height: int, width: int, root: int = 0, generator: torch.Generator | None = None
) -> Tree:
    """Spanning trees of the 4-connected grid that are minimum under uniform random edge weights."""
    weight = torch.rand(batch, num_edges(height, width), generator=generator)
    return breadth_first_order(minimum_spanning_tree(weight, height, width), height, width, root)


def vertex_depth(tree: Tree) -> Tensor:
    """Number of edges from every vertex to the root, shape (B, L) int64."""
    return tree.levels().long()


def is_root(tree: Tree) -> Tensor:
    """Shape (B, L), bool."""
    return tree.parent == torch.arange(tree.parent.shape[1], device=tree.parent.device)


def vertex_degree(tree: Tree) -> Tensor:
    """Number of edges of every vertex, shape (B, L) int64."""
    has_parent = (~is_root(tree)).long()
    return has_parent.scatter_add(1, tree.parent.long(), has_parent)


def path_length(tree: Tree, first: Tensor, second: Tensor) -> Tensor:
    """Number of edges on the path between every pair of vertices, (B, P) int64, by binary lifting."""
    depth = vertex_depth(tree)
    jumps = [tree.parent.long()]  # entry k leads 2**k edges up, and stops at the root
    while 2 ** len(jumps) < depth.shape[1]:
        jumps.append(jumps[-1].gather(1, jumps[-1]))
    length = depth.gather(1, first) + depth.gather(1, second)
    higher = depth.gather(1, first) < depth.gather(1, second)
    first, second = torch.where(higher, second, first), torch.where(higher, first, second)
    excess = depth.gather(1, first) - depth.gather(1, second)
    for k, jump in enumerate(jumps):
        first = torch.where((excess >> k) % 2 == 1, jump.gather(1, first), first)
    for jump in reversed(jumps):
        above = jump.gather(1, first), jump.gather(1, second)
        apart = above[0] != above[1]
        first, second = (torch.where(apart, *pair) for pair in zip(above, (first, second), strict=True))
    meeting = torch.where(first == second, first, jumps[0].gather(1, first))
    return length - 2 * depth.gather(1, meeting)


def affinity(decay: Tensor, tree: Tree, vertex: int) -> Tensor:
    """Product of the decays (B, L, C) on the path from every vertex to one, averaged over the channels."""
    impulse = torch.zeros_like(decay)
    impulse[:, vertex] = 1
    return tree_scan(impulse, decay, tree).mean(-1)


def edge_weight(vertices: Tensor, tree: Tree, metric: str) -> Tensor:
    """Distance between every vertex of features (B, L, C) and its parent, neighbours on a grid or not.

    Shape (B, L) float32; the entry of the root is undefined.
    """
    parents = vertices.gather(1, tree.parent.long().unsqueeze(-1).expand_as(vertices))
    pairs = torch.stack([vertices, parents], dim=2).flatten(0, 1).unsqueeze(1)  # grids of one edge
    return grid_edge_weight(pairs, metric).view(vertices.shape[:2])


def share_inside(labels: Tensor, tree: Tree, ignore: int | None = None) -> Tensor:
    """Share of the edges whose two ends have one label, of the labels (B, L).

    Edges with an end of the label ``ignore`` are not counted. Shape (B,) float64; NaN where none is counted.
    """
    above = labels.gather(1, tree.parent.long())
    counted = ~is_root(tree) & (labels != ignore) & (above != ignore)
    return (counted & (labels == above)).sum(1) / counted.sum(1).double()


def share_changed(tree: Tree, other: Tree) -> Tensor:
    """Share of the edges of one tree that another one lacks, wherever the two are rooted, (B,) float64."""
    batch, vertices = tree.parent.shape
    offset = torch.arange(batch, device=tree.parent.device).unsqueeze(1) * vertices**2

    def keys(one: Tree) -> Tensor:
        vertex, parent = torch.arange(vertices, device=one.parent.device), one.parent.long()
        return torch.minimum(vertex, parent) * vertices + torch.maximum(vertex, parent) + offset

    lost = ~torch.isin(keys(tree), keys(other)) & ~is_root(tree)
    return lost.sum(1).double() / max(vertices - 1, 1)
