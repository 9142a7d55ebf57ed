"""Minimum spanning trees: one case by hand, the reference, and what every spanning tree is."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csgraph, csr_matrix

from grootv import ops
from grootv.ops import reference
from grootv.ops.grid_graph import grid_edges, num_edges
from tests.ops.cases import GRIDS

WEIGHT_KINDS = {
    'distinct': lambda *shape: torch.rand(*shape),
    'ties': lambda *shape: torch.randint(0, 3, shape).float(),
    'equal': lambda *shape: torch.ones(*shape),
    'signed': lambda *shape: torch.randn(*shape),
    'special': lambda *shape: torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0])[
        torch.randint(0, 6, shape)
    ],
}


def random_graph(batch: int, vertices: int, extra: int) -> torch.Tensor:
    """Connected graphs: each vertex joined to an earlier one, and some more edges, shuffled."""
    graphs = []
    for _ in range(batch):
        joined = [(int(torch.randint(0, v, ())), v) for v in range(1, vertices)]
        more = torch.randint(0, vertices, (extra, 2)).tolist()
        edges = torch.tensor(joined + more, dtype=torch.int32).view(-1, 2)
        graphs.append(edges[torch.randperm(len(edges))])
    return torch.stack(graphs)


def test_a_drawn_grid():
    # 0 -5- 1     edges: 0 (0-2, weight 1), 1 (1-3, weight 2), 2 (0-1, weight 5), 3 (2-3, weight 3)
    # 1     2     the cycle's heaviest edge, 0-1, stays out
    # 2 -3- 3
    assert ops.minimum_spanning_tree(torch.tensor([[1.0, 2, 5, 3]]), 2, 2).tolist() == [[0, 1, 3]]


def test_equal_weights_fall_to_the_smaller_index():
    assert ops.minimum_spanning_tree(torch.ones(1, 4), 2, 2).tolist() == [[0, 1, 2]]


def test_nan_follows_infinity_and_minus_zero_is_zero():
    weights = torch.tensor([[math.nan, math.inf, 0.0, -0.0]])
    assert ops.minimum_spanning_tree(weights, 2, 2).tolist() == [[1, 2, 3]]
    zeros = torch.tensor([[0.0, -0.0, -0.0, -0.0]])
    assert ops.minimum_spanning_tree(zeros, 2, 2).tolist() == [[0, 1, 2]]


@settings(deadline=None, max_examples=80)
@given(
    batch=st.integers(0, 2),
    height=st.integers(1, 8),
    width=st.integers(1, 8),
    kind=st.sampled_from(sorted(WEIGHT_KINDS)),
    seed=st.integers(0, 2**31),
)
def test_grid_trees_equal_the_reference(batch, height, width, kind, seed):
    torch.manual_seed(seed)
    weights = WEIGHT_KINDS[kind](batch, num_edges(height, width))
    found = ops.minimum_spanning_tree(weights, height, width)
    assert found.dtype == torch.int32
    assert torch.equal(found, reference.minimum_spanning_tree(weights, height, width))
    edges = grid_edges(height, width)
    assert torch.equal(found, ops.minimum_spanning_tree_from_edges(edges, weights, height * width))


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 2),
    vertices=st.integers(1, 20),
    extra=st.integers(0, 30),
    kind=st.sampled_from(sorted(WEIGHT_KINDS)),
    seed=st.integers(0, 2**31),
)
def test_graph_trees_equal_the_reference(batch, vertices, extra, kind, seed):
    torch.manual_seed(seed)
    edges = random_graph(batch, vertices, extra)
    weights = WEIGHT_KINDS[kind](batch, edges.shape[1])
    arguments = (edges, weights, vertices)
    found = ops.minimum_spanning_tree_from_edges(*arguments)
    assert torch.equal(found, reference.minimum_spanning_tree_from_edges(*arguments))


def test_int64_edges():
    edges, weights = grid_edges(3, 4).long(), torch.rand(2, 17)
    found = ops.minimum_spanning_tree_from_edges(edges, weights, 12)
    assert torch.equal(found, ops.minimum_spanning_tree(weights, 3, 4))


@pytest.mark.parametrize(('height', 'width'), [*GRIDS, (56, 56), (31, 64)])
def test_grid_trees_are_spanning_and_as_light_as_scipy_s(height, width):
    vertices = height * width
    weights = torch.rand(1, num_edges(height, width)) + 0.1  # scipy takes a zero for no edge
    tree = ops.minimum_spanning_tree(weights, height, width)[0].long()
    edges = grid_edges(height, width).long()
    graph = csr_matrix((weights[0], edges.T.numpy()), shape=(vertices, vertices))
    oracle = csgraph.minimum_spanning_tree(graph)
    assert torch.equal(tree, tree.unique())
    found = weights[0, tree].sort().values
    assert torch.equal(found, torch.from_numpy(oracle.data).sort().values)
    pairs = csr_matrix((weights[0, tree], edges[tree].T.numpy()), shape=(vertices, vertices))
    assert csgraph.connected_components(pairs, directed=False)[0] == 1


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (
            lambda: ops.minimum_spanning_tree(torch.ones(2, 5), 2, 2),
            r'edge_weight needs one value per edge of the grid, shape \(2, 4\), got \(2, 5\)',
        ),
        (lambda: ops.minimum_spanning_tree(torch.ones(1, 0), 0, 3), 'at least one row'),
        (lambda: ops.minimum_spanning_tree(torch.ones(1, 1), 65536, 65536), r'at most 2\^30'),
        (
            lambda: ops.minimum_spanning_tree_from_edges(
                torch.tensor([[0, 1], [2, 3], [0, 1]]), torch.ones(1, 3), 4
            ),
            'every graph must be connected, but graph 0',
        ),
        (
            lambda: ops.minimum_spanning_tree_from_edges(torch.tensor([[0, 1]]), torch.ones(1, 1), 2**30),
            'every graph must be connected, but 1 edges cannot join 1073741824 vertices',
        ),
        (
            lambda: ops.minimum_spanning_tree(torch.ones(1, 4, dtype=torch.int32), 2, 2),
            'minimum_spanning_tree: edge_weight must be floating, got torch.int32',
        ),
        (
            lambda: ops.minimum_spanning_tree_from_edges(torch.tensor([[0, 7]]), torch.ones(1, 1), 2),
            'edges must join vertices 0 to 1, got 7',
        ),
        (
            lambda: ops.minimum_spanning_tree_from_edges(torch.tensor([[0, 2**33 + 1]]), torch.ones(1, 1), 2),
            'edges must join vertices 0 to 1, got 2147483647',
        ),
        (
            lambda: ops.minimum_spanning_tree_from_edges(torch.tensor([[0, 1]]), torch.ones(1, 2), 2),
            r'edges needs one pair of vertices per weight, shape \(1, 2, 2\), got \(1, 1, 2\)',
        ),
        (
            lambda: ops.minimum_spanning_tree_from_edges(torch.tensor([[0.0, 1]]), torch.ones(1, 1), 2),
            'edges must be int32, got float32',
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()
