"""Breadth-first order: a drawn tree, the reference, and what every such order is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grootv import ops
from grootv.ops import reference
from grootv.ops.grid_graph import grid_edges, num_edges
from tests.ops.cases import GRIDS, assert_same_tree, features


def test_a_drawn_tree():
    # 0   1 - 2      rooted at 4: level 1 is 1, 3; level 2 is 2 (below 1), then 0 (below 3)
    # |   |
    # 3 - 4   5 is joined to 2
    tree_edges = torch.tensor([[0, 1, 2, 4, 5]], dtype=torch.int32)
    tree = ops.breadth_first_order(tree_edges, 2, 3, root=4)
    assert tree.order.tolist() == [[4, 1, 3, 2, 0, 5]]
    assert tree.parent.tolist() == [[3, 4, 1, 4, 4, 2]]
    assert tree.levels().tolist() == [[2, 1, 2, 1, 0, 3]]


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(0, 2),
    height=st.integers(1, 8),
    width=st.integers(1, 8),
    root=st.integers(0, 63),
    seed=st.integers(0, 2**31),
)
def test_grid_orders_equal_the_reference(batch, height, width, root, seed):
    torch.manual_seed(seed)
    root %= height * width
    weights = torch.rand(batch, num_edges(height, width))
    tree_edges = ops.minimum_spanning_tree(weights, height, width)
    tree = ops.breadth_first_order(tree_edges, height, width, root)
    assert_same_tree(tree, reference.breadth_first_order(tree_edges, height, width, root))
    edges, vertices = grid_edges(height, width), height * width
    assert_same_tree(tree, ops.breadth_first_order_from_edges(edges, tree_edges, vertices, root))
    # the sequence in which the tree's edges are named does not matter
    assert_same_tree(tree, ops.breadth_first_order(tree_edges.flip(1), height, width, root))


@pytest.mark.parametrize('shape', ['star', 'comb', 'path'])
def test_deep_and_wide_graphs_equal_the_reference(shape):
    vertices = 200
    parent = {
        'star': lambda v: 0,
        'path': lambda v: v - 1,
        'comb': lambda v: v - 1 if v < 100 else v - 100,
    }[shape]
    edges = torch.tensor([[v, parent(v)] for v in range(1, vertices)])
    tree_edges = torch.arange(vertices - 1, dtype=torch.int32).unsqueeze(0)
    arguments = (edges, tree_edges, vertices, 7)
    found = ops.breadth_first_order_from_edges(*arguments)
    assert_same_tree(found, reference.breadth_first_order_from_edges(*arguments))


@pytest.mark.parametrize(('height', 'width'), GRIDS)
@pytest.mark.parametrize('metric', ops.METRICS)
@pytest.mark.parametrize('kind', ['normal', 'equal', 'binary', 'special'])
def test_build_tree_is_the_three_steps(height, width, metric, kind):
    maps, root = features(kind, 2, height, width, 20), height * width // 2
    weights = ops.grid_edge_weight(maps, metric)
    tree_edges = ops.minimum_spanning_tree(weights, height, width)
    tree = ops.build_tree(maps, metric, root)
    assert_same_tree(tree, ops.breadth_first_order(tree_edges, height, width, root))
    assert_same_tree(tree, reference.build_tree(maps, metric, root))


def test_parents_come_first_and_levels_grow_by_one():
    tree = ops.build_tree(torch.rand(1, 20, 30, 5))
    order, parent, level = tree.order[0], tree.parent[0], tree.levels()[0]
    position = torch.empty_like(order)
    position[order.long()] = torch.arange(600, dtype=torch.int32)
    assert order.sort().values.tolist() == list(range(600))
    assert (position[parent.long()] < position)[1:].all()
    below = order[1:].long()
    assert torch.equal(level[below], level[parent[below].long()] + 1)
    assert (level[order.long()].diff() >= 0).all()


def test_any_number_of_threads_builds_the_same_trees():
    maps = torch.rand(5, 24, 24, 32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.build_tree(maps)
        torch.set_num_threads(2)
        assert_same_tree(ops.build_tree(maps), one)
    finally:
        torch.set_num_threads(threads)


EDGES = torch.tensor([[0, 1], [1, 2], [0, 2], [2, 3]])


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (  # edges 0, 1, 2 of the 2 x 3 grid and a cycle elsewhere leave a vertex out
            lambda: ops.breadth_first_order(torch.tensor([[0, 1, 3, 5, 0]]).int(), 2, 3),
            'tree_edges must be a spanning tree of the 2 x 3 grid, but those of item 0 are not',
        ),
        (
            lambda: ops.breadth_first_order(torch.tensor([[0, 1, 99]]).int(), 2, 2),
            'must be a spanning tree',
        ),
        (
            lambda: ops.breadth_first_order(torch.tensor([[0, 1]]).int(), 2, 2),
            r'one edge less than the grid has vertices, shape \(1, 3\), got \(1, 2\)',
        ),
        (
            lambda: ops.breadth_first_order(torch.tensor([[0, 1, 2]]), 2, 2),
            'tree_edges must be int32, got int64',
        ),
        (
            lambda: ops.breadth_first_order(torch.tensor([[0, 1, 2]]).int(), 2, 2, root=4),
            'root must be a vertex, 0 to 3, got 4',
        ),
        (  # a cycle
            lambda: ops.breadth_first_order_from_edges(EDGES, torch.tensor([[0, 1, 2]]).int(), 4),
            'must be a spanning tree of the graph',
        ),
        (  # the same edge twice
            lambda: ops.breadth_first_order_from_edges(EDGES, torch.tensor([[0, 0, 3]]).int(), 4),
            'must be a spanning tree of the graph',
        ),
        (  # the same edge twice, as many vertices met as there are
            lambda: ops.breadth_first_order_from_edges(EDGES, torch.tensor([[0, 0]]).int(), 3),
            'must be a spanning tree of the graph',
        ),
        (
            lambda: ops.breadth_first_order_from_edges(EDGES, torch.tensor([[0, 1, 4]]).int(), 4),
            'must be a spanning tree of the graph',
        ),
        (lambda: ops.build_tree(torch.ones(1, 2, 2, 1), root=-1), 'root must be a vertex'),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()
