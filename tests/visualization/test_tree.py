import io

import numpy as np
import pytest
import torch

from grootv.ops import build_tree
from grootv.visualization.blocks import BlockTree
from grootv.visualization.tree import affinity_scale, draw, vertex_centres


def test_centres_lie_in_the_middle_of_the_cells():
    centres = vertex_centres((2, 3), (20, 60))
    assert centres.tolist() == [[10, 5], [30, 5], [50, 5], [10, 15], [30, 15], [50, 15]]


def test_the_scale_is_logarithmic_over_more_than_a_factor_of_ten():
    np.testing.assert_allclose(affinity_scale(0.2)([0.2, 0.6, 1]), [0, 0.5, 1])
    np.testing.assert_allclose(affinity_scale(0.01)([0.01, 0.1, 1]), [0, 0.5, 1])
    assert affinity_scale(0.0)(1e-9) == 0 and affinity_scale(1.0)(1.0) == 1


def test_edges_and_colours_of_the_drawing():
    guide = torch.tensor([[0.0, 1, 1], [5, 9, 1]]).view(1, 2, 3, 1)
    tree = build_tree(guide, 'manhattan')  # 0-1-2-5, 0-3-4
    block = BlockTree(guide, tree, 'manhattan', lambda _: torch.full((1, 6, 1), 0.5))
    figure = draw(np.zeros((20, 30, 3), np.uint8), block, [0, 5], r'a$\no formula$')
    figure.savefig(io.BytesIO())
    assert figure.get_suptitle() == r'a$\no formula$'
    by_depth, by_weight, along_tree, along_raster = figure.axes[:4]
    assert by_depth.collections[0].get_array().tolist() == [1, 2, 1, 2, 3]
    assert by_weight.collections[0].get_array().tolist() == [1, 0, 5, 4, 0]
    first = by_depth.collections[0].get_segments()[0]
    assert first.tolist() == [[15, 5], [5, 5]]  # from vertex 1 to its parent 0
    assert 'tree' in along_tree.get_title() and 'raster' in along_raster.get_title()
    opacity = [axes.images[1].get_array()[1, 1, 3] for axes in (along_tree, along_raster)]
    assert opacity[0] > opacity[1]  # vertex 4 is two edges away from vertex 0, and four in reading order


@pytest.mark.parametrize('features', [torch.ones(1, 1, 1, 3), torch.full((1, 3, 3, 2), torch.nan)])
def test_one_vertex_and_features_of_nan_can_be_drawn(features):
    decay = features.flatten(1, 2)
    block = BlockTree(features, build_tree(features), 'cosine', lambda _: decay)
    draw(np.zeros((8, 8, 3), np.uint8), block, [0], 'a title').savefig(io.BytesIO())
