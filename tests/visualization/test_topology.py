import pytest
import torch

from grootv.ops import METRICS, Tree, breadth_first_order, build_tree, grid_edge_weight, minimum_spanning_tree
from grootv.visualization.topology import (
    affinity,
    edge_weight,
    path_length,
    random_tree,
    raster_tree,
    share_changed,
    share_inside,
    vertex_degree,
    vertex_depth,
)


def comb(root: int = 0) -> Tree:
    """A 2 x 3 grid without the edges 3-4 and 4-5: ::

    0 - 1 - 2
    |   |   |
    3   4   5
    """
    return breadth_first_order(torch.tensor([[0, 1, 2, 3, 4]], dtype=torch.int32), 2, 3, root)


def some_tree(batch: int = 2, root: int = 0) -> Tree:
    features = torch.randn(batch, 6, 7, 3, generator=torch.Generator().manual_seed(0))
    return build_tree(features, 'euclidean', root)


def slow_paths(tree: Tree, item: int) -> torch.Tensor:
    """Path lengths between all vertices, by Floyd and Warshall."""
    vertices = tree.parent.shape[1]
    length = torch.full((vertices, vertices), 10**6).fill_diagonal_(0)
    for vertex, parent in enumerate(tree.parent[item].tolist()):
        if vertex != parent:
            length[vertex, parent] = length[parent, vertex] = 1
    for middle in range(vertices):
        length = torch.minimum(length, length[:, middle, None] + length[None, middle])
    return length


def test_the_comb_by_hand():
    assert vertex_depth(comb()).tolist() == [[0, 1, 2, 1, 2, 3]]
    assert vertex_degree(comb()).tolist() == [[2, 3, 2, 1, 1, 1]]
    first, second = torch.tensor([[3, 4, 0, 5]]), torch.tensor([[5, 3, 0, 1]])
    assert path_length(comb(), first, second).tolist() == [[4, 3, 0, 2]]


def test_depth_of_a_batch_follows_the_parents():
    tree = some_tree()
    depth = vertex_depth(tree)
    above = depth.gather(1, tree.parent.long())
    assert torch.equal(depth, (above + 1) * (tree.parent != torch.arange(42)))


@pytest.mark.parametrize(
    'tree', [some_tree(), some_tree(root=20), raster_tree(2, 42), raster_tree(2, 42, 41)]
)
def test_path_lengths_equal_the_slow_ones(tree):
    pairs = torch.cartesian_prod(torch.arange(42), torch.arange(42))
    first, second = (end.expand(2, -1) for end in pairs.unbind(1))
    expected = torch.stack([slow_paths(tree, item).flatten() for item in (0, 1)])
    assert torch.equal(path_length(tree, first, second), expected)


def test_a_tree_of_one_vertex():
    tree = build_tree(torch.randn(2, 1, 1, 3))
    zero = torch.zeros(2, 1, dtype=torch.int64)
    assert torch.equal(path_length(tree, zero, zero), zero) and torch.equal(vertex_degree(tree), zero)
    assert share_changed(tree, tree).tolist() == [0, 0]
    assert share_inside(zero, tree).isnan().all()
    assert torch.equal(raster_tree(2, 1).order, tree.order)


def test_affinity_by_hand():
    decay = torch.tensor([9.0, 0.5, 0.2, 0.1, 0.3, 0.4]).view(1, 6, 1)
    expected = torch.tensor([[0.1, 0.2, 1.0, 0.01, 0.06, 0.4]])
    torch.testing.assert_close(affinity(decay, comb(), 2), expected)
    two = torch.cat([decay, torch.ones_like(decay)], dim=2)  # a channel that hears all alike
    torch.testing.assert_close(affinity(two, comb(), 2), (expected + 1) / 2)


def test_the_raster_scan_is_a_path_in_reading_order():
    tree = raster_tree(1, 6)
    assert tree.parent.tolist() == [[0, 0, 1, 2, 3, 4]] and tree.order.tolist() == [list(range(6))]
    assert raster_tree(1, 6, root=5).parent.tolist() == [[1, 2, 3, 4, 5, 5]]
    decay = torch.tensor([9.0, 0.5, 0.2, 0.1, 0.3, 0.4]).view(1, 6, 1)
    expected = torch.tensor([[0.1, 0.2, 1.0, 0.1, 0.03, 0.012]])
    torch.testing.assert_close(affinity(decay, tree, 2), expected)


def test_a_random_tree_spans_the_grid_and_follows_its_generator():
    def draw(seed):
        return random_tree(3, 5, 4, generator=torch.Generator().manual_seed(seed))

    tree = draw(1)
    vertex = torch.arange(20)
    rows, columns = (tree.parent // 4 - vertex // 4).abs(), (tree.parent % 4 - vertex % 4).abs()
    assert ((rows + columns == 1) | (tree.parent == vertex)).all()  # neighbours on the grid
    assert (vertex_degree(tree).sum(1) == 2 * 19).all()
    assert torch.equal(tree.parent, draw(1).parent)
    assert (share_changed(tree, draw(2)) > 0).all()
    assert random_tree(1, 5, 4, root=7).order[0, 0] == 7


@pytest.mark.parametrize('metric', METRICS)
def test_edge_weights_are_those_the_tree_was_built_from(metric):
    features = torch.randn(2, 4, 5, 3)
    all_weights = grid_edge_weight(features, metric)
    chosen = minimum_spanning_tree(all_weights, 4, 5)
    expected = all_weights.gather(1, chosen.long()).sort().values
    tree = build_tree(features, metric)  # rooted at vertex 0
    found = edge_weight(features.flatten(1, 2), tree, metric)[:, 1:].sort().values
    assert torch.equal(found, expected)


def test_edge_weights_between_vertices_apart_on_the_grid():
    vertices = torch.tensor([0.0, 1, 3, 7, 7, 2]).view(1, 6, 1)
    weight = edge_weight(vertices, raster_tree(1, 6), 'manhattan')
    assert weight[0, 1:].tolist() == [1, 2, 4, 0, 5]


def test_share_inside_by_hand():
    # 1 1 2
    # 1 2 2 : edges 0-3 and 0-1 and 2-5 inside; 1-4 and 1-2 across
    labels = torch.tensor([[1, 1, 2, 1, 2, 2]])
    assert share_inside(labels, comb()).tolist() == [3 / 5]
    assert share_inside(labels, raster_tree(1, 6)).tolist() == [2 / 5]  # 0-1 and 4-5
    assert share_inside(labels, comb(), ignore=2).tolist() == [1]  # 0-3 and 0-1 are left
    assert share_inside(torch.full((1, 6), 255), comb(), ignore=255).isnan().all()


def test_share_changed_by_hand():
    assert share_changed(comb(), comb(root=4)).tolist() == [0]
    other = breadth_first_order(torch.tensor([[0, 1, 2, 3, 6]], dtype=torch.int32), 2, 3)  # 4-5 for 1-2
    assert share_changed(comb(), other).tolist() == share_changed(other, comb()).tolist() == [1 / 5]


def test_trees_of_a_batch_are_compared_one_by_one():
    tree = some_tree()
    swapped = Tree(*(part.flip(0) for part in tree))
    share = share_changed(tree, swapped)
    assert share[0] == share[1] > 0
