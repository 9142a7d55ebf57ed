"""The scan over tokens: drawn cases, the reference, Mamba's recurrence, gradients, dtypes, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grootv import ops
from grootv.ops import reference
from tests.ops.cases import SCAN_DTYPES, trained

EVERY_FORM = [(bias, softplus) for bias in (True, False) for softplus in (True, False)]
EVERY_TREE = ['chain', 'published', 'causal', 'random']


def inputs(
    batch: int, length: int, channels: int, states: int, dtype=torch.float64, bias=True, softplus=True
) -> tuple[Tensor | None, ...]:
    """x, delta, A, B, C and delta_bias, whose decays lie in (0, 1)."""
    generator = torch.Generator().manual_seed(length * 1000 + channels * 10 + states)
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, delta = normal(batch, length, channels), normal(batch, length, channels)
    rate, shift = -normal(channels, states).exp(), normal(channels)
    write, read = normal(batch, length, states), normal(batch, length, states)
    if not softplus:
        delta, shift = delta.abs(), shift.abs()
    signals = (tensor.to(dtype) for tensor in (x, delta, write, read))
    x, delta, write, read = signals
    return x, delta, rate.to(wide), write, read, shift.to(wide) if bias else None


def tree_over(kind: str, batch: int, length: int) -> ops.Tree:
    if kind == 'chain':
        return ops.token_chain(batch, length)
    if kind == 'random':  # any parent, as no sequence has it
        generator = torch.Generator().manual_seed(length)
        items = []
        for _ in range(batch):
            name = torch.randperm(length - 1, generator=generator).tolist()
            name = [length - 1, *name]
            edges = [(name[i], name[torch.randint(i, (), generator=generator)]) for i in range(1, length)]
            items.append(edges)
        edges = torch.tensor(items, dtype=torch.int32).view(batch, length - 1, 2)
        every = torch.arange(length - 1, dtype=torch.int32).repeat(batch, 1)
        return ops.breadth_first_order_from_edges(edges, every, length, root=length - 1)
    generator = torch.Generator().manual_seed(length)
    features = torch.randn(batch, length, 4, generator=generator)
    context = torch.tensor([[0, length]], dtype=torch.int32).repeat(batch, 1)
    return ops.token_tree(features, torch.ones(batch, length, 1), context, causal=kind == 'causal')


def call(library, tensors, tree, softplus=True):
    *tensors, bias = tensors
    return library.token_scan(*tensors, tree, bias, softplus)


def test_a_drawn_tree():
    # 0 and 1 hang from 2; A = -log 2 and steps 1, 2, 3: 0 arrives with exp(2 A) = 1/4, the decay of token 1,
    # which follows it in the text, and 1 with 1/8
    edges, tree_edges = torch.tensor([[0, 2], [1, 2]]), torch.tensor([[0, 1]], dtype=torch.int32)
    tree = ops.breadth_first_order_from_edges(edges, tree_edges, 3, root=2)
    x, delta = torch.tensor([[[8.0], [4.0], [1.0]]]), torch.tensor([[[1.0], [2.0], [3.0]]])
    rate, write, read = (
        -torch.tensor([[2.0]]).log(),
        torch.ones(1, 3, 1),
        torch.tensor([[[1.0], [1.0], [10.0]]]),
    )
    y, state = ops.token_scan(x, delta, rate, write, read, tree, delta_softplus=False)
    torch.testing.assert_close(state, torch.tensor([[[8 / 4 + 8 / 8 + 3]]]))
    torch.testing.assert_close(y.flatten(), torch.tensor([8.0, 8.0, 60.0]))


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 30), st.integers(0, 70), st.integers(1, 20)),
    dtype=st.sampled_from(SCAN_DTYPES),
    form=st.sampled_from(EVERY_FORM),
    kind=st.sampled_from(EVERY_TREE),
)
def test_equals_the_reference(shape, dtype, form, kind):
    bias, softplus = form
    tensors, tree = inputs(*shape, dtype, bias, softplus), tree_over(kind, *shape[:2])
    y, state = call(ops, tensors, tree, softplus)
    exact = [None if tensor is None else tensor.double() for tensor in tensors]
    expected_y, expected_state = call(reference, exact, tree, softplus)
    assert y.dtype == dtype
    assert state.dtype == torch.promote_types(dtype, torch.float32)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(state.double(), expected_state, rtol=tolerance, atol=tolerance)
    tolerance = max(tolerance, 2 * torch.finfo(dtype).eps)
    torch.testing.assert_close(y.double(), expected_y, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize('states', [3, 16])
def test_a_chain_is_the_recurrence(states):
    x, delta, rate, write, read, bias = inputs(2, 12, 5, states)
    y, last = ops.token_scan(x, delta, rate, write, read, ops.token_chain(2, 12), bias)
    step = torch.nn.functional.softplus(delta + bias)
    state = torch.zeros(2, 5, states, dtype=torch.float64)
    for t in range(12):
        state = torch.exp(step[:, t].unsqueeze(-1) * rate) * state
        state += (step[:, t] * x[:, t]).unsqueeze(-1) * write[:, t].unsqueeze(1)
        torch.testing.assert_close(y[:, t], (state @ read[:, t].unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(last, state)


@pytest.mark.parametrize(('bias', 'softplus'), EVERY_FORM)
@pytest.mark.parametrize('kind', EVERY_TREE)
def test_gradcheck(kind, bias, softplus):
    copies, given = trained(inputs(2, 6, 3, 2, bias=bias, softplus=softplus))
    tree = tree_over(kind, 2, 6)
    assert torch.autograd.gradcheck(lambda *_: call(ops, copies, tree, softplus), given)


@pytest.mark.parametrize('kind', ['chain', 'random'])
@pytest.mark.parametrize('dtype', SCAN_DTYPES)
def test_gradients_of_every_dtype(dtype, kind):
    tensors, tree = inputs(2, 40, 70, 20, dtype), tree_over(kind, 2, 40)
    (copies, given), (exact, wanted) = trained(tensors), trained(tensors, torch.float64)
    found, expected = call(ops, copies, tree), call(reference, exact, tree)
    weights = [torch.randn_like(result).to(ours.dtype) for result, ours in zip(expected, found, strict=True)]
    grads = torch.autograd.grad(found, given, weights)
    expected_grads = torch.autograd.grad(expected, wanted, [weight.double() for weight in weights])
    for grad, leaf, expected in zip(grads, given, expected_grads, strict=True):
        assert grad.dtype == leaf.dtype
        # one rounding to the dtype after sums of many terms in the accumulator
        relative = max(torch.finfo(dtype).eps, 2e-6) if dtype != torch.float64 else 1e-13
        assert (grad.double() - expected).norm() <= relative * expected.norm()


@pytest.mark.parametrize('used', ['y', 'state'])
def test_either_result_may_go_unused(used):
    copies, given = trained(inputs(1, 5, 3, 2))
    tree = tree_over('random', 1, 5)
    result = dict(zip(('y', 'state'), call(ops, copies, tree), strict=True))[used]
    expected = dict(zip(('y', 'state'), call(reference, copies, tree), strict=True))[used]
    grads = torch.autograd.grad(result.square().sum(), given)
    wanted = torch.autograd.grad(expected.square().sum(), given, allow_unused=True)
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, torch.zeros_like(grad) if want is None else want)


@pytest.mark.parametrize('batch', [1, 3])
def test_any_number_of_threads_returns_the_same_bits(batch):
    tensors, tree = inputs(batch, 90, 200, 16, torch.float32), tree_over('published', batch, 90)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            copies, given = trained(tensors)
            y, state = call(ops, copies, tree)
            results.append((y, state, *torch.autograd.grad(y.square().sum() + state.sum(), given)))
    finally:
        torch.set_num_threads(threads)
    for one, two, five in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, five)


def test_items_of_a_batch_do_not_meet():
    tensors, tree = inputs(3, 20, 18, 16, torch.float32), tree_over('random', 3, 20)
    together = call(ops, tensors, tree)
    x, delta, rate, write, read, bias = tensors
    for item in range(3):
        own = slice(item, item + 1)
        alone = x[own], delta[own], rate, write[own], read[own], bias
        for part, whole in zip(call(ops, alone, ops.Tree(*(t[own] for t in tree))), together, strict=True):
            assert torch.equal(part, whole[own])


def test_inputs_are_left_alone_and_may_be_strided():
    tensors, tree = inputs(2, 9, 6, 3), tree_over('published', 2, 9)
    copies = [tensor.clone() for tensor in tensors]
    expected = call(ops, tensors, tree)
    assert all(map(torch.equal, tensors, copies))
    strided = [tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor for tensor in tensors]
    assert not strided[0].is_contiguous()
    assert all(map(torch.equal, call(ops, strided, tree), expected))


def test_nan_stays_in_its_channel():
    tensors, tree = inputs(1, 10, 20, 16, torch.float32), tree_over('chain', 1, 10)
    tensors[0][0, 4, 3] = math.nan
    y, _ = call(ops, tensors, tree)
    assert y[0, 4:, 3].isnan().all()
    assert y.isnan().sum() == 6


def test_the_second_derivative_is_refused():
    copies, given = trained(inputs(1, 4, 2, 2))
    y, _ = call(ops, copies, tree_over('chain', 1, 4))
    grads = torch.autograd.grad(y.sum(), given, create_graph=True)
    with pytest.raises(NotImplementedError, match='token_scan: the second derivative'):
        grads[0].sum().backward()


def test_autocast_scans_in_float32():
    tensors, tree = inputs(1, 6, 4, 3, torch.bfloat16), tree_over('chain', 1, 6)
    with torch.autocast('cpu', torch.bfloat16):
        y, state = call(ops, tensors, tree)
    assert y.dtype == state.dtype == torch.float32


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('x', torch.zeros(2, 5), r'x must have shape \(B, L, D\), got \(2, 5\)'),
        ('x', torch.zeros(2, 5, 4).int(), 'x must be float32, float64, float16 or bfloat16, got int32'),
        ('delta', torch.zeros(2, 5, 3), r'delta needs one value per token and channel, shape \(2, 5, 4\)'),
        ('A', torch.zeros(3, 3), r'A needs one row per channel, shape \(4, 3\), got \(3, 3\)'),
        ('B', torch.zeros(2, 5, 2), r'B needs one value per token and state, shape \(2, 5, 3\)'),
        ('C', torch.zeros(2, 5, 3).double(), 'C must be float32, got float64'),
        ('delta_bias', torch.zeros(3), r'delta_bias needs one value per channel, shape \(4\), got \(3\)'),
        ('tree', ops.token_chain(2, 4), r'order needs one entry per token of each sequence'),
        ('tree', ops.Tree(*(part.flip(1) for part in ops.token_chain(2, 5))), 'those of item [01] are not'),
    ],
)
def test_bad_input(name, value, message):
    x, rate, weight = torch.zeros(2, 5, 4), torch.zeros(4, 3), torch.zeros(2, 5, 3)
    arguments = dict(
        x=x, delta=x, A=rate, B=weight, C=weight, tree=ops.token_chain(2, 5), delta_bias=rate[:, 0]
    )
    with pytest.raises(RuntimeError, match=f'token_scan: .*{message}'):
        ops.token_scan(**arguments | {name: value})


@pytest.mark.parametrize(
    ('order', 'parent'),
    [([2, 1, 1], [2, 2, 2]), ([1, 0, 2], [1, 1, 1]), ([2, 0, 1], [1, 2, 2]), ([2, 1, 9], [2, 2, 2]),
     ([2, 1, 0], [5, 2, 2])],
)  # fmt: skip
def test_what_is_no_tree_is_refused(order, parent):
    x, weight = torch.zeros(1, 3, 1), torch.zeros(1, 3, 1)
    tree = ops.Tree(*(torch.tensor([part], dtype=torch.int32) for part in (order, parent)))
    with pytest.raises(
        RuntimeError, match='a tree rooted at the last token, parents first, but those of item 0'
    ):
        ops.token_scan(x, x, torch.zeros(1, 1), weight, weight, tree)
