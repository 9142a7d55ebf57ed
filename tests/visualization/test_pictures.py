"""What a picture and its figures show is what the network computed with."""

import io
import json

import numpy as np
import pytest
import torch

from grootv.models import GrootV
from grootv.ops import build_tree
from grootv.visualization import statistics
from grootv.visualization.blocks import BlockTree, recorded, scans
from grootv.visualization.tree import affinity_scale, draw


def block_of(guide: torch.Tensor) -> BlockTree:
    tree = build_tree(guide, 'manhattan')
    return BlockTree(guide, tree, 'manhattan', lambda _: torch.full((1, guide[..., 0].numel(), 1), 0.5))


# A 2 x 3 map whose tree is 0-1-2-5 and 0-3-4, with weights 1 0 0 and 5 4.
STEPS = torch.tensor([[0.0, 1, 1], [5, 9, 1]]).view(1, 2, 3, 1)


def measured(guide: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, statistics.Sample]:
    return statistics.measure(block_of(guide), labels, 0, torch.Generator().manual_seed(0))


@pytest.mark.parametrize('tree_per', ['block', 'stage'])
def test_the_recorded_trees_are_those_of_the_scans(tree_per):
    arch = dict(embed_dims=8, depths=[1, 2, 1, 1])
    network, used = GrootV(arch, metric='manhattan', tree_per=tree_per).eval(), {}
    for place, ssm in scans(network).items():
        ssm.register_forward_hook(lambda module, args, output, place=place: used.update({place: output[1]}))
    with recorded(network) as found:
        network(torch.randn(2, 3, 32, 40))
    assert list(found) == [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0)]
    block = found[1, 1]
    assert block.grid == (4, 5) and block.vertices.shape == (2, 20, 32) and block.metric == 'manhattan'
    assert torch.equal(block.tree.parent, used[1, 1].parent)
    assert torch.equal(found[1, 0].tree.parent, block.tree.parent) == (tree_per == 'stage')
    decay = block.decay_along(block.tree)
    assert decay.shape == (2, 20, 32) and (decay > 0).all() and (decay < 1).all()
    assert not decay.requires_grad and not block.features.requires_grad

    network(torch.randn(2, 3, 32, 40))
    assert found[1, 1] is block  # nothing is kept outside


def test_figures_by_hand():
    found = measured(STEPS, torch.tensor([[1, 1, 1, 2, 2, 0]]))
    tree, raster = (statistics.figures(found[kind]) for kind in ('tree', 'raster'))
    assert tree['edge_weight_mean'] == 2 and tree['edge_weight_max'] == 5
    assert tree['depth_mean'] == 1.5 and tree['depth_max'] == 3
    assert tree['degree_mean'] == pytest.approx(10 / 6, abs=1e-5)
    assert tree['path_length_mean'] == pytest.approx(70 / 36, abs=0.15)
    assert tree['inside_label'] == 0.75  # 0-1, 1-2 and 3-4 of four: 2-5 is not counted
    assert raster['edge_weight_mean'] == pytest.approx((1 + 0 + 4 + 4 + 8) / 5)
    assert raster['path_length_max'] == 5 and raster['inside_label'] == 0.75
    assert len(found['random'].inside) == statistics.RANDOM_TREES


def test_histograms_count_everything_once():
    found = statistics.histograms(measured(torch.randn(1, 8, 9, 4)))
    assert sum(found['edge_weight']['tree']) == 71 and sum(found['edge_weight']['random']) == 710
    assert sum(found['depth']['tree']) == 72 and found['depth']['raster'][0] == 1
    assert found['degree']['raster'] == [0, 2, 70, 0, 0]


@pytest.mark.parametrize('guide', [torch.ones(1, 1, 1, 2), torch.full((1, 3, 3, 2), torch.nan)])
def test_one_vertex_and_features_of_nan_can_be_drawn(guide):
    found = measured(guide)
    assert statistics.figures(found['tree'])['edge_weight_mean'] is None
    assert json.loads(json.dumps(statistics.histograms(found), allow_nan=False))
    statistics.draw_histograms(statistics.histograms(found), 'cosine', 'title').savefig(io.BytesIO())
    draw(np.zeros((8, 8, 3), np.uint8), block_of(guide), [0], 'a title').savefig(io.BytesIO())


def test_the_scale_is_logarithmic_over_more_than_a_factor_of_ten():
    np.testing.assert_allclose(affinity_scale(0.2)([0.2, 0.6, 1]), [0, 0.5, 1])
    np.testing.assert_allclose(affinity_scale(0.01)([0.01, 0.1, 1]), [0, 0.5, 1])
    assert affinity_scale(0.0)(1e-9) == 0 and affinity_scale(1.0)(1.0) == 1


def test_edges_and_colours_of_the_drawing():
    figure = draw(np.zeros((20, 30, 3), np.uint8), block_of(STEPS), [0, 5], r'a$\no formula$')
    figure.savefig(io.BytesIO())
    assert figure.get_suptitle() == r'a$\no formula$'
    by_depth, by_weight, along_tree, along_raster = figure.axes[:4]
    assert by_depth.collections[0].get_array().tolist() == [1, 2, 1, 2, 3]
    assert by_weight.collections[0].get_array().tolist() == [1, 0, 5, 4, 0]
    assert by_depth.collections[0].get_segments()[0].tolist() == [[15, 5], [5, 5]]  # from 1 to its parent 0
    assert 'tree' in along_tree.get_title() and 'raster' in along_raster.get_title()
    opacity = [axes.images[1].get_array()[1, 1, 3] for axes in (along_tree, along_raster)]
    assert opacity[0] > opacity[1]  # vertex 4 is two edges away from vertex 0, and four in reading order
