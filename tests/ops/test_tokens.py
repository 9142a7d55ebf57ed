"""Trees over tokens and the scan along them: drawn cases, reference, contexts, causal form."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grootv import ops
from grootv.ops import reference
from tests.ops import cases


def inputs(batch: int, length: int, channels: int, states: int, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    normal = cases.random(length, channels)
    return normal(batch, length, channels).to(dtype), normal(batch, length, states).to(dtype)


def contexts(*bounds: tuple[int, int]) -> Tensor:
    return torch.tensor(bounds, dtype=torch.int32).view(-1, 2)


def directions(*degrees: float) -> tuple[Tensor, Tensor]:
    """A sequence whose tokens add vectors of the plane, at these angles."""
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], -1).unsqueeze(0), torch.ones(1, len(degrees), 1)


def test_edges_come_from_the_end():
    pairs = [(3, 4), (2, 4), (2, 3), (1, 3), (1, 2), (0, 2), (0, 1), (0, 1)]
    assert ops.token_edges(5, 2).tolist() == [list(pair) for pair in pairs]


def test_a_drawn_tree(backend):
    # Tokens 0 and 2 are similar, and so are 1 and 3; token 4 is like 3.
    #   angles  0  80  10  90  100        context: all
    #   tree    0-2, 1-3, 3-4 and the cheapest bridge, 1-2 (70 degrees; 0-1 and 2-3 have 80)
    given = cases.to_device((*directions(0, 80, 10, 90, 100), contexts((0, 5))), backend.device)
    tree = backend.ops.token_tree(*given)
    assert tree.parent.tolist() == [[2, 3, 1, 4, 4]]
    assert tree.order.tolist() == [[4, 3, 1, 2, 0]]  # 0 receives from nobody, 3 from everybody
    # 1 can choose 0 alone, and 2 does too; 3 chooses 1, 4 chooses 3, and 2 waits for the last
    causal = backend.ops.token_tree(*given, causal=True)
    assert causal.parent.tolist() == [[1, 3, 4, 4, 4]]


def test_weights_are_those_of_outer_products():
    x, B = inputs(2, 9, 5, 4)
    added = (x.unsqueeze(-1) * B.unsqueeze(-2)).flatten(2)
    earlier, later = ops.token_edges(9, 3).long().unbind(1)
    cosine = torch.nn.functional.cosine_similarity(added[:, earlier], added[:, later], dim=-1)
    weight = ops.token_edge_weight(x, B, contexts((0, 9), (2, 7)))
    torch.testing.assert_close(weight[0, :-4], torch.exp(-cosine)[0, :-4])
    counted = weight[1].isfinite()
    assert counted.sum() == 8 + 3 + 2  # the chain; in five tokens three pairs two and two pairs three apart
    torch.testing.assert_close(weight[1, counted], torch.exp(-cosine)[1, counted])


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 90), st.integers(1, 40), st.integers(1, 20)),
    reach=st.integers(1, 5),
    dtype=st.sampled_from(cases.SCAN_DTYPES),
    special=st.booleans(),
    data=st.data(),
)
def test_trees_equal_the_reference(backend, shape, reach, dtype, special, data):
    x, B = inputs(*shape, dtype)
    if special:
        x[:, ::5], B[:, 1::7, ::2] = 0, torch.nan
    bound = st.integers(0, shape[1])
    context = contexts(*data.draw(st.lists(st.tuples(bound, bound), min_size=shape[0], max_size=shape[0])))
    moved = cases.to_device((x, B, context), backend.device)
    found = backend.ops.token_edge_weight(*moved, reach)
    cases.assert_same(found, reference.token_edge_weight(x, B, context, reach))
    if not special:
        for causal in (False, True):
            expected = reference.token_tree(x, B, context, reach, causal)
            cases.assert_same(backend.ops.token_tree(*moved, reach, causal), expected)


def test_long_sequences(backend):
    for batch, length, reach in [(2, 200, 3), (6, 70, 5), *[(1, 5000, 3)] * (backend.name == 'cuda')]:
        x, B = inputs(batch, length, 33, 16)
        x, B = x.mT.contiguous().mT, torch.stack([B, B], -1)[..., 0]
        context = torch.randint(0, length + 1, (batch, 2))
        moved = cases.to_device((x, B, context), backend.device)
        for causal in (False, True):
            found = cases.twice(lambda: backend.ops.token_tree(*moved, reach, causal))  # noqa: B023
            cases.assert_same(found, ops.token_tree(x, B, context, reach, causal))


def test_ties_go_to_the_edge_nearer_to_the_end(backend):
    given = cases.to_device((torch.ones(1, 8, 3), torch.ones(1, 8, 2), contexts((0, 8))), backend.device)
    assert backend.ops.token_tree(*given).parent.tolist() == [[3, 4, 5, 6, 7, 7, 7, 7]]
    cases.assert_same(backend.ops.token_tree(*given, causal=True), ops.token_chain(1, 8))


@pytest.mark.parametrize('causal', [False, True])
def test_the_tree_is_a_chain_outside_the_context(causal):
    x, B = inputs(4, 12, 6, 3)
    tree = ops.token_tree(x, B, contexts((3, 9), (0, 2), (5, 5), (0, 0)), causal=causal)
    chain = ops.token_chain(4, 12)
    assert torch.equal(tree.parent[0, :2], chain.parent[0, :2])
    assert torch.equal(tree.parent[0, 8:], chain.parent[0, 8:])
    assert not torch.equal(tree.parent[0], chain.parent[0])
    cases.assert_same([part[1:] for part in tree], [part[1:] for part in chain])


@pytest.mark.parametrize('causal', [False, True])
def test_tokens_before_the_context_change_nothing_in_it(causal):
    x, B = inputs(1, 20, 6, 3)
    tree = ops.token_tree(x, B, contexts((0, 15)), causal=causal)
    pad = torch.nn.functional.pad
    longer = ops.token_tree(pad(x, (0, 0, 7, 0)), pad(B, (0, 0, 7, 0)), contexts((7, 22)), causal=causal)
    assert torch.equal(longer.parent[:, 7:], tree.parent + 7)


@pytest.mark.parametrize('reach', [2, 3, 5])
def test_a_causal_tree_does_not_depend_on_later_tokens(reach):
    x, B = inputs(3, 50, 8, 4)
    context = contexts((0, 50), (10, 40), (0, 3))
    tree = ops.token_tree(x, B, context, reach, causal=True)
    ahead = (tree.parent - torch.arange(50))[:, :-1]
    assert ((ahead >= 1) & (ahead <= reach)).all()
    for now in range(1, 49):
        later = inputs(3, 49 - now, 8, 4)
        changed = (torch.cat([old[:, : now + 1], new], 1) for old, new in zip((x, B), later, strict=True))
        other = ops.token_tree(*changed, context, reach, causal=True)
        known = tree.parent <= now
        assert torch.equal(other.parent <= now, known)
        assert torch.equal(other.parent[known], tree.parent[known])


def test_a_chain():
    tree = ops.token_chain(2, 6)
    assert tree.order.tolist() == [[5, 4, 3, 2, 1, 0]] * 2
    assert tree.parent.tolist() == [[1, 2, 3, 4, 5, 5]] * 2
    assert tree.levels().tolist() == [[5, 4, 3, 2, 1, 0]] * 2


def test_scan_of_a_drawn_tree(backend):
    # 0 and 1 are children of 2; A = -log 2 and steps 1, 2, 3: 0 arrives with exp(2 A) = 1/4, the decay of
    # token 1, which follows it in the text, and 1 with 1/8
    def tensor(*values):
        return torch.tensor(values, device=backend.device).view(1, -1, 1)

    tree = cases.to_device(cases.tree_of(torch.tensor([[0, 2], [1, 2]]), 1, root=2), backend.device)
    x, delta, C = tensor(8.0, 4.0, 1.0), tensor(1.0, 2.0, 3.0), tensor(1.0, 1.0, 10.0)
    A, B = -tensor(2.0)[0].log(), tensor(1.0, 1.0, 1.0)
    y, state = backend.ops.token_scan(x, delta, A, B, C, tree, delta_softplus=False)
    torch.testing.assert_close(state, tensor(8 / 4 + 8 / 8 + 3))
    torch.testing.assert_close(y, tensor(8.0, 8.0, 60.0))


@pytest.mark.parametrize('used', [0, 1])
def test_either_result_may_go_unused(backend, used):
    call = cases.make('token_scan random', 1, 1, 5, 3, torch.float64).trained()
    moved = call.to(backend.device)
    grads = torch.autograd.grad(moved(backend.ops)[used].square().sum(), moved.given())
    wanted = torch.autograd.grad(call(reference)[used].square().sum(), call.given(), allow_unused=True)
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad.cpu(), torch.zeros_like(grad).cpu() if want is None else want)


def test_no_channels_or_no_states(backend):
    for channels, states in [(0, 5), (4, 0)]:
        call = cases.token_scan(cases.token_tree('chain', 2, 3), channels, states).to(backend.device)
        results, grads = call.with_gradients(backend.ops)
        assert [x.shape for x in results] == [(2, 3, channels), (2, channels, states)]
        assert not any(x.any() for x in (*results, *grads))


def test_nan_stays_in_its_channel(backend):
    call = cases.token_scan(cases.token_tree('chain', 1, 10), 20, 16)
    call.tensors[0][0, 4, 3] = math.nan
    y, _ = call.to(backend.device)(backend.ops)
    assert y[0, 4:, 3].isnan().all() and y.isnan().sum() == 6


@pytest.mark.devices('emulated', 'cuda')
def test_a_single_token_by_another_name_gives_nan(backend):
    tree = ops.Tree(torch.ones(1, 1).int(), torch.zeros(1, 1).int())
    call = cases.token_scan(tree, 5, 3).to(backend.device)
    for results in call.with_gradients(backend.ops):
        assert all(result.isnan().all() for result in results)


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('bounds', [(0, 6), (-1, 3), (0, 2**32), (2**32, 2**32 + 5), (-(2**32), 5)])
def test_a_context_outside_its_sequence_is_refused(backend, bounds, causal):
    x, context = torch.randn(2, 5, 3), torch.tensor([[0, 5], bounds])
    if backend.raises:
        sentence = 'token_edge_weight: context must be within the sequence, 0 to 5, '
        with pytest.raises(
            RuntimeError, match=f'{sentence}got first {bounds[0]} and stop {bounds[1]} of item 1'
        ):
            backend.ops.token_tree(x, x, context, causal=causal)
    elif bounds[0] <= 0 < bounds[1]:  # a device is not waited for: what is inside the sequence counts
        found, expected = (
            backend.ops.token_tree(*cases.to_device([x, x, given], backend.device), causal=causal)
            for given in (context, torch.tensor([[0, 5], [0, min(bounds[1], 5)]]))
        )
        cases.assert_same(found, expected)


def test_a_context_is_of_integers(backend):
    x = torch.randn(1, 5, 3)
    for context in (torch.tensor([[0.0, 5]]), torch.tensor([[False, True]])):
        with pytest.raises(RuntimeError, match='token_edge_weight: context must be int32 or int64, got '):
            backend.ops.token_tree(*cases.to_device([x, x, context], backend.device))
