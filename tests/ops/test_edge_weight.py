"""Edge weights: formulas, edge numbering, and the same bits as the reference."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from grootv import ops
from grootv.ops import reference
from grootv.ops.grid_graph import grid_edges
from tests.ops.cases import features


def test_edges_are_numbered_vertical_first_then_horizontal():
    # 0 - 1 - 2
    # |   |   |
    # 3 - 4 - 5
    expected = [[0, 3], [1, 4], [2, 5], [0, 1], [1, 2], [3, 4], [4, 5]]
    assert grid_edges(2, 3).tolist() == expected


def test_weights_of_a_drawn_map():
    # vectors (1, 0) | (0, 1)
    #         (1, 0) | (-1, 0)
    drawn = torch.tensor([[[[1.0, 0], [0, 1]], [[1, 0], [-1, 0]]]])
    weights = {metric: ops.grid_edge_weight(drawn, metric)[0].tolist() for metric in ops.METRICS}
    assert weights['cosine'] == pytest.approx([math.exp(-1), 1, 1, math.e], rel=1e-6)
    assert weights['euclidean'] == [0, 2, 2, 4]
    assert weights['manhattan'] == [0, 2, 2, 2]


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
    kind=st.sampled_from(['normal', 'equal', 'binary', 'special']),
)
def test_same_bits_as_the_reference(shape, metric, kind):
    maps = features(kind, *shape)
    found, expected = (library.grid_edge_weight(maps, metric) for library in (ops, reference))
    # NaN payloads may differ; everything else must not
    assert torch.equal(found.nan_to_num(-1), expected.nan_to_num(-1))


def test_zero_vectors_are_at_a_right_angle_to_everything():
    assert ops.grid_edge_weight(torch.zeros(1, 1, 2, 3)).tolist() == [[1.0]]


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_weighed_in_float32(dtype):
    maps = features('normal', 1, 3, 4, 20).to(dtype)
    found = ops.grid_edge_weight(maps)
    assert found.dtype == torch.float32
    assert torch.equal(found, ops.grid_edge_weight(maps.float()))


def test_non_contiguous_maps():
    maps = features('normal', 2, 4, 5, 6)
    view = maps.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not view.is_contiguous()
    assert torch.equal(ops.grid_edge_weight(view), ops.grid_edge_weight(maps))


def test_features_receive_no_gradient():
    maps = features('normal', 1, 3, 3, 2).requires_grad_()
    assert not ops.grid_edge_weight(maps).requires_grad


def test_unknown_metrics_list_the_known_ones():
    with pytest.raises(ValueError, match=r"one of cosine, euclidean, manhattan, got 'cosin'"):
        ops.grid_edge_weight(torch.ones(1, 2, 2, 1), 'cosin')


@pytest.mark.parametrize(
    ('maps', 'message'),
    [
        (torch.ones(2, 3, 4), r'features must have shape \(B, H, W, C\), got \(2, 3, 4\)'),
        (torch.ones(1, 2, 2, 1, dtype=torch.int32), 'features must be float32.*got int32'),
        (torch.ones(1, 0, 2, 1), 'at least one row and one column, got 0 x 2'),
    ],
)
def test_bad_input(maps, message):
    with pytest.raises(RuntimeError, match=f'grid_edge_weight: .*{message}'):
        ops.grid_edge_weight(maps)
