import io
import json

import numpy as np
import pytest
import torch

from grootv.ops import build_tree
from grootv.visualization import statistics
from grootv.visualization.blocks import BlockTree


def measured(guide: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, statistics.Sample]:
    block = BlockTree(guide, build_tree(guide, 'manhattan'), 'manhattan', lambda _: torch.ones(1, 1, 1))
    return statistics.measure(block, labels, 0, torch.Generator().manual_seed(0))


def steps() -> torch.Tensor:
    """A 2 x 3 map whose tree is 0-1-2-5 and 0-3-4, with weights 1 0 0 and 5 4."""
    return torch.tensor([[0.0, 1, 1], [5, 9, 1]]).view(1, 2, 3, 1)


def test_figures_by_hand():
    found = measured(steps(), torch.tensor([[1, 1, 1, 2, 2, 0]]))
    tree = statistics.figures(found['tree'])
    assert tree['edge_weight_mean'] == 2 and tree['edge_weight_max'] == 5
    assert tree['depth_mean'] == 1.5 and tree['depth_max'] == 3
    assert tree['degree_mean'] == pytest.approx(10 / 6, abs=1e-5)
    assert tree['inside_label'] == 0.75  # 0-1, 1-2 and 3-4 of four: 2-5 is not counted
    raster = statistics.figures(found['raster'])
    assert raster['edge_weight_mean'] == pytest.approx((1 + 0 + 4 + 4 + 8) / 5)
    assert raster['path_length_max'] == 5 and raster['inside_label'] == 0.75
    assert len(found['random'].inside) == statistics.RANDOM_TREES


def test_mean_path_length_is_that_of_all_pairs():
    found = statistics.figures(measured(torch.zeros(1, 1, 7, 1))['tree'])
    expected = np.abs(np.subtract.outer(range(7), range(7))).mean()
    assert found['path_length_mean'] == pytest.approx(expected, abs=0.15)


def test_histograms_count_everything_once():
    found = statistics.histograms(measured(torch.randn(1, 8, 9, 4)))
    assert sum(found['edge_weight']['tree']) == 71 and sum(found['edge_weight']['random']) == 710
    for name in ('depth', 'degree'):
        assert sum(found[name]['tree']) == 72 and sum(found[name]['raster']) == 72
    assert found['degree']['raster'] == [0, 2, 70, 0, 0]
    assert found['depth']['bins'][0] == 0 and found['depth']['raster'][0] == 1


@pytest.mark.parametrize('guide', [torch.ones(1, 1, 1, 2), torch.full((1, 3, 3, 2), torch.nan)])
def test_what_is_not_finite_becomes_null(guide):
    found = measured(guide)
    figures = statistics.figures(found['tree'])
    assert figures['edge_weight_mean'] is None
    assert json.loads(json.dumps(statistics.histograms(found), allow_nan=False))
    statistics.draw_histograms(statistics.histograms(found), 'cosine', 'title').savefig(io.BytesIO())
