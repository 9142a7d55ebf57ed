"""Edge weights, spanning trees and their order: drawn cases, the reference, and what every tree is."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csgraph, csr_matrix

from grootv import ops
from grootv.ops import reference
from grootv.ops.grid_graph import grid_edges, num_edges
from tests.ops import cases

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
    # a zero vector is at a right angle to everything; norms below 1e-8, alone, are taken as 1e-8
    assert backend.ops.grid_edge_weight(drawn[:, :1] * 0).tolist() == [[1.0]]
    for norm, cosine in ((1e-5, 1), (3e-8, 1), (1e-9, 0.01)):
        small = backend.ops.grid_edge_weight(drawn * norm)[0].log().tolist()
        assert small == pytest.approx([-cosine, 0, 0, cosine], rel=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 6), st.integers(1, 6), st.integers(0, 40)),
    metric=st.sampled_from(ops.METRICS),
    kind=st.sampled_from(cases.KINDS),
    dtype=st.sampled_from(cases.SCAN_DTYPES),
)
def test_weights_have_the_bits_of_the_reference(backend, shape, metric, kind, dtype):
    maps = cases.features(kind, *shape).to(dtype)
    found = backend.ops.grid_edge_weight(maps.to(backend.device), metric)
    cases.assert_same(found, reference.grid_edge_weight(maps, metric))


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
    cases.assert_same(found, expected)
    edges = edges.to(backend.device, torch.int64 if seed % 2 else torch.int32)
    cases.assert_same(backend.ops.minimum_spanning_tree_from_edges(edges, moved, vertices), expected)
    root = seed % vertices
    tree = reference.breadth_first_order(expected, height, width, root)
    for sequence in (found, found.flip(1)):  # in which the tree's edges are named does not matter
        cases.assert_same(backend.ops.breadth_first_order(sequence, height, width, root), tree)
        cases.assert_same(backend.ops.breadth_first_order_from_edges(edges, sequence, vertices, root), tree)


@pytest.mark.parametrize('tree', cases.PARENTS)
@settings(deadline=None, max_examples=20)
@given(
    shape=st.tuples(st.integers(0, 4), st.sampled_from([1, 2, 3, 20, 100, 100]), st.integers(0, 100)),
    kind=st.sampled_from(sorted(WEIGHT_KINDS)),
    keep=st.booleans(),
    seed=SEED,
)
def test_graph_trees_equal_the_reference(backend, tree, shape, kind, keep, seed):
    torch.manual_seed(seed)
    batch, vertices, extra = shape
    edges = torch.cat([torch.randint(0, vertices, (extra, 2)).int(), cases.parent_edges(tree, vertices)])
    weight = WEIGHT_KINDS[kind](batch, len(edges))
    if keep:  # the tree's form, mostly
        weight[:, extra:] -= 0.9
    else:
        edges = edges[torch.rand(batch, len(edges)).argsort(1)]  # another graph for every item

    def steps(library, edges, weight):
        tree_edges = library.minimum_spanning_tree_from_edges(edges, weight, vertices)
        root = seed % vertices
        return tree_edges, *library.breadth_first_order_from_edges(edges, tree_edges, vertices, root)

    moved = cases.to_device((edges, weight), backend.device)
    cases.assert_same(cases.twice(lambda: steps(backend.ops, *moved)), steps(reference, edges, weight))


@pytest.mark.parametrize(('height', 'width'), [*cases.GRIDS, (56, 56), (31, 64)])
def test_grid_trees_are_spanning_and_as_light_as_scipy_s(height, width):
    vertices = height * width
    weights = torch.rand(1, num_edges(height, width)) + 0.1  # scipy takes a zero for no edge
    tree_edges = ops.minimum_spanning_tree(weights, height, width)
    edges = grid_edges(height, width).long()
    graph = csr_matrix((weights[0], edges.T.numpy()), shape=(vertices, vertices))
    oracle = csgraph.minimum_spanning_tree(graph)
    found = weights[0, tree_edges[0].long()].sort().values
    assert torch.equal(found, torch.from_numpy(oracle.data).sort().values)
    ops.breadth_first_order(tree_edges, height, width)  # refuses what does not span the grid


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
@pytest.mark.parametrize('kind', cases.KINDS)
def test_build_tree_is_the_three_steps(backend, metric, kind):
    for height, width in cases.GRIDS:
        maps, root = cases.features(kind, 2, height, width, 20), height * width // 2
        check_steps(backend, maps, metric, root, reference)


@pytest.mark.parametrize(('kind', 'batch'), [('normal', 2), ('equal', 1), ('binary', 3), ('special', 1)])
def test_large_grids(backend, kind, batch):
    for height, width in backend.large:
        check_steps(backend, cases.features(kind, batch, height, width, 7), 'cosine', height * width // 2)


def check_steps(backend, maps, metric, root, expected=ops):
    height, width = maps.shape[1:3]

    def steps(library, maps):
        weight = library.grid_edge_weight(maps, metric)
        tree_edges = library.minimum_spanning_tree(weight, height, width)
        tree = library.breadth_first_order(tree_edges, height, width, root)
        return weight, tree_edges, *tree, *library.build_tree(maps, metric, root)

    moved = cases.to_device(maps, backend.device)
    found = cases.twice(lambda: steps(backend.ops, moved))
    cases.assert_same(found, steps(expected, maps))
    cases.assert_same(found[4:], found[2:4])


def test_non_contiguous_maps(backend):
    maps = cases.features('normal', 2, 7, 5, 12).permute(0, 2, 1, 3)[..., ::2]
    check_steps(backend, maps, 'cosine', 3)


@pytest.mark.devices('cpu')
def test_any_number_of_threads_builds_the_same_trees(backend):
    maps = torch.rand(5, 24, 24, 32)
    one, two = cases.with_threads((1, 2), lambda: ops.build_tree(maps))
    cases.assert_same(one, two)


@pytest.mark.devices('cuda')
def test_a_huge_grid(backend):
    maps = torch.randn(1, 2048, 2048, 4)
    cases.assert_same(backend.ops.build_tree(maps.cuda()), ops.build_tree(maps))


def test_features_and_tokens_receive_no_gradient(backend):
    maps = cases.features('normal', 1, 3, 3, 2).to(backend.device).requires_grad_()
    tokens, context = maps.flatten(1, 2), torch.tensor([[0, 9]], device=backend.device)
    assert not backend.ops.grid_edge_weight(maps).requires_grad
    assert not backend.ops.build_tree(maps).order.requires_grad
    assert not backend.ops.token_edge_weight(tokens, tokens, context).requires_grad


def test_a_tree_moves_to_a_device_and_keeps_its_dtype():
    tree = cases.spanning_tree(1, 2, 3)
    moved = tree.to('meta')
    assert type(moved) is ops.Tree and {x.device.type for x in moved} == {'meta'}
    assert {x.dtype for x in moved} == {torch.int32}
    assert all(a is b for a, b in zip(tree.to(torch.device('cpu')), tree, strict=True))
    with pytest.raises(TypeError, match=r'Tree\.to: vertices stay int32, give a device, got torch\.float16'):
        tree.to(torch.float16)


@pytest.mark.parametrize('kind', ['path', 'star', 'random'])
def test_an_edge_twice_is_no_tree(backend, kind):
    """On a device several threads then write the same entries: the thread sanitizer watches this test."""
    vertices = 20
    edges, whole = cases.parent_edges(kind, vertices), torch.arange(vertices - 1).int()
    repeated = [whole.clone() for _ in range(3)]
    repeated[0][8] = 3
    repeated[1][4:12] = 0
    repeated[2] = torch.randint(0, 6, (vertices - 1,), generator=torch.Generator().manual_seed(0)).int()
    for chosen in (*(each[None] for each in repeated), torch.stack([whole, *repeated])):
        moved = cases.to_device((edges, chosen), backend.device)
        for root in (0, 7):
            with pytest.raises(RuntimeError, match='must be a spanning tree of the graph, but those of item'):
                backend.ops.breadth_first_order_from_edges(*moved, vertices, root)


def drawn_tree(backend) -> tuple[torch.Tensor, ops.Tree]:
    #       0            (1, 0)
    #      / \
    #     1   2      (0, 1)  (-1, 0)
    #     |
    #     3          (0, 2)
    vectors = torch.tensor([[[1.0, 0], [0, 1], [-1, 0], [0, 2]]])
    tree = cases.tree_of(torch.tensor([[1, 0], [2, 0], [3, 1]]), 1)
    return cases.to_device((vectors, tree), backend.device)


@pytest.mark.parametrize(
    ('metric', 'distances', 'gradients'),
    [
        ('cosine', [0, 1, 2, 0], [[0, -1], [-1, 0], [0, 0], [0, 0]]),
        ('euclidean', [0, 2, 4, 1], [[6, -2], [-2, 0], [-4, 0], [0, 2]]),
        ('manhattan', [0, 2, 2, 1], [[2, -1], [-1, 0], [-1, 0], [0, 1]]),
    ],
)
def test_distances_and_gradients_of_a_drawn_tree(backend, metric, distances, gradients):
    vectors, tree = drawn_tree(backend)
    distance = backend.ops.tree_edge_distance(vectors.requires_grad_(), tree, metric)
    assert distance[0].tolist() == distances
    from_above = torch.ones_like(distance).index_fill_(1, torch.tensor([0], device=vectors.device), math.nan)
    (grad,) = torch.autograd.grad(distance, vectors, from_above)  # the root's is never read
    assert grad[0].tolist() == gradients


@pytest.mark.parametrize('metric', ops.METRICS)
def test_distances_are_the_weights_of_the_tree_s_edges(backend, metric):
    maps = cases.features('normal', 2, 9, 7, 37)
    weight = ops.grid_edge_weight(maps, metric)
    tree_edges = ops.minimum_spanning_tree(weight, 9, 7).long()
    tree = ops.breadth_first_order(tree_edges.int(), 9, 7, root=31)
    first, second = grid_edges(9, 7).long()[tree_edges].unbind(-1)
    below = torch.where(tree.parent.gather(1, first) == second, first, second)
    moved = cases.to_device((maps, tree), backend.device)
    distance = backend.ops.tree_edge_distance(*moved, metric).cpu()
    expected = weight.gather(1, tree_edges)
    if metric == 'cosine':
        expected = 1 + expected.log()
    torch.testing.assert_close(distance.gather(1, below), expected, rtol=1e-6, atol=1e-6)  # a rounding of 1
    assert distance[:, 31].tolist() == [0, 0]


def test_distances_of_a_map_are_those_of_its_vertices(backend):
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        maps = cases.features('normal', 2, 3, 5, 7).to(dtype)
        (found, (grad,)), (expected, (wanted,)) = (
            replace(cases.tree_edge_distance(cases.spanning_tree(2, 3, 5), 7), tensors=[given])
            .to(backend.device)
            .with_gradients(backend.ops)
            for given in (maps, maps.flatten(1, 2))
        )
        assert found[0].dtype == torch.promote_types(dtype, torch.float32)
        assert grad.dtype == dtype and grad.shape == maps.shape
        cases.assert_same((*found, grad.flatten(1, 2)), (*expected, wanted))


@pytest.mark.parametrize('metric', ops.METRICS)
def test_vectors_near_zero_have_finite_distances_and_gradients(backend, metric):
    call = cases.tree_edge_distance(cases.spanning_tree(1, 5, 6), 20, metric=metric)
    rows = call.tensors[0]
    rows /= rows.norm(dim=-1, keepdim=True)
    rows[0, 1::3] = 0
    for norm in (1, 1e-5, 3e-8, 1e-9, 0):
        small = call.fill([rows * norm])
        found = small.to(backend.device).with_gradients(backend.ops)
        expected = small.double().with_gradients(reference)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours[0].isfinite().all()
            cases.assert_close(ours[0], theirs[0], gradient=True)
    if metric == 'cosine':
        assert found[0][0].sum() == 29  # at a right angle to everything


def test_rounding_leaves_cosine_distances_in_their_range(backend):
    vector = cases.random(0)(1, 1, 160)
    signs, scale = torch.tensor([1, 1, -1] * 100).view(1, -1, 1), cases.random(1)(1, 300, 1).exp()
    tree = cases.tree_of(cases.parent_edges('path', 300), 1)
    rows, tree = cases.to_device(((vector * signs * scale).float(), tree), backend.device)
    distance = backend.ops.tree_edge_distance(rows, tree)
    assert distance.min() == 0 and distance.max() == 2
    assert distance.unique().numel() > 2


def test_a_tree_of_one_vertex_has_the_distance_0(backend):
    for metric in ops.METRICS:
        call = cases.tree_edge_distance(cases.spanning_tree(2, 1, 1), 5, metric=metric)
        call.tensors[0][1, 0, 2] = math.nan
        found, (grad,) = call.to(backend.device).with_gradients(backend.ops)
        assert found[0].tolist() == [[0], [0]] and not grad[0].any()


def test_nan_stays_with_its_vertex_and_the_neighbours(backend):
    for metric in ops.METRICS:
        vectors, tree = drawn_tree(backend)
        vectors[0, 1, 0] = math.nan
        distance = backend.ops.tree_edge_distance(vectors.requires_grad_(), tree, metric)
        (grad,) = torch.autograd.grad(distance.sum(), vectors)
        assert distance[0].isnan().tolist() == [False, True, False, True]
        assert not grad[0, 2].isnan().any()
