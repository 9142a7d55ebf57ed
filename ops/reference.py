"""The operators in plain PyTorch, slow and obvious, which every kernel is compared with.

Names, arguments and results are those of :mod:`grootv.ops`. Trees are equal to the compiled ones bit for
bit; scans are differentiable by PyTorch itself, to any order.
"""

import math

import torch
from torch import Tensor

from .grid_graph import grid_edges
from .tokens import token_chain as token_chain
from .tokens import token_edges
from .tree import Tree, check_metric

SIMD_WIDTH = 16  # csrc/metric.h


def grid_edge_weight(features: Tensor, metric: str = 'cosine') -> Tensor:
    """See :func:`grootv.ops.grid_edge_weight`."""
    check_metric('grid_edge_weight', metric)
    batch, height, width, channels = features.shape
    vertices = features.detach().float().reshape(batch, height * width, channels)
    first, second = grid_edges(height, width, features.device).long().unbind(1)
    x, y = vertices[:, first], vertices[:, second]
    if metric == 'cosine':
        return _exp(-_cosine(x, y))
    difference = x - y
    return _lane_sum(difference * difference if metric == 'euclidean' else difference.abs())


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    # Roots in float64, because torch's float32 root may be off by one unit in the last place.
    x_norm, y_norm = (_lane_sum(v * v).double().sqrt().float().clamp_min(1e-8) for v in (x, y))
    return _lane_sum(x * y) / (x_norm * y_norm)


def _lane_sum(terms: Tensor) -> Tensor:
    """Sum over the last dimension in the one order that every device keeps.

    Lane l adds the terms l, l + 16, l + 32 ... one by one; then halves are added to halves.
    """
    channels = terms.shape[-1]
    lanes = terms.new_zeros(*terms.shape[:-1], SIMD_WIDTH)
    for start in range(0, channels, SIMD_WIDTH):
        chunk = terms[..., start : start + SIMD_WIDTH]
        lanes = lanes + torch.nn.functional.pad(chunk, (0, SIMD_WIDTH - chunk.shape[-1]))
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes.squeeze(-1)


def _exp(x: Tensor) -> Tensor:
    """exp on [-1, 1] as float32: its Taylor polynomial of degree 13 in float64, by Horner's rule."""
    x = x.double()
    result = torch.full_like(x, 1 / math.factorial(13))
    for n in range(12, -1, -1):
        result = result * x + 1 / math.factorial(n)
    return result.float()


def minimum_spanning_tree(edge_weight: Tensor, height: int, width: int) -> Tensor:
    """See :func:`grootv.ops.minimum_spanning_tree`."""
    return minimum_spanning_tree_from_edges(grid_edges(height, width), edge_weight, height * width)


def minimum_spanning_tree_from_edges(edges: Tensor, edge_weight: Tensor, num_vertices: int) -> Tensor:
    """Kruskal's algorithm; see :func:`grootv.ops.minimum_spanning_tree_from_edges`."""
    graphs = edges.expand(len(edge_weight), *edges.shape[-2:]).tolist()
    trees = [
        _kruskal(graph, weight, num_vertices)
        for graph, weight in zip(graphs, edge_weight.detach().float().cpu(), strict=True)
    ]
    tree_edges = torch.tensor(trees, dtype=torch.int32, device=edge_weight.device)
    return tree_edges.view(len(edge_weight), num_vertices - 1)


def _kruskal(edges: list, weight: Tensor, num_vertices: int) -> list[int]:
    component = list(range(num_vertices))

    def find(vertex: int) -> int:
        while component[vertex] != vertex:
            vertex = component[vertex]
        return vertex

    tree = []
    for edge in torch.sort(weight, stable=True).indices.tolist():  # NaN sorts last, -0 equals 0
        first, second = (find(vertex) for vertex in edges[edge])
        if first != second:
            component[second] = first
            tree.append(edge)
    if len(tree) != num_vertices - 1:
        raise RuntimeError('minimum_spanning_tree_from_edges: a graph is not connected')
    return sorted(tree)


def breadth_first_order(tree_edges: Tensor, height: int, width: int, root: int = 0) -> Tree:
    """See :func:`grootv.ops.breadth_first_order`."""
    return breadth_first_order_from_edges(grid_edges(height, width), tree_edges, height * width, root)


