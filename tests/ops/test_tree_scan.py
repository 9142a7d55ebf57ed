"""The tree scan: a drawn tree, its definition over all pairs of vertices, gradients, dtypes, bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grootv import ops
from grootv.ops import reference
from tests.ops.cases import GRIDS, SCAN_DTYPES, scan_inputs


def make_tree(parent: list[int]) -> ops.Tree:
    """The tree in which vertex v hangs below parent[v]; the root is its own parent."""
    vertices = len(parent)
    root = next(v for v in range(vertices) if parent[v] == v)
    edges = torch.tensor([[v, parent[v]] for v in range(vertices) if v != root]).view(-1, 2)
    tree_edges = torch.arange(vertices - 1, dtype=torch.int32).unsqueeze(0)
    return ops.breadth_first_order_from_edges(edges, tree_edges, vertices, root)


def scan_by_definition(input, decay, tree, direction='both'):
    """h[i] = sum over j of P(i, j) input[j], every product of decays multiplied out."""
    output = torch.zeros_like(input)
    for item, parents in enumerate(tree.parent.tolist()):
        paths = []
        for vertex in range(len(parents)):
            path = [vertex]
            while parents[path[-1]] != path[-1]:
                path.append(parents[path[-1]])
            paths.append(path)
        for i, path_i in enumerate(paths):
            for j, path_j in enumerate(paths):
                if direction == 'up' and i not in path_j:
                    continue
                edges = set(path_i) ^ set(path_j)  # vertices below the meeting point
                product = decay[item, sorted(edges)].prod(0)
                output[item, i] += product * input[item, j]
    return output


def test_a_drawn_tree():
    #       0          decays: 1 -> 1/2, 2 -> 1/4, 3 -> 1/2 (below 1)
    #      / \
    #     1   2        inputs: 1, 2, 4, 8
    #     |
    #     3
    tree = make_tree([0, 0, 0, 1])
    signal = torch.tensor([[[1.0], [2], [4], [8]]])
    decay = torch.tensor([[[9.0], [0.5], [0.25], [0.5]]])  # the root's own decay, 9, is never read
    up = ops.tree_scan(signal, decay, tree, 'up')
    assert up.flatten().tolist() == [1 + 0.5 * 6 + 0.25 * 4, 2 + 0.5 * 8, 4, 8]
    both = ops.tree_scan(signal, decay, tree)
    assert both.flatten().tolist() == [5, 6 + 0.5 * 2, 4 + 0.25 * 4, 8 + 0.5 * 3]


@pytest.mark.parametrize('direction', ['both', 'up'])
@pytest.mark.parametrize(('height', 'width'), GRIDS[:-1])
def test_definition_over_all_pairs(height, width, direction):
    signal, decay, tree = scan_inputs(2, height, width, 3, torch.float64)
    found = ops.tree_scan(signal, decay, tree, direction)
    # rounding of float64 only
    torch.testing.assert_close(
        found, scan_by_definition(signal, decay, tree, direction), rtol=1e-12, atol=1e-12
    )


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 6), st.integers(1, 6), st.integers(0, 300)),
    dtype=st.sampled_from(SCAN_DTYPES),
    direction=st.sampled_from(['both', 'up']),
)
def test_same_bits_as_the_reference(shape, dtype, direction):
    arguments = (*scan_inputs(*shape, dtype), direction)
    found = ops.tree_scan(*arguments)
    assert found.dtype == dtype
    assert torch.equal(found, reference.tree_scan(*arguments))


@pytest.mark.parametrize('direction', ['both', 'up'])
@pytest.mark.parametrize(
    'parent',
    [
        [0] * 40,  # star: one vertex with 39 children
        [max(v - 1, 0) for v in range(40)],  # path
        [max(v - 1, 0) if v < 20 else v - 20 for v in range(40)],  # comb
        [v // 5 for v in range(40)],
    ],
)
def test_any_rooted_tree(parent, direction):
    tree = make_tree(parent)
    signal, decay = torch.randn(2, 1, 40, 70, dtype=torch.float64)
    decay = decay.sigmoid()
    both = [signal.requires_grad_(), decay.requires_grad_()]
    found, expected = (library.tree_scan(*both, tree, direction) for library in (ops, reference))
    assert torch.equal(found, expected)
    weight = torch.randn_like(found)
    grads, expected_grads = (torch.autograd.grad(h, both, weight) for h in (found, expected))
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('direction', ['both', 'up'])
@pytest.mark.parametrize(('height', 'width'), [(1, 1), (1, 4), (3, 4)])
def test_gradcheck(height, width, direction):
    signal, decay, tree = scan_inputs(2, height, width, 2, torch.float64)
    torch.autograd.gradcheck(
        lambda u, a: ops.tree_scan(u, a, tree, direction),
        (signal.requires_grad_(), decay.requires_grad_()),
    )


@pytest.mark.parametrize('dtype', SCAN_DTYPES)
def test_gradients_of_every_dtype(dtype):
    arguments = scan_inputs(2, 5, 7, 150, torch.float64)
    weight = torch.randn(2, 35, 150, dtype=torch.float64).to(dtype)
    signal, decay, tree = arguments[0].to(dtype), arguments[1].to(dtype), arguments[2]
    exact = [tensor.double().requires_grad_() for tensor in (signal, decay)]
    found = [tensor.requires_grad_() for tensor in (signal, decay)]
    expected = torch.autograd.grad(reference.tree_scan(*exact, tree), exact, weight.double())
    grads = torch.autograd.grad(ops.tree_scan(*found, tree), found, weight)
    for grad, wanted in zip(grads, expected, strict=True):
        assert grad.dtype == dtype
        # sums of up to 35 x 35 terms in the accumulator, then one rounding to the dtype
        relative = 4 * torch.finfo(dtype).eps if dtype != torch.float32 else 1e-5
        scale = wanted.abs().max().item()
        torch.testing.assert_close(grad.double(), wanted, rtol=relative, atol=relative * scale)


def test_float16_accumulates_in_float32():
    vertices = 1000
    tree = make_tree([max(v - 1, 0) for v in range(vertices)])
    ones = torch.ones(1, vertices, 1, dtype=torch.float16)
    assert ops.tree_scan(ones, ones * 0.999, tree, 'up').max() > 600  # adding in float16 stalls earlier
    huge = ops.tree_scan(ones * 100, ones, tree)  # sums beyond float16's range become infinite, not NaN
    assert huge.isinf().all()


def test_any_number_of_threads_returns_the_same_bits():
    signal, decay, tree = scan_inputs(2, 20, 20, 300)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            inputs = [signal.detach().requires_grad_(), decay.detach().requires_grad_()]
            h = ops.tree_scan(*inputs, tree)
            results.append((h, *torch.autograd.grad(h.sum(), inputs)))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_inputs_are_left_alone_and_may_be_strided():
    signal, decay, tree = scan_inputs(2, 4, 5, 6)
    copies = signal.clone(), decay.clone()
    expected = ops.tree_scan(signal, decay, tree)
    assert torch.equal(signal, copies[0])
    assert torch.equal(decay, copies[1])
    strided = [tensor.mT.contiguous().mT for tensor in (signal, decay)]
    assert not strided[0].is_contiguous()
    assert torch.equal(ops.tree_scan(*strided, tree), expected)
    expanded = torch.ones(1, 1, 1).expand(2, 20, 6)
    assert torch.equal(
        ops.tree_scan(signal, expanded, tree), ops.tree_scan(signal, expanded.contiguous(), tree)
    )


def test_decays_of_one_and_zero():
    signal, _, tree = scan_inputs(1, 4, 4, 2, torch.float64)
    everyone = signal.sum(1, keepdim=True).expand_as(signal)
    torch.testing.assert_close(ops.tree_scan(signal, torch.ones_like(signal), tree), everyone)
    assert torch.equal(ops.tree_scan(signal, torch.zeros_like(signal), tree), signal)


def test_second_derivatives_are_refused_with_a_sentence():
    signal, decay, tree = scan_inputs(1, 2, 2, 1, torch.float64)
    h = ops.tree_scan(signal.requires_grad_(), decay.requires_grad_(), tree)
    (grad,) = torch.autograd.grad(h.square().sum(), decay, create_graph=True)
    with pytest.raises(NotImplementedError, match='tree_scan: the second derivative'):
        grad.sum().backward()


def bad_calls():
    signal, decay, tree = scan_inputs(2, 3, 3, 4)
    swapped = tree._replace(order=tree.order.flip(1))
    twice = tree._replace(order=tree.order.clone().index_fill_(1, torch.tensor([8]), 0))
    leaves = tree.order[:, -2:].clone()
    leaf_twice = tree._replace(order=torch.cat([tree.order[:, :-2], leaves[:, :1], leaves[:, :1]], 1))
    beyond = tree._replace(parent=tree.parent.clone().index_fill_(1, torch.tensor([3]), 99))
    return {
        'decay needs one value per vertex and channel, shape (2, 9, 4), got (2, 9, 3)': (
            signal,
            decay[..., :3],
            tree,
        ),
        'decay must be float32, got float64': (signal, decay.double(), tree),
        'input must have shape (B, L, C), got (2, 36)': (signal.flatten(1), decay, tree),
        'input must be float32, float64, float16 or bfloat16, got int32': (
            signal.int(),
            decay.int(),
            tree,
        ),
        'order needs one entry per vertex of each item, shape (2, 9), got (1, 9)': (
            signal,
            decay,
            ops.Tree(*(field[:1] for field in tree)),
        ),
        'order must be int32, got int64': (signal, decay, tree._replace(order=tree.order.long())),
        'order and parent must be a tree in breadth-first order, but those of item': [
            (signal, decay, wrong) for wrong in (swapped, twice, leaf_twice, beyond)
        ],
    }


@pytest.mark.parametrize('message', bad_calls())
def test_bad_input(message):
    calls = bad_calls()[message]
    for arguments in calls if isinstance(calls, list) else [calls]:
        with pytest.raises(RuntimeError) as error:
            ops.tree_scan(*arguments)
        assert str(error.value).startswith(f'tree_scan: {message}')


def test_unknown_directions_list_the_known_ones():
    with pytest.raises(ValueError, match="direction must be one of both, up, got 'down'"):
        ops.tree_scan(*scan_inputs(1, 2, 2, 1), 'down')
