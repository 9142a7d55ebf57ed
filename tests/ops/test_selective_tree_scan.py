"""The selective tree scan: a drawn tree, the reference, gradients, dtypes, exp and softplus, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grootv import ops
from grootv.ops import reference
from tests.ops.cases import GRIDS, SCAN_DTYPES, features, trained

EVERY_FORM = [(bias, softplus) for bias in (True, False) for softplus in (True, False)]


def inputs(
    batch: int, height: int, width: int, channels: int, dtype=torch.float64, bias=True, softplus=True
) -> tuple[tuple[Tensor | None, ...], ops.Tree]:
    """x, delta, A, B and delta_bias, whose decays lie in (0, 1), and the spanning tree of a random map."""
    generator = torch.Generator().manual_seed(height * 1000 + width * 10 + channels)
    vertices, wide = height * width, torch.promote_types(dtype, torch.float32)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, delta = normal(batch, vertices, channels), normal(batch, vertices, channels)
    rate, write, shift = -normal(channels).exp(), normal(batch, vertices), normal(channels)
    if not softplus:
        delta, shift = delta.abs(), shift.abs()
    tensors = x.to(dtype), delta.to(dtype), rate.to(wide), write.to(dtype), shift.to(wide) if bias else None
    return tensors, ops.build_tree(features('normal', batch, height, width, 4))


def call(library, tensors, tree, softplus=True):
    *tensors, bias = tensors
    return library.selective_tree_scan(*tensors, tree, bias, softplus)


def test_a_drawn_tree():
    #   0 -- 1         steps 1, 2; A = -log 2: decays 1/2, 1/4
    edges, tree_edges = torch.tensor([[0, 1]]), torch.zeros(1, 1, dtype=torch.int32)
    tree = ops.breadth_first_order_from_edges(edges, tree_edges, 2)
    x, write = torch.tensor([[[3.0], [5.0]]]), torch.tensor([[1.0, 2.0]])
    delta, rate = torch.tensor([[[0.5], [1.5]]]), -torch.tensor([2.0]).log()
    h = ops.selective_tree_scan(x, delta, rate, write, tree, torch.tensor([0.5]), delta_softplus=False)
    torch.testing.assert_close(h.flatten(), torch.tensor([3 + 20 / 4, 20 + 3 / 4]))


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 5), st.integers(1, 5), st.integers(0, 150)),
    dtype=st.sampled_from(SCAN_DTYPES),
    form=st.sampled_from(EVERY_FORM),
)
def test_equals_the_reference(shape, dtype, form):
    bias, softplus = form
    tensors, tree = inputs(*shape, dtype, bias, softplus)
    found, expected = (call(library, tensors, tree, softplus) for library in (ops, reference))
    assert found.dtype == dtype
    # exp and softplus differ from PyTorch's by a few units in the last place of the accumulator
    tolerance = 1e-12 if dtype == torch.float64 else max(2e-6, torch.finfo(dtype).eps)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize(('bias', 'softplus'), EVERY_FORM)
@pytest.mark.parametrize(('height', 'width'), [(1, 1), (1, 4), (3, 4)])
def test_gradcheck(height, width, bias, softplus):
    tensors, tree = inputs(2, height, width, 3, bias=bias, softplus=softplus)
    copies, given = trained(tensors)
    assert torch.autograd.gradcheck(lambda *_: call(ops, copies, tree, softplus), given)


@pytest.mark.parametrize(('bias', 'softplus'), EVERY_FORM)
@pytest.mark.parametrize('dtype', SCAN_DTYPES)
def test_gradients_of_every_dtype(dtype, bias, softplus):
    tensors, tree = inputs(2, 5, 7, 150, dtype, bias, softplus)
    (copies, given), (exact, wanted) = trained(tensors), trained(tensors, torch.float64)
    h, expected = call(ops, copies, tree, softplus), call(reference, exact, tree, softplus)
    weight = torch.randn_like(expected).to(dtype)
    grads = torch.autograd.grad(h, given, weight)
    expected_grads = torch.autograd.grad(expected, wanted, weight.double())
    for grad, leaf, expected in zip(grads, given, expected_grads, strict=True):
        assert grad.dtype == leaf.dtype
        # one rounding to the dtype after sums of many terms in the accumulator
        relative = max(torch.finfo(dtype).eps, 1e-6) if dtype != torch.float64 else 1e-13
        assert (grad.double() - expected).norm() <= relative * expected.norm()


def test_small_states_as_mamba_stores_them():
    tensors, tree = inputs(2, 3, 4, 5)
    copies, given = trained(tensors)
    stored, leaves = trained([*tensors[:2], tensors[2].unsqueeze(1), tensors[3].unsqueeze(2), tensors[4]])
    h, same = call(ops, copies, tree), call(ops, stored, tree)
    assert torch.equal(h, same)
    grads, found = torch.autograd.grad(h.sum(), given), torch.autograd.grad(same.sum(), leaves)
    for grad, other, leaf in zip(grads, found, leaves, strict=True):
        assert other.shape == leaf.shape
        assert torch.equal(other.flatten(), grad.flatten())


def test_half_signals_take_half_or_single_rates():
    (x, delta, rate, write, bias), tree = inputs(1, 3, 3, 4, torch.bfloat16)
    rate, bias = rate.bfloat16(), bias.bfloat16()
    copies, given = trained([x, delta, rate, write, bias])
    h = call(ops, copies, tree)
    assert torch.equal(h, call(ops, [x, delta, rate.float(), write, bias.float()], tree))
    grads = torch.autograd.grad(h.sum(), given)
    assert all(grad.dtype == torch.bfloat16 for grad in grads)


@pytest.mark.parametrize('batch', [1, 3])
def test_any_number_of_threads_returns_the_same_bits(batch):
    tensors, tree = inputs(batch, 20, 20, 300, torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            copies, given = trained(tensors)
            h = call(ops, copies, tree)
            results.append((h, *torch.autograd.grad(h.square().sum(), given)))
    finally:
        torch.set_num_threads(threads)
    for one, two, five in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, five)


def test_sums_over_many_vertices_keep_their_digits():
    vertices = 40_000
    edges = torch.stack([torch.arange(vertices - 1), torch.arange(1, vertices)], 1)
    tree = ops.breadth_first_order_from_edges(
        edges, torch.arange(vertices - 1, dtype=torch.int32).unsqueeze(0), vertices
    )
    x = torch.full((1, vertices, 1), 0.1)
    rate = torch.tensor([-1e4])  # decays of 0: every vertex alone
    bias = torch.zeros(1, requires_grad=True)
    h = ops.selective_tree_scan(x, torch.ones_like(x), rate, torch.ones(1, vertices), tree, bias, False)
    (grad,) = torch.autograd.grad(h.sum(), bias)
    # one after the other in float32 they would be off by 5e-4
    torch.testing.assert_close(grad, x.double().sum((0, 1)).float(), rtol=1e-6, atol=0)


def test_inputs_are_left_alone_and_may_be_strided():
    tensors, tree = inputs(2, 4, 5, 6)
    copies = [tensor.clone() for tensor in tensors]
    expected = call(ops, tensors, tree)
    assert all(map(torch.equal, tensors, copies))
    x, delta, rate, write, bias = tensors
    strided = [
        *(tensor.mT.contiguous().mT for tensor in (x, delta)),
        torch.stack([rate, rate], 1)[:, 0],
        write.T.contiguous().T,
        torch.stack([bias, bias], 1)[:, 0],
    ]
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert torch.equal(call(ops, strided, tree), expected)


@pytest.mark.parametrize(('height', 'width'), GRIDS)
def test_extreme_steps(height, width):
    tensors, tree = inputs(2, height, width, 3, torch.float32)
    for step in (-100.0, 50.0, -math.inf):
        tensors = (tensors[0], torch.full_like(tensors[1], step), *tensors[2:4], None)
        copies, given = trained(tensors)
        h = call(ops, copies, tree)
        torch.testing.assert_close(h, call(reference, tensors, tree), rtol=1e-5, atol=1e-12)
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(h.sum(), given[:4]))


def test_nan_passes_through():
    tensors, tree = inputs(1, 4, 4, 20, torch.float32)
    tensors[1][0, 5, 3] = math.nan
    copies, given = trained(tensors)
    h = call(ops, copies, tree)
    assert h[0, :, 3].isnan().all()
    assert h.isnan().sum() == 16
    assert torch.autograd.grad(h.sum(), given)[1][0, 5, 3].isnan()


def units(found: Tensor, expected: Tensor) -> float:
    """Greatest difference in float32's units in the last place of the expected float64 values."""
    rounded = expected.float()
    unit = (torch.nextafter(rounded, torch.full_like(rounded, math.inf)) - rounded).double()
    return ((found.double() - expected) / unit).abs().max().item()