def breadth_first_order_from_edges(
    edges: Tensor, tree_edges: Tensor, num_vertices: int, root: int = 0
) -> Tree:
    """See :func:`grootv.ops.breadth_first_order_from_edges`."""
    edges = edges.cpu().expand(len(tree_edges), *edges.shape[-2:])
    trees = [
        _breadth_first(graph[tree.long()].tolist(), num_vertices, root)
        for graph, tree in zip(edges, tree_edges.cpu(), strict=True)
    ]
    parts = torch.tensor(trees, dtype=torch.int32, device=tree_edges.device).view(-1, 2, num_vertices)
    return Tree(*(part.contiguous() for part in parts.unbind(1)))


def _breadth_first(tree_edges: list, num_vertices: int, root: int) -> tuple[list, list]:
    neighbours = [[] for _ in range(num_vertices)]
    for first, second in tree_edges:
        neighbours[first].append(second)
        neighbours[second].append(first)
    parent = [-1] * num_vertices
    parent[root] = root
    order, level = [], [root]
    while level:
        order += level
        below = []
        for vertex in level:
            for child in sorted(neighbours[vertex]):
                if parent[child] == -1:
                    parent[child] = vertex
                    below.append(child)
        level = below
    return order, parent


def build_tree(features: Tensor, metric: str = 'cosine', root: int = 0) -> Tree:
    """See :func:`grootv.ops.build_tree`."""
    height, width = features.shape[1:3]
    tree_edges = minimum_spanning_tree(grid_edge_weight(features, metric), height, width)
    return breadth_first_order(tree_edges, height, width, root)


def tree_edge_distance(features: Tensor, tree: Tree, metric: str = 'cosine') -> Tensor:
    """See :func:`grootv.ops.tree_edge_distance`."""
    check_metric('tree_edge_distance', metric)
    wide = torch.promote_types(features.dtype, torch.float32)
    x, parent = features.to(wide).flatten(1, -2), tree.parent.long()
    y = x.gather(1, parent.unsqueeze(-1).expand_as(x))
    if metric == 'cosine':
        # The least square is that of the least norm; a root of 0 would have the gradient NaN.
        x_norm, y_norm = ((v * v).sum(-1).clamp_min(1e-16).sqrt() for v in (x, y))
        distance = (1 - (x * y).sum(-1) / (x_norm * y_norm)).clamp(0, 2)
    else:
        difference = x - y
        distance = (difference * difference if metric == 'euclidean' else difference.abs()).sum(-1)
    return distance.masked_fill(parent == torch.arange(parent.shape[1], device=parent.device), 0)


def tree_scan(input: Tensor, decay: Tensor, tree: Tree, direction: str = 'both') -> Tensor:
    """The two passes of the definition, vertex by vertex; see :func:`grootv.ops.tree_scan`."""
    wide = torch.promote_types(input.dtype, torch.float32)
    scans = [
        _scan(u, a, order, parent, direction)
        for u, a, order, parent in zip(
            input.to(wide),
            decay.to(wide).expand_as(input),
            tree.order.tolist(),
            tree.parent.tolist(),
            strict=True,
        )
    ]
    return (torch.stack(scans) if scans else input.to(wide)).to(input.dtype)


def _scan(input: Tensor, decay: Tensor, order: list, parent: list, direction: str) -> Tensor:
    root, below = order[0], order[1:]
    up = list(input.unbind())
    for vertex in reversed(below):
        up[parent[vertex]] = up[parent[vertex]] + decay[vertex] * up[vertex]
    if direction == 'up':
        return torch.stack(up)
    total = {root: up[root]}
    for vertex in below:
        # up[vertex] already flowed into its parent: remove that share before the total flows back.
        elsewhere = total[parent[vertex]] - decay[vertex] * up[vertex]
        total[vertex] = up[vertex] + decay[vertex] * elsewhere
    return torch.stack([total[vertex] for vertex in range(len(input))])


def selective_tree_scan(
    x, delta, A, B, tree: Tree, delta_bias=None, delta_softplus=True, distance=None, scale=None
) -> Tensor:
    """The tree scan of decays and a signal in full; see :func:`grootv.ops.selective_tree_scan`."""
    step = _step(delta.expand_as(x), delta_bias, delta_softplus)
    A, B, signal = A.to(step.dtype).view(-1), B.to(step.dtype).view(*B.shape[:2], 1), x.to(step.dtype)
    exponent = step * A
    if distance is not None:
        assert scale is not None, 'distance needs a scale'
        distance = distance.to(step.dtype).view(*distance.shape[:2], 1).expand(*x.shape[:2], 1)
        is_root = torch.arange(x.shape[1], device=x.device) == tree.order[:, :1]
        exponent = exponent - scale.to(step.dtype) * distance.masked_fill(is_root.unsqueeze(2), 0)
    return tree_scan(step * (B * signal), torch.exp(exponent), tree).to(x.dtype)


