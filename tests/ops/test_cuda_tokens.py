"""The CUDA operators over tokens against the CPU's, as test_cuda.py has the others."""

import importlib
import itertools

import pytest
import torch

from grootv import ops
from tests.ops.cases import SCAN_DTYPES, assert_same_tree
from tests.ops.cuda_backend import Backend, assert_close, assert_close_sums, graphs
from tests.ops.test_token_scan import EVERY_TREE, inputs, tree_over


@pytest.mark.parametrize('dtype', SCAN_DTYPES)
def test_token_edge_weights_are_equal(backend, dtype):
    shapes = [(1, 1, 3, 4), (0, 5, 3, 4), (2, 2, 7, 1), (3, 30, 40, 16), (2, 70, 33, 20)]
    for (batch, length, channels, states), reach in itertools.product(shapes, (1, 3, 5)):
        x, B = torch.randn(batch, length, channels).to(dtype), torch.randn(batch, length, states).to(dtype)
        x[:, ::5], B[:, 1::7, ::2] = 0, torch.nan
        context = torch.randint(0, length + 1, (batch, 2), dtype=torch.int32)
        found = backend.token_edge_weight(x, B, context, reach)
        expected = ops.token_edge_weight(x, B, context, reach)
        assert torch.equal(found.nan_to_num(9), expected.nan_to_num(9))
    x = torch.randn(2, 40, 16).to(dtype)
    strided = x.mT, x[:, ::2, ::2][:, :16], context
    assert torch.equal(backend.token_edge_weight(*strided, 3), ops.token_edge_weight(*strided, 3))


@pytest.mark.parametrize('causal', [False, True])
def test_token_trees_are_equal(backend, monkeypatch, causal):
    for batch, length, reach in [(1, 1, 3), (0, 4, 3), (2, 2, 3), (3, 40, 2), (2, 200, 3), (6, 70, 5)]:
        x, B = torch.randn(batch, length, 5), torch.rand(batch, length, 3)
        context = torch.randint(0, length + 1, (batch, 2))
        expected = ops.token_tree(x, B, context, reach, causal)
        with monkeypatch.context() as patch:
            patch.setenv('GROOTV_NO_WAIT', '1')
            patch.setattr(importlib.import_module('grootv.ops.tokens'), 'ops', backend)
            assert_same_tree(ops.token_tree(x, B, context, reach, causal), expected)


def token_tree_over(kind: str, batch: int, length: int) -> ops.Tree:
    """A tree rooted at the last token, also of the forms of :func:`graphs`."""
    if kind in EVERY_TREE:
        return tree_over(kind, batch, length)
    edges = next(edges for name, edges, _ in graphs(length) if name == kind)[-length + 1 :]
    every = torch.arange(length - 1, dtype=torch.int32).repeat(batch, 1)
    return ops.breadth_first_order_from_edges(length - 1 - edges, every, length, length - 1)


def assert_same_token_scans(backend, shape, kind, dtype, bias=True, softplus=True):
    *tensors, shift = inputs(*shape, dtype, bias, softplus)
    tree = token_tree_over(kind, *shape[:2])
    arguments = (*tensors, shift, tree.order, tree.parent, softplus)
    grads = torch.randn(shape[:3]).to(dtype), torch.randn(shape[0], *shape[2:], dtype=tensors[2].dtype)
    expected = torch.ops.grootv.token_scan(*arguments)
    for ours, theirs in zip(backend.token_scan(*arguments), expected, strict=True):
        assert_close(ours, theirs)
    expected = torch.ops.grootv.token_scan_backward(*grads, *arguments)
    for i, (ours, theirs) in enumerate(
        zip(backend.token_scan_backward(*grads, *arguments), expected, strict=True)
    ):
        (assert_close if i < 2 else assert_close_sums)(ours, theirs)


@pytest.mark.parametrize('dtype', SCAN_DTYPES)
@pytest.mark.parametrize('kind', [*EVERY_TREE, 'star', 'comb', 'binary'])
def test_token_scans_and_their_gradients(backend, kind, dtype):
    shapes = [(2, 2, 5, 3), (2, 33, 33, 16), (1, 64, 4, 20), (3, 17, 70, 35)]
    forms = [(True, True), (False, True), (True, False), (False, False)]
    for shape, form in zip(shapes, forms, strict=True):
        assert_same_token_scans(backend, shape, kind, dtype, *form)


@pytest.mark.parametrize('shape', [(1, 1, 1, 1), (0, 3, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_token_scans_of_little_or_nothing(backend, shape):
    assert_same_token_scans(backend, shape, 'chain', torch.float32)


@pytest.mark.parametrize('kind', ['published', 'binary'])
def test_token_scans_whose_rows_do_not_fit_into_shared_memory(monkeypatch, kind):
    monkeypatch.setenv('GROOTV_SHARED_BYTES', '40000')
    assert_same_token_scans(Backend('emulated'), (2, 130, 5, 20), kind, torch.float64)


def test_token_scans_of_a_text(backend):
    length, channels = (300, 3) if backend.name == 'emulated' else (5000, 70)
    for kind in ('published', 'causal'):
        assert_same_token_scans(backend, (1, length, channels, 16), kind, torch.float32)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_token_trees_that_are_none_give_nan(backend, dtype):
    *tensors, bias = inputs(2, 20, 5, 3, dtype)
    tree = tree_over('causal', 2, 20)
    grads = tensors[0].flip(1), torch.randn(2, 5, 3)
    wrong = {
        'a vertex twice': (tree.order.clone().index_fill_(1, torch.tensor([1]), 19), tree.parent),
        'no vertex': (tree.order.clone().index_fill_(1, torch.tensor([2]), 20), tree.parent),
        'no parent': (tree.order, tree.parent.clone().index_fill_(1, torch.tensor([3]), -1)),
        'a cycle': (tree.order, torch.arange(20, dtype=torch.int32).expand(2, -1)),
        'another root': (19 - tree.order, (19 - tree.parent).flip(1)),
    }
    for name, bad in wrong.items():
        given = (*tensors, bias, *bad, True)
        for result in (*backend.token_scan(*given), *backend.token_scan_backward(*grads, *given)):
            assert result.isnan().all(), name
    order = tree.order.clone()
    order[0, 1] = order[0, 0]
    expected = torch.ops.grootv.token_scan(*tensors, bias, tree.order, tree.parent, True)
    for ours, theirs in zip(
        backend.token_scan(*tensors, bias, order, tree.parent, True), expected, strict=True
    ):
        assert ours[0].isnan().all()
        assert_close(ours[1:], theirs[1:])
    # One token leaves nothing to go wrong but its name.
    *tensors, bias = inputs(1, 1, 5, 3, dtype)
    given = (*tensors, bias, torch.ones(1, 1, dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32), True)
    for result in backend.token_scan_backward(tensors[0], torch.randn(1, 5, 3), *given):
        assert result.isnan().all()