def test_exp_and_softplus_are_off_by_few_units():
    # Channels carry arguments: of vertices 0 -- 1, the first hears exp(A) of the second and nothing else.
    arguments = torch.cat([torch.linspace(-110, 88.7, 100_001), torch.linspace(-1, 1, 20_001)])
    tree = ops.build_tree(torch.rand(1, 1, 2, 1))
    x = torch.tensor([0.0, 1.0]).view(1, 2, 1).expand(1, 2, len(arguments))
    write = torch.ones(1, 2)
    ones = torch.ones_like(x)
    decay = ops.selective_tree_scan(x, ones, arguments, write, tree, delta_softplus=False)[0, 0]
    assert units(decay, arguments.double().exp()) < 1.5
    # A vertex of weight 1 alone has its own step for its state.
    alone, wide = ops.build_tree(torch.rand(1, 1, 1, 1)), arguments.double().requires_grad_()
    delta = arguments.view(1, 1, -1).clone().requires_grad_()
    one = torch.ones_like(arguments)
    step = ops.selective_tree_scan(one.view(1, 1, -1), delta, one, write[:, :1], alone)
    exact = F.softplus(wide, threshold=40)
    assert units(step.flatten(), exact.detach()) < 2.5
    (slope,), (exact_slope,) = (torch.autograd.grad(f.sum(), v) for f, v in ((step, delta), (exact, wide)))
    assert units(slope.flatten(), exact_slope) < 3