def _step(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    """Steps of a selective scan in the dtype that it computes in."""
    wide = torch.promote_types(delta.dtype, torch.float32)
    step = delta.to(wide) if delta_bias is None else delta.to(wide) + delta_bias.to(wide)
    return torch.nn.functional.softplus(step) if delta_softplus else step


def gated_read_out(h, C, x, D, z, h_norm, y_norm, eps=1e-5) -> Tensor:
    """The definition, step by step; see :func:`grootv.ops.gated_read_out`."""

    def norm(x, weight, bias):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight.to(h.dtype), bias.to(h.dtype), eps)

    y = norm(C.view(*x.shape[:2], 1) * norm(h, *h_norm) + D.to(h.dtype) * x, *y_norm)
    return (y * torch.nn.functional.silu(z.to(h.dtype))).to(z.dtype)


def token_edge_weight(x: Tensor, B: Tensor, context: Tensor, reach: int = 3) -> Tensor:
    """Cosines of both factors, multiplied; see :func:`grootv.ops.token_edge_weight`."""
    earlier, later = token_edges(x.shape[1], reach).long().unbind(1)
    x_cosine, B_cosine = (
        _cosine(v[:, earlier], v[:, later]) for v in (x.detach().float(), B.detach().float())
    )
    first, stop = context.long().unbind(1)
    span = torch.arange(1, reach + 1).repeat(x.shape[1] - 1)
    inside = (later - span >= first.unsqueeze(1)) & (later < stop.unsqueeze(1))
    return _exp(-(x_cosine * B_cosine)).masked_fill(~inside & (span > 1), torch.inf)


def token_tree(x: Tensor, B: Tensor, context: Tensor, reach: int = 3, causal: bool = False) -> Tree:
    """See :func:`grootv.ops.token_tree`."""
    length = x.shape[1]
    edges, weight = token_edges(length, reach), token_edge_weight(x, B, context, reach)
    if not causal:
        tree_edges = minimum_spanning_tree_from_edges(edges, weight, length)
        return breadth_first_order_from_edges(edges, tree_edges, length, root=length - 1)
    pairs, trees = edges.tolist(), []
    for weights, (_, stop) in zip(weight.tolist(), context.tolist(), strict=True):
        similar = {}  # by token: the earlier one that it is the most similar to
        for edge in sorted(range(len(pairs)), key=weights.__getitem__):
            similar.setdefault(pairs[edge][1], pairs[edge][0])
        for token in range(length - 1):
            choosers = (later for later in range(token + 1, length) if similar[later] == token)
            trees.append([token, next(choosers, min(token + reach, stop - 1, length - 1))])
    edges = torch.tensor(trees, dtype=torch.int32).view(len(x), length - 1, 2)
    tree_edges = torch.arange(length - 1).repeat(len(x), 1)
    return breadth_first_order_from_edges(edges, tree_edges, length, root=length - 1)


def token_scan(x, delta, A, B, C, tree: Tree, delta_bias=None, delta_softplus=True) -> tuple[Tensor, Tensor]:
    """The definition, token by token; see :func:`grootv.ops.token_scan`."""
    step = _step(delta, delta_bias, delta_softplus).unsqueeze(-1)
    wide = step.dtype
    decay = torch.exp(A.to(wide) * step)
    signal = step * B.to(wide).unsqueeze(2) * x.to(wide).unsqueeze(-1)
    states = []
    for item, (order, parent) in enumerate(zip(tree.order.tolist(), tree.parent.tolist(), strict=True)):
        state = list(signal[item].unbind())
        for token in reversed(order[1:]):
            state[parent[token]] = decay[item, token + 1] * state[token] + state[parent[token]]
        states.append(torch.stack(state))
    states = torch.stack(states) if states else signal
    output = (states.to(x.dtype) @ C.unsqueeze(-1)).squeeze(-1)
    return output, states[:, -1]
