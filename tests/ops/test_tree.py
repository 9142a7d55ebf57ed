"""Edge weights, spanning trees and their order: drawn cases, the reference, and what every tree is."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csgraph, csr_matrix

from grootv import ops
from grootv.ops import reference
from grootv.ops.grid_graph import grid_edges, num_edges
from tests.ops.cases import (
    GRIDS,
    KINDS,
    PARENTS,
    SCAN_DTYPES,
    assert_same,
    features,
    move,
    parent_edges,
    twice,
)

WEIGHT_KINDS = {
    'distinct': lambda *shape: torch.rand(*shape),
    'ties': lambda *shape: torch.randint(0, 3, shape).float(),
    'equal': lambda *shape: torch.ones(*shape),
    'signed': lambda *shape: torch.randn(*shape),
    'special': lambda *shape: torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0])[
        torch.randint(0, 6, shape)
    ],
}
SIDE = st.integers(1, 8)
SEED = st.integers(0, 2**31)


def test_edges_are_numbered_vertical_first_then_horizontal():
    # 0 - 1 - 2
    # |   |   |
    # 3 - 4 - 5
    expected = [[0, 3], [1, 4], [2, 5], [0, 1], [1, 2], [3, 4], [4, 5]]
    assert grid_edges(2, 3).tolist() == expected


def test_weights_of_a_drawn_map(backend):
    # vectors (1, 0) | (0, 1)
    #         (1, 0) | (-1, 0)
    drawn = torch.tensor([[[[1.0, 0], [0, 1]], [[1, 0], [-1, 0]]]], device=backend.device)
    weights = {metric: backend.ops.grid_edge_weight(drawn, metric)[0].tolist() for metric in ops.METRICS}
    assert weights['cosine'] == pytest.approx([math.exp(-1), 1, 1, math.e], rel=1e-6)
    assert weights['euclidean'] == [0, 2, 2, 4]
    assert weights['manhattan'] == [0, 2, 2, 2]
    # a zero vector is at a right angle to everything
    assert backend.ops.grid_edge_weight(drawn[:, :1] * 0).tolist() == [[1.0]]


def test_cosine_agrees_with_torch():
    maps = features('normal', 2, 5, 7, 33)
    vertices = maps.flatten(1, 2).double()
    first, second = grid_edges(5, 7).long().unbind(1)
    expected = torch.exp(-F.cosine_similarity(vertices[:, first], vertices[:, second], dim=-1))
    # 33 products in 16 lanes: three roundings of 2^-24 in the sum, a few more in norm and quotient
    torch.testing.assert_close(ops.grid_edge_weight(maps).double(), expected, rtol=1e-6, atol=0)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 6), st.integers(1, 6), st.integers(0, 40)),
    metric=st.sampled_from(ops.METRICS),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(SCAN_DTYPES),
)
def test_weights_have_the_bits_of_the_reference(backend, shape, metric, kind, dtype):
    maps = features(kind, *shape).to(dtype)
    found = backend.ops.grid_edge_weight(maps.to(backend.device), metric)
    assert_same(found, reference.grid_edge_weight(maps, metric))


def test_a_drawn_grid(backend):
    # 0 -5- 1     edges: 0 (0-2, weight 1), 1 (1-3, weight 2), 2 (0-1, weight 5), 3 (2-3, weight 3)
    # 1     2     the cycle's heaviest edge, 0-1, stays out
    # 2 -3- 3
    def tree_edges(*weights):
        weight = torch.tensor([weights], device=backend.device)
        return backend.ops.minimum_spanning_tree(weight, 2, 2).tolist()

    assert tree_edges(1.0, 2.0, 5.0, 3.0) == [[0, 1, 3]]
    assert tree_edges(1.0, 1.0, 1.0, 1.0) == [[0, 1, 2]]  # of equal weights the smaller index
    assert tree_edges(math.nan, math.inf, 0.0, -0.0) == [[1, 2, 3]]  # NaN follows infinity
    assert tree_edges(0.0, -0.0, -0.0, -0.0) == [[0, 1, 2]]  # -0 is 0


@settings(deadline=None, max_examples=80)
@given(
    batch=st.integers(0, 2), height=SIDE, width=SIDE, kind=st.sampled_from(sorted(WEIGHT_KINDS)), seed=SEED
)
def test_grid_trees_equal_the_reference(backend, batch, height, width, kind, seed):
    torch.manual_seed(seed)
    weight = WEIGHT_KINDS[kind](batch, num_edges(height, width))
    moved, edges, vertices = weight.to(backend.device), grid_edges(height, width), height * width
    found = backend.ops.minimum_spanning_tree(moved, height, width)
    expected = reference.minimum_spanning_tree(weight, height, width)
    assert_same(found, expected)
    edges = edges.to(backend.device, torch.int64 if seed % 2 else torch.int32)
    assert_same(backend.ops.minimum_spanning_tree_from_edges(edges, moved, vertices), expected)
    root = seed % vertices
    tree = reference.breadth_first_order(expected, height, width, root)
    for sequence in (found, found.flip(1)):  # in which the tree's edges are named does not matter
        assert_same(backend.ops.breadth_first_order(sequence, height, width, root), tree)
        assert_same(backend.ops.breadth_first_order_from_edges(edges, sequence, vertices, root), tree)


def random_graph(batch: int, vertices: int, extra: int) -> torch.Tensor:
    """Connected graphs: each vertex joined to an earlier one, and some more edges, shuffled."""
    graphs = []
    for _ in range(batch):
        joined = [(int(torch.randint(0, v, ())), v) for v in range(1, vertices)]
        more = torch.randint(0, vertices, (extra, 2)).tolist()
        edges = torch.tensor(joined + more, dtype=torch.int32).view(-1, 2)
        graphs.append(edges[torch.randperm(len(edges))])
    return torch.stack(graphs)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 2),
    vertices=st.integers(1, 20),
    extra=st.integers(0, 30),
    kind=st.sampled_from(sorted(WEIGHT_KINDS)),
    seed=SEED,
)
def test_graph_trees_equal_the_reference(backend, batch, vertices, extra, kind, seed):
    torch.manual_seed(seed)
    edges = random_graph(batch, vertices, extra)
    check_graph(backend, edges, WEIGHT_KINDS[kind](batch, edges.shape[1]), vertices, seed % vertices)


@pytest.mark.parametrize('batch', [0, 1, 4])
@pytest.mark.parametrize('kind', PARENTS)
def test_deep_and_wide_graphs_equal_the_reference(backend, kind, batch):
    vertices = 150
    edges = torch.cat([torch.randint(0, vertices, (100, 2)).int(), parent_edges(kind, vertices)])
    weight = torch.rand(batch, len(edges))
    weight[:, -vertices + 1 :] -= 0.9  # mostly the tree, so that it keeps its form
    check_graph(backend, edges, weight, vertices, root=7)


def check_graph(backend, edges, weight, vertices, root):
    moved = edges.to(backend.device), weight.to(backend.device)
    tree_edges = twice(lambda: [backend.ops.minimum_spanning_tree_from_edges(*moved, vertices)])[0]
    assert_same(tree_edges, reference.minimum_spanning_tree_from_edges(edges, weight, vertices))
    found = twice(lambda: backend.ops.breadth_first_order_from_edges(moved[0], tree_edges, vertices, root))
    assert_same(found, reference.breadth_first_order_from_edges(edges, tree_edges.cpu(), vertices, root))


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


def test_order_of_a_drawn_tree(backend):
    # 0   1 - 2      rooted at 4: level 1 is 1, 3; level 2 is 2 (below 1), then 0 (below 3)
    # |   |
    # 3 - 4   5 is joined to 2
    tree_edges = torch.tensor([[0, 1, 2, 4, 5]], dtype=torch.int32, device=backend.device)
    tree = backend.ops.breadth_first_order(tree_edges, 2, 3, root=4)
    assert tree.order.tolist() == [[4, 1, 3, 2, 0, 5]]
    assert tree.parent.tolist() == [[3, 4, 1, 4, 4, 2]]
    assert tree.levels().tolist() == [[2, 1, 2, 1, 0, 3]]


@pytest.mark.parametrize('metric', ops.METRICS)
@pytest.mark.parametrize('kind', KINDS)
def test_build_tree_is_the_three_steps(backend, metric, kind):
    for height, width in GRIDS:
        maps, root = features(kind, 2, height, width, 20), height * width // 2
        check_steps(backend, maps, metric, root, reference)


@pytest.mark.parametrize(('kind', 'batch'), [('normal', 2), ('equal', 1), ('binary', 3), ('special', 1)])
def test_large_grids(backend, kind, batch):
    for height, width in backend.large:
        check_steps(backend, features(kind, batch, height, width, 7), 'cosine', height * width // 2)


def check_steps(backend, maps, metric, root, expected=ops):
    height, width = maps.shape[1:3]

    def steps(library, maps):
        weight = library.grid_edge_weight(maps, metric)
        tree_edges = library.minimum_spanning_tree(weight, height, width)
        tree = library.breadth_first_order(tree_edges, height, width, root)
        return weight, tree_edges, *tree, *library.build_tree(maps, metric, root)

    moved = move(maps, backend.device)
    found = twice(lambda: steps(backend.ops, moved))
    assert_same(found, steps(expected, maps))
    assert_same(found[4:], found[2:4])


def test_non_contiguous_maps(backend):
    maps = features('normal', 2, 7, 5, 12).permute(0, 2, 1, 3)[..., ::2]
    check_steps(backend, maps, 'cosine', 3)


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
        assert_same(ops.build_tree(maps), one)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.devices('cuda')
def test_a_huge_grid(backend):
    maps = torch.randn(1, 2048, 2048, 4)
    assert_same(backend.ops.build_tree(maps.cuda()), ops.build_tree(maps))


def test_features_receive_no_gradient(backend):
    maps = features('normal', 1, 3, 3, 2).to(backend.device).requires_grad_()
    assert not backend.ops.grid_edge_weight(maps).requires_grad
    assert not backend.ops.build_tree(maps).order.requires_grad


@pytest.mark.parametrize('function', ['grid_edge_weight', 'build_tree'])
def test_unknown_metrics_list_the_known_ones(function):
    with pytest.raises(ValueError, match=f"{function}: .*one of cosine, euclidean, manhattan, got 'cosin'"):
        getattr(ops, function)(torch.ones(1, 2, 2, 1), 'cosin')


def ints(*rows):
    return torch.tensor(rows, dtype=torch.int32)


TRIANGLE = torch.tensor([[0, 1], [1, 2], [0, 2], [2, 3]])
NOT_A_TREE = 'tree_edges must be a spanning tree of the'
BAD = {
    'grid_edge_weight': [
        ((torch.ones(2, 3, 4),), r'features must have shape \(B, H, W, C\), got \(2, 3, 4\)'),
        ((torch.ones(1, 2, 2, 1).int(),), 'features must be float32.*got int32'),
        ((torch.ones(1, 0, 2, 1),), 'at least one row and one column, got 0 x 2'),
    ],
    'build_tree': [
        ((torch.ones(2, 3, 4),), r'features must have shape \(B, H, W, C\), got \(2, 3, 4\)'),
        ((torch.ones(1, 2, 2, 1), 'cosine', -1), 'root must be a vertex, 0 to 3, got -1'),
    ],
    'minimum_spanning_tree': [
        (
            (torch.ones(2, 5), 2, 2),
            r'edge_weight needs one value per edge of the grid, shape \(2, 4\), got \(2, 5\)',
        ),
        ((torch.ones(1, 0), 0, 3), 'at least one row'),
        ((torch.ones(1, 1), 65536, 65536), r'at most 2\^30'),
        ((torch.ones(1, 4).int(), 2, 2), 'edge_weight must be floating, got torch.int32'),
    ],
    'minimum_spanning_tree_from_edges': [
        ((TRIANGLE[[0, 3, 0]], torch.ones(1, 3), 4), 'every graph must be connected, but graph 0'),
        (
            (TRIANGLE[:1], torch.ones(1, 1), 2**30),
            'every graph must be connected, but 1 edges cannot join 1073741824 vertices',
        ),
        ((torch.tensor([[0, 7]]), torch.ones(1, 1), 2), 'edges must join vertices 0 to 1, got 7'),
        ((torch.tensor([[0, 2**33 + 1]]), torch.ones(1, 1), 2), 'vertices 0 to 1, got 2147483647'),
        ((TRIANGLE[:1], torch.ones(1, 2), 2), r'edges needs one pair .*shape \(1, 2, 2\), got \(1, 1, 2\)'),
        ((TRIANGLE[:1].float(), torch.ones(1, 1), 2), 'edges must be int32, got float32'),
    ],
    'breadth_first_order': [
        ((ints([0, 1, 3, 5, 0]), 2, 3), f'{NOT_A_TREE} 2 x 3 grid, but those of item 0 are not'),  # a cycle
        ((ints([0, 1, 99]), 2, 2), NOT_A_TREE),
        ((ints([0, 1]), 2, 2), r'one edge less than the grid has vertices, shape \(1, 3\), got \(1, 2\)'),
        ((ints([0, 1, 2]).long(), 2, 2), 'tree_edges must be int32, got int64'),
        ((ints([0, 1, 2]), 2, 2, 4), 'root must be a vertex, 0 to 3, got 4'),
    ],
    'breadth_first_order_from_edges': [
        ((TRIANGLE, ints([0, 1, 2]), 4), f'{NOT_A_TREE} graph, but those of item 0'),  # a cycle
        ((TRIANGLE, ints([0, 0, 3]), 4), NOT_A_TREE),  # an edge twice
        ((TRIANGLE, ints([0, 0]), 3), NOT_A_TREE),  # an edge twice, as many vertices met as there are
        ((TRIANGLE, ints([0, 1, 4]), 4), NOT_A_TREE),
        ((TRIANGLE + 5, ints([0, 1, 3]), 4), NOT_A_TREE),
    ],
}


@pytest.mark.parametrize('function', BAD)
def test_bad_input(backend, function):
    for arguments, message in BAD[function]:
        moved = [x.to(backend.device) if isinstance(x, torch.Tensor) else x for x in arguments]
        with pytest.raises(RuntimeError, match=f'{function}: .*{message}'):
            getattr(backend.ops, function)(*moved)
