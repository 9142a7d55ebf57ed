import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import shortest_path

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

DECAY = torch.tensor([9.0, 0.5, 0.2, 0.1, 0.3, 0.4]).view(1, 6, 1)


def comb(root: int = 0) -> Tree:
    """A 2 x 3 grid without the edges 3-4 and 4-5: ::

    0 - 1 - 2
    |   |   |
    3   4   5
    """
    return breadth_first_order(torch.tensor([[0, 1, 2, 3, 4]], dtype=torch.int32), 2, 3, root)


def test_the_comb_by_hand():
    assert vertex_depth(comb()).tolist() == [[0, 1, 2, 1, 2, 3]]
    assert vertex_degree(comb()).tolist() == [[2, 3, 2, 1, 1, 1]]
    expected = torch.tensor([[0.1, 0.2, 1.0, 0.01, 0.06, 0.4]])
    two = torch.cat([DECAY, torch.ones_like(DECAY)], dim=2)  # the second channel reaches all vertices alike
    torch.testing.assert_close(affinity(two, comb(), 2), (expected + 1) / 2)


@pytest.mark.parametrize('root', [0, 20])
def test_path_lengths_are_those_of_scipy(root):
    tree = build_tree(torch.randn(2, 6, 7, 3), 'euclidean', root)
    edges = torch.zeros(2, 42, 42).scatter_(2, tree.parent.long().unsqueeze(-1), 1).numpy()
    paths = [shortest_path(item, directed=False, unweighted=True) for item in edges]
    expected = torch.tensor(np.array(paths)).long()
    first, second = (end.expand(2, -1) for end in torch.cartesian_prod(*[torch.arange(42)] * 2).unbind(1))
    assert torch.equal(path_length(tree, first, second), expected.flatten(1))
    assert torch.equal(vertex_depth(tree), expected[:, root])


def test_the_raster_scan_is_a_path_in_reading_order():
    tree = raster_tree(1, 6)
    assert tree.parent.tolist() == [[0, 0, 1, 2, 3, 4]] and tree.order.tolist() == [list(range(6))]
    expected = torch.tensor([[0.1, 0.2, 1.0, 0.1, 0.03, 0.012]])
    torch.testing.assert_close(affinity(DECAY, tree, 2), expected)
    weight = edge_weight(torch.tensor([0.0, 1, 3, 7, 7, 2]).view(1, 6, 1), tree, 'manhattan')
    assert weight[0, 1:].tolist() == [1, 2, 4, 0, 5]


def test_a_random_tree_spans_the_grid_and_follows_its_generator():
    first, again, other = (
        random_tree(3, 5, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    vertex = torch.arange(20)
    rows, columns = (first.parent // 4 - vertex // 4).abs(), (first.parent % 4 - vertex % 4).abs()
    assert ((rows + columns == 1) | (first.parent == vertex)).all()  # neighbours on the grid
    assert (vertex_degree(first).sum(1) == 2 * 19).all()
    assert torch.equal(first.parent, again.parent) and (share_changed(first, other) > 0).all()


@pytest.mark.parametrize('metric', METRICS)
def test_edge_weights_are_those_the_tree_was_built_from(metric):
    features = torch.randn(2, 4, 5, 3)
    all_weights = grid_edge_weight(features, metric)
    chosen = minimum_spanning_tree(all_weights, 4, 5)
    expected = all_weights.gather(1, chosen.long()).sort().values
    found = edge_weight(features.flatten(1, 2), build_tree(features, metric), metric)
    assert torch.equal(found[:, 1:].sort().values, expected)


def test_shares_by_hand():
    labels = torch.tensor([[1, 1, 2, 1, 2, 2]])
    assert share_inside(labels, comb()).tolist() == [3 / 5]  # 0-3, 0-1 and 2-5, not 1-4 and 1-2
    assert share_inside(labels, comb(), ignore=2).tolist() == [1]
    assert share_changed(comb(), comb(root=4)).tolist() == [0]
    other = breadth_first_order(torch.tensor([[0, 1, 2, 3, 6]], dtype=torch.int32), 2, 3)  # 4-5 for 1-2
    same, changed = (Tree(*map(torch.cat, zip(comb(), one, strict=True))) for one in (comb(), other))
    assert share_changed(same, changed).tolist() == share_changed(changed, same).tolist() == [0, 1 / 5]
