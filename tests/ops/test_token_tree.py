"""Trees over tokens: drawn cases, the reference, contexts and padding, the causal form, bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grootv import ops
from grootv.ops import reference
from tests.ops.cases import assert_same_tree


def inputs(batch: int, length: int, channels: int, states: int, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length * 100 + channels)
    x = torch.randn(batch, length, channels, generator=generator, dtype=torch.float64)
    B = torch.randn(batch, length, states, generator=generator, dtype=torch.float64)
    return x.to(dtype), B.to(dtype)


def contexts(*bounds: tuple[int, int]) -> Tensor:
    return torch.tensor(bounds, dtype=torch.int32).view(-1, 2)


def directions(*degrees: float) -> tuple[Tensor, Tensor]:
    """A sequence whose tokens write vectors of the plane, at these angles."""
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], -1).unsqueeze(0), torch.ones(1, len(degrees), 1)


def test_edges_come_from_the_end():
    pairs = [(3, 4), (2, 4), (2, 3), (1, 3), (1, 2), (0, 2), (0, 1), (0, 1)]
    assert ops.token_edges(5, 2).tolist() == [list(pair) for pair in pairs]


def test_a_drawn_tree():
    # Tokens 0 and 2 write alike, and so do 1 and 3; token 4 is like 3.
    #   angles  0  80  10  90  100        context: all
    #   tree    0-2, 1-3, 3-4 and the cheapest bridge, 1-2 (70 degrees; 0-1 and 2-3 have 80)
    x, B = directions(0, 80, 10, 90, 100)
    tree = ops.token_tree(x, B, contexts((0, 5)))
    assert tree.parent.tolist() == [[2, 3, 1, 4, 4]]
    assert tree.order.tolist() == [[4, 3, 1, 2, 0]]  # 0 hears nobody, 3 hears everybody
    # 1 can choose 0 alone, and 2 does too; 3 chooses 1, 4 chooses 3, and 2 waits for the last
    causal = ops.token_tree(x, B, contexts((0, 5)), causal=True)
    assert causal.parent.tolist() == [[1, 3, 4, 4, 4]]


def test_weights_are_those_of_outer_products():
    x, B = inputs(2, 9, 5, 4)
    written = (x.unsqueeze(-1) * B.unsqueeze(-2)).flatten(2)
    earlier, later = ops.token_edges(9, 3).long().unbind(1)
    cosine = torch.nn.functional.cosine_similarity(written[:, earlier], written[:, later], dim=-1)
    weight = ops.token_edge_weight(x, B, contexts((0, 9), (2, 7)))
    torch.testing.assert_close(weight[0, :-4], torch.exp(-cosine)[0, :-4])
    counted = weight[1].isfinite()
    assert counted.sum() == 8 + 3 + 2  # the chain; in five tokens three pairs two and two pairs three apart
    torch.testing.assert_close(weight[1, counted], torch.exp(-cosine)[1, counted])


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 90), st.integers(1, 40), st.integers(1, 20)),
    reach=st.integers(1, 5),
    causal=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    data=st.data(),
)
def test_equals_the_reference(shape, reach, causal, dtype, data):
    x, B = inputs(*shape, dtype)
    bound = st.integers(0, shape[1])
    context = contexts(*data.draw(st.lists(st.tuples(bound, bound), min_size=shape[0], max_size=shape[0])))
    found, expected = (library.token_edge_weight(x, B, context, reach) for library in (ops, reference))
    assert torch.equal(found, expected)
    assert_same_tree(*(library.token_tree(x, B, context, reach, causal) for library in (ops, reference)))


def test_ties_go_to_the_edge_nearer_to_the_end():
    x, B = torch.ones(1, 8, 3), torch.ones(1, 8, 2)
    context = contexts((0, 8))
    assert_same_tree(ops.token_tree(x, B, context), reference.token_tree(x, B, context))
    assert ops.token_tree(x, B, context).parent.tolist() == [[3, 4, 5, 6, 7, 7, 7, 7]]
    assert_same_tree(ops.token_tree(x, B, context, causal=True), ops.token_chain(1, 8))


@pytest.mark.parametrize('causal', [False, True])
def test_the_tree_is_a_chain_outside_the_context(causal):
    x, B = inputs(4, 12, 6, 3)
    tree = ops.token_tree(x, B, contexts((3, 9), (0, 2), (5, 5), (0, 0)), causal=causal)
    chain = ops.token_chain(4, 12)
    assert torch.equal(tree.parent[0, :2], chain.parent[0, :2])
    assert torch.equal(tree.parent[0, 8:], chain.parent[0, 8:])
    assert not torch.equal(tree.parent[0], chain.parent[0])
    assert_same_tree(ops.Tree(*(part[1:] for part in tree)), ops.Tree(*(part[1:] for part in chain)))


@pytest.mark.parametrize('causal', [False, True])
def test_tokens_before_the_context_change_nothing_in_it(causal):
    x, B = inputs(1, 20, 6, 3)
    tree = ops.token_tree(x, B, contexts((0, 15)), causal=causal)
    pad = torch.nn.functional.pad
    longer = ops.token_tree(pad(x, (0, 0, 7, 0)), pad(B, (0, 0, 7, 0)), contexts((7, 22)), causal=causal)
    assert torch.equal(longer.parent[:, 7:], tree.parent + 7)


@pytest.mark.parametrize('reach', [2, 3, 5])
def test_a_causal_tree_is_known_as_it_grows(reach):
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


def test_no_gradient_reaches_the_tree():
    x, B = inputs(1, 5, 4, 2)
    assert not ops.token_edge_weight(x.requires_grad_(), B, contexts((0, 5))).requires_grad


def test_a_chain():
    tree = ops.token_chain(2, 3)
    assert tree.order.tolist() == [[2, 1, 0]] * 2
    assert tree.parent.tolist() == [[1, 2, 2]] * 2
    assert tree.levels().tolist() == [[2, 1, 0]] * 2


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(x=torch.zeros(2, 5)), r'x must have shape \(B, L, C\), got \(2, 5\)'),
        (dict(x=torch.zeros(2, 5, 4).int()), 'x must be float32, float64, float16 or bfloat16, got int32'),
        (dict(x=torch.zeros(2, 0, 4), B=torch.zeros(2, 0, 3)), 'at least one token'),
        (dict(B=torch.zeros(2, 4, 3)), r'one row per token, shape \(2, 5, 3\), got \(2, 4, 3\)'),
        (dict(B=torch.zeros(2, 5, 3).double()), 'B must be float32, got float64'),
        (dict(context=torch.zeros(2, dtype=torch.int32)), 'two bounds per sequence'),
        (dict(reach=0), 'reach must be at least 1, got 0'),
    ],
)
def test_bad_input(change, message):
    arguments = dict(
        x=torch.zeros(2, 5, 4), B=torch.zeros(2, 5, 3), context=contexts((0, 5), (0, 5)), reach=3
    )
    with pytest.raises(RuntimeError, match=f'token_edge_weight: .*{message}'):
        ops.token_edge_weight(**arguments | change)