def test_exp_of_infinities():
    rate = torch.tensor([-math.inf, math.inf, -200.0, 200.0, 0.0, -0.0, math.nan])
    tree = ops.build_tree(torch.rand(1, 1, 2, 1))
    x = torch.tensor([0.0, 1.0]).view(1, 2, 1).expand(1, 2, 7)
    h = ops.selective_tree_scan(x, torch.ones_like(x), rate, torch.ones(1, 2), tree, delta_softplus=False)
    torch.testing.assert_close(h[0, 0], rate.exp(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_scans_in_float32(dtype):
    tensors, tree = inputs(1, 4, 4, 3, dtype)
    with torch.autocast('cpu', dtype):
        found = call(ops, tensors, tree)
        exact = call(ops, [tensor.double() for tensor in tensors], tree)
    assert found.dtype == torch.float32
    assert exact.dtype == torch.float64
    assert torch.equal(found, call(ops, [tensor.float() for tensor in tensors], tree))


def test_nothing_but_the_inputs_is_kept_for_the_backward_pass():
    tensors, tree = inputs(1, 4, 4, 3)
    copies, given = trained(tensors)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
        call(ops, copies, tree)
    ours = {tensor.data_ptr() for tensor in (*given, *tree)}
    assert kept and {tensor.data_ptr() for tensor in kept} <= ours


def test_second_derivatives_are_refused_with_a_sentence():
    copies, given = trained(inputs(1, 2, 2, 1)[0])
    tree = ops.build_tree(torch.rand(1, 2, 2, 1))
    (grad,) = torch.autograd.grad(call(ops, copies, tree).square().sum(), given[1], create_graph=True)
    with pytest.raises(NotImplementedError, match='selective_tree_scan: the second derivative'):
        grad.sum().backward()


def bad_calls():
    (x, delta, rate, write, bias), tree = inputs(2, 3, 3, 4, torch.float32)
    tensors = dict(x=x, delta=delta, A=rate, B=write, delta_bias=bias, tree=tree)
    swapped = tree._replace(order=tree.order.flip(1))
    beyond = tree._replace(parent=tree.parent.clone().index_fill_(1, torch.tensor([3]), 99))
    half = [tensor.half() for tensor in (x, delta, write)]
    return {
        message: {**tensors, **changed}
        for message, changed in {
            'x must have shape (B, L, C), got (2, 36)': dict(x=x.flatten(1)),
            'x must have at least one vertex, got shape (2, 0, 4)': dict(x=x[:, :0]),
            'x must be float32, float64, float16 or bfloat16, got int32': dict(x=x.int()),
            'delta needs one value per vertex and channel, shape (2, 9, 4), got (2, 9, 3)': dict(
                delta=delta[..., :3]
            ),
            'delta must be float32, got float64': dict(delta=delta.double()),
            'A needs one value per channel, shape (4), got (4, 16)': dict(A=rate.view(-1, 1).expand(4, 16)),
            'B needs one value per vertex, shape (2, 9), got (2, 4)': dict(B=write[:, :4]),
            'B must be float16, got float32': dict(x=half[0], delta=half[1]),
            'delta_bias needs one value per channel, shape (4), got (5)': dict(delta_bias=torch.zeros(5)),
            'order needs one entry per vertex of each item, shape (2, 9), got (1, 9)': dict(
                tree=ops.Tree(*(field[:1] for field in tree))
            ),
            'order must be int32, got int64': dict(tree=tree._replace(order=tree.order.long())),
            'order and parent must be a tree in breadth-first order, but those of item ': dict(tree=swapped),
            'order and parent must be a tree in breadth-first order, but those of': dict(tree=beyond),
            'all tensors must be on one device, but B is on another than the first': dict(B=write.to('meta')),
        }.items()
    }


@pytest.mark.parametrize('message', bad_calls())
def test_bad_input(message):
    with pytest.raises(RuntimeError) as error:
        ops.selective_tree_scan(**bad_calls()[message])
    assert str(error.value).startswith(f'selective_tree_scan: {message}')
