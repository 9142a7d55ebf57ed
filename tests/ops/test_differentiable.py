"""Scans, edge distances and the read-out: reference, gradients, dtypes, strides, autocast, invalid trees."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad

from grootv import ops
from grootv.ops import reference
from tests.ops import cases

OPERATORS = ['tree_scan both', 'selective_tree_scan', 'selective_tree_scan with distance']
OPERATORS += ['token_scan published', 'gated_read_out', 'tree_edge_distance cosine']


def check(backend, call: cases.Call, oracle=ops) -> None:
    """Results and gradients next to those in float64, and the same bits twice."""
    weights = [torch.randn(result.shape).to(result) for result in call(ops)]
    moved = call.to(backend.device)
    found = cases.twice(lambda: moved.with_gradients(backend.ops, weights))
    expected = call.double().with_gradients(oracle, weights)
    for gradient in (False, True):
        for ours, theirs in zip(found[gradient], expected[gradient], strict=True):
            cases.assert_close(ours, theirs, gradient)
    assert [x.dtype for x in found[1]] == [x.dtype for x in call.given()]
    assert [x.dtype for x in found[0]] == [weight.dtype for weight in weights]


@settings(deadline=None, max_examples=100)
@given(
    form=st.sampled_from(cases.FORMS),
    shape=st.tuples(st.integers(0, 2), st.integers(1, 6), st.integers(1, 6), st.integers(0, 150)),
    states=st.integers(1, 20),
    dtype=st.sampled_from(cases.SCAN_DTYPES),
)
def test_results_equal_the_reference(backend, form, shape, states, dtype):
    if form == 'gated_read_out' and shape[3] == 0:
        return
    call = cases.make(form, *shape, dtype, states)
    results = call.to(backend.device)(backend.ops)
    for found, expected in zip(results, call.double()(reference), strict=True):
        cases.assert_close(found, expected)
    if call.name == 'tree_scan' and backend.name == 'cpu':
        cases.assert_same(results, call(reference))


@pytest.mark.parametrize('dtype', cases.SCAN_DTYPES)
@pytest.mark.parametrize('form', cases.FORMS)
def test_gradients_equal_the_reference(backend, form, dtype):
    many = 70 if dtype in (torch.float32, torch.bfloat16) else 9
    for shape in [(2, 3, 5, many), (4, 2, 2, 5), (1, 1, 1, 2), (0, 2, 3, 4)]:
        check(backend, cases.make(form, *shape, dtype, states=20), reference)


@pytest.mark.parametrize('form', cases.FORMS)
def test_gradcheck(backend, form):
    for height, width in [(1, 1), (2, 3)]:
        call = cases.make(form, 2, height, width, 3, torch.float64, states=2).to(backend.device).trained()
        run = lambda *tensors, call=call: call.fill(tensors)(backend.ops)  # noqa: E731
        assert torch.autograd.gradcheck(run, call.given(), fast_mode=backend.name != 'cpu')


@pytest.mark.parametrize('kind', cases.PARENTS)
def test_deep_and_wide_trees(backend, kind):
    vertices = 5000 if backend.name == 'cuda' else 100
    tree = cases.tree_of(cases.parent_edges(kind, vertices), 2, root=1)
    tokens = cases.token_tree(kind, 2, vertices)
    for dtype in (torch.float32, torch.bfloat16):
        for direction in ('both', 'up'):
            call = cases.tree_scan(tree, 5, dtype, direction=direction)
            check(backend, call)
            if dtype == torch.float32:  # decays near 1: sums over all vertices
                check(backend, call.fill([call.tensors[0], 1 - call.tensors[1] / 50]))
        for distance in (False, True):
            check(backend, cases.selective_tree_scan(tree, 5, dtype, distance=distance))
        check(backend, cases.tree_edge_distance(tree, 37, dtype), reference)
        check(backend, cases.token_scan(tokens, 5, 16, dtype))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_large_grids(backend, dtype):
    for height, width in backend.large if dtype == torch.float32 else backend.large[:1]:
        for batch, channels in ((1, 20), (3, 1)):
            tree = cases.spanning_tree(batch, height, width)
            for direction in ('both', 'up'):
                check(backend, cases.tree_scan(tree, channels, dtype, direction=direction))
            for distance in (False, True):
                check(backend, cases.selective_tree_scan(tree, channels, dtype, distance=distance))
            check(backend, cases.tree_edge_distance(tree, channels + 1, dtype))
            check(backend, cases.gated_read_out(batch, height * width, max(channels, 8), gate=dtype))


def test_many_channels(backend):
    """More slices of channels than blocks may wait for each other in the emulation."""
    for batch, channels in ((1, 200), (2, 33)):
        for scan in (cases.tree_scan, partial(cases.selective_tree_scan, distance=True)):
            check(backend, scan(cases.spanning_tree(batch, 20, 17), channels))


@pytest.mark.devices('cpu')
@pytest.mark.parametrize('form', OPERATORS)
def test_any_number_of_threads_returns_the_same_bits(backend, form):
    for batch in (1, 3):
        call = cases.make(form, batch, 10, 15, 300, states=16)
        first, *others = cases.with_threads((1, 2, 5), lambda: call.with_gradients(ops))  # noqa: B023
        for other in others:
            for found, expected in zip(other, first, strict=True):
                cases.assert_same(found, expected)


@pytest.mark.parametrize('form', OPERATORS)
def test_inputs_are_left_alone_and_may_be_strided(backend, form):
    call = cases.make(form, 2, 4, 5, 8, torch.float32, states=4).to(backend.device)
    copies, expected = [x.clone() for x in call.given()], call.with_gradients(backend.ops)
    cases.assert_same(call.given(), copies)
    for change in (
        lambda x: x.mT.contiguous().mT if x.dim() > 1 else torch.stack([x, x], 1)[:, 0],
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),  # not aligned to 16 bytes
    ):
        tree = call.tree and ops.Tree(*map(change, call.tree))
        strided = replace(call.map(change), tree=tree)
        found = strided.with_gradients(backend.ops)
        for ours, theirs in zip(found, expected, strict=True):
            for one, two in zip(ours, theirs, strict=True):
                cases.assert_close(one, two.double())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('form', OPERATORS)
def test_autocast_computes_in_float32(backend, form, dtype):
    call = cases.make(form, 1, 4, 4, 6, dtype).to(backend.device)
    call = call.map(lambda x: x.to(dtype) if x.dim() > 1 else x)
    with torch.autocast(backend.device, dtype):
        found, grads = call.with_gradients(backend.ops)
        double = call.double()(backend.ops)
    assert all(result.dtype == torch.float32 for result in found)
    assert all(result.dtype == torch.float64 for result in double)
    expected, wanted = call.map(torch.Tensor.float).with_gradients(backend.ops)
    cases.assert_same(found, expected)
    cases.assert_same(grads, [want.to(x) for want, x in zip(wanted, call.given(), strict=True)])


@pytest.mark.parametrize('form', OPERATORS)
def test_nothing_but_arguments_and_decomposition_is_kept_for_the_backward_pass(backend, form):
    call, kept = cases.make(form, 1, 4, 4, 3, torch.float64).to(backend.device).trained(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
        call(backend.ops)
    own = {tensor.data_ptr() for tensor in (*call.given(), *(call.tree or ()))}
    assert own <= {tensor.data_ptr() for tensor in kept}
    others = [tensor.dtype for tensor in kept if tensor.data_ptr() not in own]
    decomposed = backend.name != 'cpu' and 'tree_scan' in form
    assert others == [torch.int32] * decomposed  # the decomposition of the tree


@pytest.mark.parametrize('form', OPERATORS)
def test_second_derivatives_are_refused(backend, form):
    call = cases.make(form, 1, 2, 2, 2, torch.float64).to(backend.device).trained()
    (grad,) = torch.autograd.grad(call(backend.ops)[0].square().sum(), call.given()[0], create_graph=True)
    with pytest.raises(NotImplementedError, match=f'{call.name}: the second derivative'):
        grad.sum().backward()


def invalid_trees(tree: ops.Tree) -> list[ops.Tree]:
    order, parent = tree
    vertices, root = order.shape[1], int(order[0, 0])
    own, last = torch.arange(vertices, dtype=torch.int32).expand_as(order), vertices - 1

    def changed(part, position, value):
        return part.clone().index_fill_(1, torch.tensor([position]), value)

    trees = [
        tree._replace(order=changed(order, 1, root)),
        tree._replace(order=torch.cat([order[:, :-1], order[:, -2:-1]], 1)),  # a leaf twice
        tree._replace(order=changed(order, 2, vertices)),
        tree._replace(parent=changed(parent, 3, -1)),
        tree._replace(parent=changed(parent, 3, vertices)),
        tree._replace(parent=own),
        tree._replace(order=order.flip(1)),  # leaves first
    ]
    return [
        *trees,
        *[ops.Tree(last - order, (last - parent).flip(1))] * (root != 0),
    ]  # the first token as root


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    'form',
    [
        'tree_scan both',
        'tree_scan up',
        'selective_tree_scan',
        'selective_tree_scan with distance',
        'token_scan causal',
        cases.FORMS[-1],
    ],
)
def test_invalid_tree_is_refused_or_gives_nan(backend, form, dtype):
    """A device cannot raise an error without waiting, but neither may it hang or read beyond its memory."""
    calls = [cases.make(form, *shape, 5, dtype) for shape in [(1, 3, 4), (2, 3, 4), (2, *backend.large[1])]]
    wrong = [replace(call, tree=tree) for call in calls for tree in invalid_trees(call.tree)]
    if 'token' not in form:  # 0 - 1 - 3, and 2 below 0: parents come first, but 3 comes before 2
        tree = ops.Tree(torch.tensor([[0, 1, 3, 2]]).int(), torch.tensor([[0, 0, 0, 1]]).int())
        wrong.append(replace(cases.make(form, 1, 2, 2, 5, dtype), tree=tree))
    for call in wrong:
        moved = call.to(backend.device)
        if backend.raises:
            with pytest.raises(RuntimeError, match=f'{call.name}: .*but those of item [01] are not'):
                moved(backend.ops)
        else:
            assert all(x.isnan().all() for results in moved.with_gradients(backend.ops) for x in results)
    if backend.raises:
        return
    call = calls[-1]
    order = call.tree.order.clone()
    order[0, 1] = order[0, 0]
    moved = replace(call, tree=call.tree._replace(order=order)).to(backend.device)
    for found, expected in zip(moved(backend.ops), call.double()(ops), strict=True):
        assert found[0].isnan().all()
        cases.assert_close(found[1:], expected[1:])  # the other items keep their results


@pytest.mark.parametrize('form', OPERATORS)
def test_other_devices_are_refused(backend, form):
    call = cases.make(form, 1, 3, 3, 4).to(backend.device)
    for i in range(1, len(call.given())):
        moved = call.map(torch.clone)
        moved.tensors[i] = moved.tensors[i].to('meta')
        with pytest.raises(RuntimeError, match=f'{call.name}: all tensors must be on one device, but '):
            moved(backend.ops)


@pytest.mark.parametrize('form', OPERATORS)
def test_forward_mode_is_refused(backend, form):
    call = cases.make(form, 2, 3, 4, 5).to(backend.device)
    given = tuple(call.given())
    run = lambda *tensors: call.fill(tensors)(backend.ops)[0]  # noqa: E731

    def dual(grad):
        with forward_ad.dual_level():
            return run(*(forward_ad.make_dual(x.detach().requires_grad_(grad), x) for x in given))

    tries = [
        lambda: torch.func.jvp(run, given, given),
        lambda: torch.func.jvp(lambda x: run(*given[:-1], x), given[-1:], given[-1:]),
        lambda: torch.func.jacfwd(run)(*given),
        lambda: torch.func.linearize(run, *given),
        lambda: torch.func.jvp(lambda *x: torch.func.vmap(run)(*(t[None] for t in x)), given, given),
        lambda: dual(False),
        lambda: dual(True),
    ]
    sentence = f'grootv.ops.{call.name}: forward-mode derivatives are not implemented; use reverse mode, or'
    for attempt in tries:
        with pytest.raises(NotImplementedError, match=sentence):
            attempt()
    tangents = torch.func.jvp(lambda *x: call.fill(x)(reference)[0], given, given)[1]
    assert tangents.norm() > 0
    run(*given)  # as before


@pytest.mark.parametrize('name', ['grid_edge_weight', 'token_edge_weight'])
def test_edge_weights_refuse_derivatives_of_both_modes(backend, name):
    x = torch.randn(2, 3, 4, 5)
    extra = ('cosine',)
    if name == 'token_edge_weight':
        x, extra = x[0], (x[0], torch.tensor([[0, 4]] * 3), 3)
    x, *extra = cases.to_device([x, *extra], backend.device)
    for library in (backend.ops, backend.library):
        function = lambda x, library=library: getattr(library, name)(x, *extra)  # noqa: E731
        with pytest.raises(NotImplementedError, match=f'grootv.ops.{name}: forward-mode derivatives'):
            torch.func.jvp(function, (x,), (x,))
    assert not getattr(backend.ops, name)(x.requires_grad_(), *extra).requires_grad
    with pytest.raises(NotImplementedError, match=f'grootv.ops.{name} is not differentiable: detach its'):
        getattr(backend.library, name)(x, *extra).sum().backward()


@pytest.mark.filterwarnings('ignore:There is a performance drop')
@pytest.mark.parametrize('form', OPERATORS)
def test_transforms_of_torch_func_are_right_or_refused(backend, form):
    call = cases.make(form, 2, 3, 4, 5).to(backend.device)
    given = call.given()
    run = lambda *tensors: call.fill(tensors)(backend.ops)[0]  # noqa: E731
    found = torch.func.vmap(run)(*(torch.stack([x, x / 2]) for x in given))
    cases.assert_same([*found], [run(*given), run(*(x / 2 for x in given))])
    for transform in (torch.func.grad, torch.func.jacrev):
        with pytest.raises(RuntimeError, match='functorch transforms'):
            transform(lambda *x: run(*x).sum())(*given)


SINGLE = [(2, 12, 1), (1, 12, 5), (1, 1, 5), (2, 1, 1), (1, 1, 1)]


@pytest.mark.parametrize('shape', SINGLE)
@pytest.mark.parametrize('direction', ['both', 'up'])
def test_a_size_of_1_of_a_decay_stands_for_any_other(backend, shape, direction):
    call = cases.tree_scan(cases.spanning_tree(2, 3, 4), 5, torch.float64, direction=direction)
    call = call.fill([call.tensors[0], torch.rand(shape, dtype=torch.float64)]).to(backend.device)
    weight = torch.randn(2, 12, 5, dtype=torch.float64)
    whole = call.fill([call.tensors[0], call.tensors[1].expand(2, 12, 5).contiguous()])
    found, expected = call.with_gradients(backend.ops, [weight]), whole.with_gradients(backend.ops, [weight])
    cases.assert_same(found[0], expected[0])
    cases.assert_close(found[0][0], call.to('cpu')(reference)[0])
    cases.assert_same(found[1][0], expected[1][0])
    assert found[1][1].shape == shape
    torch.testing.assert_close(found[1][1], expected[1][1].sum_to_size(shape))


@pytest.mark.parametrize('shape', SINGLE)
def test_sizes_of_1_of_a_selective_scan_stand_for_any_other(backend, shape):
    call = cases.selective_tree_scan(cases.spanning_tree(2, 3, 4), 5, torch.float64, distance=True)
    sizes = dict(zip((2, 12, 5), shape, strict=True))
    small = [call.tensors[0], *(x[tuple(slice(sizes[n]) for n in x.shape)] for x in call.tensors[1:])]
    likes, call = call.given(), call.fill(small).to(backend.device)
    whole = call.fill(x.expand_as(like).contiguous() for x, like in zip(call.given(), likes, strict=True))
    found, expected = (each.with_gradients(backend.ops) for each in (call, whole))
    cases.assert_same(found[0], expected[0])
    cases.assert_close(found[0][0], call.to('cpu')(reference)[0])
    for ours, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(ours, theirs.sum_to_size(ours.shape))
