"""Tree scans and the read-out: drawn cases, the definition, extreme values, exp and softplus."""

import math

import pytest
import torch
import torch.nn.functional as F

from grootv import ops
from grootv.ops import reference
from tests.ops.cases import (
    GRIDS,
    SCAN_DTYPES,
    assert_same,
    gated_read_out,
    make,
    parent_edges,
    to_device,
    tree_of,
)


def tree_of_parents(backend, *parents: int) -> ops.Tree:
    """The tree in which vertex 0 is the root and the others have these parents."""
    edges = torch.tensor([[vertex, parent] for vertex, parent in enumerate(parents, 1)])
    return to_device(tree_of(edges, 1), backend.device)


def test_scan_of_a_drawn_tree(backend):
    #       0          decays: 1 -> 1/2, 2 -> 1/4, 3 -> 1/2 (below 1)
    #      / \
    #     1   2        inputs: 1, 2, 4, 8
    #     |
    #     3
    tree = tree_of_parents(backend, 0, 0, 1)
    signal = torch.tensor([[[1.0], [2], [4], [8]]], device=backend.device)
    decay = signal.new_tensor([[[math.nan], [0.5], [0.25], [0.5]]])  # the root's is never read
    up = backend.ops.tree_scan(signal, decay, tree, 'up')
    assert up.flatten().tolist() == [1 + 0.5 * 6 + 0.25 * 4, 2 + 0.5 * 8, 4, 8]
    both = backend.ops.tree_scan(signal, decay, tree)
    assert both.flatten().tolist() == [5, 6 + 0.5 * 2, 4 + 0.25 * 4, 8 + 0.5 * 3]


@pytest.mark.parametrize(('height', 'width'), GRIDS)
def test_definition_over_all_pairs(height, width):
    """h[i] = sum over j of P(i, j) input[j], with the product of the decays on every path multiplied out."""
    call = make('tree_scan both', 1, height, width, 3, torch.float64)
    (signal, decay), order, parent = call.tensors, *(part[0].tolist() for part in call.tree)
    paths = torch.zeros(len(order), len(order), 3, dtype=torch.float64)
    for vertex in order:
        paths[vertex] = paths[:, vertex] = decay[0, vertex] * paths[parent[vertex]]
        paths[vertex, vertex] = 1
    expected = torch.einsum('ijc,bjc->bic', paths, signal)
    torch.testing.assert_close(call(ops)[0], expected, rtol=1e-12, atol=1e-12)  # rounding of float64 only


def test_float16_accumulates_in_float32(backend):
    tree = to_device(tree_of(parent_edges('path', 1000), 1), backend.device)
    ones = torch.ones(1, 1000, 1, dtype=torch.float16, device=backend.device)
    up = backend.ops.tree_scan(ones, ones * 0.999, tree, 'up')
    assert up.max() > 600  # adding in float16 stalls earlier
    huge = backend.ops.tree_scan(ones * 100, ones, tree)
    assert huge.isinf().all()  # sums beyond float16's range become infinite, not NaN


def test_decays_of_one_and_zero(backend):
    call = make('tree_scan both', 1, 4, 4, 2, torch.float64).to(backend.device)
    signal, everything = call.tensors[0], call.tensors[0].sum(1, keepdim=True)
    ones = torch.ones_like(signal)
    torch.testing.assert_close(backend.ops.tree_scan(signal, ones, call.tree), everything.expand_as(signal))
    assert torch.equal(backend.ops.tree_scan(signal, ones * 0, call.tree), signal)


def test_selective_scan_of_a_drawn_tree(backend):
    #   0 -- 1         steps 1, 2; A = -log 2: decays 1/2, 1/4
    def tensor(*values):
        return torch.tensor(values, device=backend.device)

    x, delta, B = tensor(3.0, 5.0).view(1, 2, 1), tensor(0.5, 1.5).view(1, 2, 1), tensor(1.0, 2.0).view(1, 2)
    A, tree = -tensor(2.0).log(), tree_of_parents(backend, 0)
    h = backend.ops.selective_tree_scan(x, delta, A, B, tree, tensor(0.5), delta_softplus=False)
    torch.testing.assert_close(h.flatten(), tensor(3 + 20 / 4, 20 + 3 / 4))


def test_selective_scan_of_a_drawn_tree_with_distances(backend):
    #   0 -- 1 -- 2    steps 1, 1, 2; A = -log 2: decays by step 1/2 and 1/4
    #                  distances 1 and 3; scale = log 2: times 1/2 and 1/8, 1/4 and 1/32 in all
    def tensor(*values):
        return torch.tensor(values, device=backend.device)

    x, delta, A = (
        tensor(64.0, 64.0, 64.0).view(1, 3, 1),
        tensor(1.0, 1.0, 2.0).view(1, 3, 1),
        -tensor(2.0).log(),
    )
    B, distance, scale = (
        tensor(1.0, 1.0, 1.0).view(1, 3),
        tensor(math.nan, 1.0, 3.0).view(1, 3),
        tensor(2.0).log(),
    )
    tree = tree_of_parents(backend, 0, 1)  # the root's distance is never read
    distance.requires_grad_(), scale.requires_grad_()
    h = backend.ops.selective_tree_scan(x, delta, A, B, tree, None, False, distance, scale)
    torch.testing.assert_close(h.flatten(), tensor(64 + 16 + 1.0, 64 + 16 + 4.0, 128 + 2 + 0.5))
    # What crosses the edges, both ways: (64 + 64) / 4 + (64 + 128) / 128; (64 + 128) / 32 + (64 + 128) / 128
    grads = torch.autograd.grad(h.sum(), (distance, scale))
    torch.testing.assert_close(grads[0], -scale.detach() * tensor(0, 33.5, 7.5).view(1, 3))
    torch.testing.assert_close(grads[1], -tensor(1 * 33.5 + 3 * 7.5))


@pytest.mark.parametrize('dtype', SCAN_DTYPES)
def test_without_a_distance_the_scan_is_the_published_one(backend, dtype):
    """Distances of 0 add exact zeros: the same bits in all that both have."""
    for shape in [(2, 3, 4, 20), (1, 13, 9, 5)]:
        plain, call = (make(f'selective_tree_scan{form}', *shape, dtype) for form in ('', ' with distance'))
        *others, distance, scale = call.tensors
        for edge in ((distance * 0, scale), (distance, scale * 0), (distance * 0, scale * 0)):
            given = *others, *edge
            found = call.fill(given).to(backend.device).with_gradients(backend.ops)
            expected = plain.to(backend.device).with_gradients(backend.ops)
            assert_same(found[0], expected[0])
            assert_same(found[1][:5], expected[1])


@pytest.mark.parametrize('value', [math.nan, math.inf, -1e30])
def test_the_distance_of_the_root_is_never_read(backend, value):
    for shape in [(2, 3, 4, 5), (1, 1, 1, 5), (1, 20, 17, 5)]:
        call = make('selective_tree_scan with distance', *shape)
        other = call.map(torch.clone)
        root = call.tree.order[:, 0].long()
        other.tensors[5][range(shape[0]), root] = value
        found, expected = (each.to(backend.device).with_gradients(backend.ops) for each in (other, call))
        assert_same([*found[0], *found[1]], [*expected[0], *expected[1]])
        assert (found[1][5].cpu()[range(shape[0]), root] == 0).all()
        if value == value and shape[1] < 20:
            assert all(grad.isfinite().all() for grad in other.with_gradients(reference)[1])


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_parameters_as_mamba_stores_them(backend, dtype):
    """A as (C, 1), B and the distance as (B, L, 1); all but x, delta and B in half types or in float32."""
    call = make('selective_tree_scan with distance', 2, 3, 4, 5, dtype).to(backend.device)
    x, delta, A, B, bias, distance, scale = (tensor.to(dtype) for tensor in call.tensors)
    stored = call.fill([x, delta, A.unsqueeze(1), B.unsqueeze(2), bias, distance.unsqueeze(2), scale])
    A, bias, distance, scale = (tensor.to(call.tensors[2]) for tensor in (A, bias, distance, scale))
    wide = call.fill([x, delta, A, B, bias, distance, scale])
    (found, grads), (expected, wanted) = (each.with_gradients(backend.ops) for each in (stored, wide))
    assert torch.equal(found[0], expected[0])
    for grad, want, leaf in zip(grads, wanted, stored.tensors, strict=True):
        assert grad.shape == leaf.shape
        assert torch.equal(grad.flatten(), want.to(dtype).flatten())


def test_sums_over_many_vertices_keep_their_digits(backend):
    vertices = 4000 if 'emulated' in backend.name else 40_000
    tree = to_device(tree_of(parent_edges('path', vertices), 1), backend.device)
    x = torch.full((1, vertices, 1), 0.1, device=backend.device)
    A = x.new_tensor([-1e4])  # decays of 0: every vertex alone
    bias = torch.zeros(1, requires_grad=True, device=backend.device)
    h = backend.ops.selective_tree_scan(x, torch.ones_like(x), A, x[..., 0] * 0 + 1, tree, bias, False)
    (grad,) = torch.autograd.grad(h.sum(), bias)
    # one after the other in float32 they would be off by 5e-4
    torch.testing.assert_close(grad, x.double().sum((0, 1)).float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize('step', [-100.0, 50.0, -math.inf])
def test_extreme_steps(backend, step):
    for grid in ((1, 1), (3, 5), (13, 9)):
        call = make('selective_tree_scan', 2, *grid, 3).to(backend.device)
        call.tensors[1], call.tensors[4] = torch.full_like(call.tensors[1], step), None
        (found, grads), expected = call.with_gradients(backend.ops), call.to('cpu')(reference)
        torch.testing.assert_close(found[0].cpu(), expected[0], rtol=1e-5, atol=1e-12)
        assert all(grad.isfinite().all() for grad in grads)


def test_nan_and_infinity_stay_in_their_channels(backend):
    call = make('selective_tree_scan', 1, 4, 4, 20)
    call.tensors[1][0, 5, 3] = math.nan
    (h,), grads = call.to(backend.device).with_gradients(backend.ops)
    assert h[0, :, 3].isnan().all() and h.isnan().sum() == 16
    assert grads[1][0, 5, 3].isnan()
    for direction in ('both', 'up'):
        call = make(f'tree_scan {direction}', 2, 7, 7, 5)
        call.tensors[0][0, 17, 1], call.tensors[0][1, 3, 2] = math.nan, math.inf
        found, expected = call.to(backend.device)(backend.ops)[0].cpu().isnan(), call(reference)[0].isnan()
        # On CUDA the root of an infinite sum is NaN, and infinite on the CPU.
        root = torch.zeros_like(found).index_fill_(1, torch.tensor([0]), backend.name != 'cpu')
        assert torch.equal(found & ~root, expected & ~root)


def units(found, expected) -> float:
    """Greatest difference in float32's units in the last place of the expected float64 values."""
    rounded = expected.float()
    unit = (torch.nextafter(rounded, torch.full_like(rounded, math.inf)) - rounded).double()
    return ((found.double() - expected) / unit).abs().max().item()


def exp(arguments):
    """By the scan: of vertices 0 -- 1, the first receives exp(A) of the second and nothing else."""
    x = torch.tensor([0.0, 1.0]).view(1, 2, 1).expand(1, 2, len(arguments))
    tree = ops.build_tree(torch.rand(1, 1, 2, 1))
    return ops.selective_tree_scan(
        x, torch.ones_like(x), arguments, torch.ones(1, 2), tree, delta_softplus=False
    )[0, 0]


def test_exp_and_softplus_are_off_by_few_units():
    special = torch.tensor([-math.inf, math.inf, -200.0, 200.0, 0.0, -0.0, math.nan])
    torch.testing.assert_close(exp(special), special.exp(), rtol=0, atol=0, equal_nan=True)
    arguments = torch.cat([torch.linspace(-110, 88.7, 100_001), torch.linspace(-1, 1, 20_001)])
    assert units(exp(arguments), arguments.double().exp()) < 1.5
    # A vertex of weight 1 alone has its own step for its state.
    alone, wide = ops.build_tree(torch.rand(1, 1, 1, 1)), arguments.double().requires_grad_()
    delta, one = arguments.clone().requires_grad_(), torch.ones_like(arguments)
    step = ops.selective_tree_scan(one.view(1, 1, -1), delta.view(1, 1, -1), one, one[:1].view(1, 1), alone)
    exact = F.softplus(wide, threshold=40)
    assert units(step.flatten(), exact.detach()) < 2.5
    (slope,), (exact_slope,) = (torch.autograd.grad(f.sum(), v) for f, v in ((step, delta), (exact, wide)))
    assert units(slope, exact_slope) < 3


def test_read_out_of_a_row_by_hand(backend):
    #   LN(h) = (-1, 1); y = 2 LN(h) + D x = (-2 + 5, 2) and LN(y) = (1, -1); silu(0) = 0
    def tensor(*values):
        return torch.tensor(values, device=backend.device)

    one, zero = tensor(1.0, 1.0), tensor(0.0, 0.0)
    h, x, z = (tensor(*values).view(1, 1, 2) for values in ((3.0, 7.0), (5.0, 9.0), (-3.0, 0.0)))
    norms = (one, zero), (one * 4, one * 5)
    found = backend.ops.gated_read_out(h, tensor(2.0).view(1, 1), x, tensor(1.0, 0.0), z, *norms, eps=1e-12)
    torch.testing.assert_close(found.flatten(), tensor(9 * -3 / (1 + math.exp(3)), 0.0))


def test_weights_of_the_read_out_as_models_store_them(backend):
    call = gated_read_out(2, 6, 5).to(backend.device)
    vectors = {3, 5, 6, 7, 8}
    stored = call.fill([x.bfloat16() if i in vectors else x for i, x in enumerate(call.tensors)])
    stored.tensors[1] = stored.tensors[1].unsqueeze(2)
    rounded = call.fill([x.bfloat16().float() if i in vectors else x for i, x in enumerate(call.tensors)])
    (found,), grads = stored.with_gradients(backend.ops)
    assert torch.equal(found, rounded(backend.ops)[0])
    assert [grad.dtype for grad in grads] == [leaf.dtype for leaf in stored.tensors]


@pytest.mark.parametrize('gate', [-math.inf, -200.0, -21.0, 21.0, 200.0])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_gates_far_open_and_far_closed(backend, gate, dtype):
    call = gated_read_out(1, 3, 4, dtype)
    call.tensors[4] = torch.full_like(call.tensors[4], gate)
    found = call.to(backend.device).with_gradients(backend.ops)
    expected = call.double().with_gradients(reference)
    if not math.isfinite(gate):
        assert found[0][0].isnan().all()
        return
    for ours, theirs in zip(found[0] + found[1], expected[0] + expected[1], strict=True):
        tolerance = 1e-12 if dtype == torch.float64 else 1e-4
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=tolerance, atol=tolerance)


def test_nan_stays_with_its_vertex_in_the_read_out(backend):
    call = gated_read_out(1, 5, 20)
    call.tensors[0][0, 3, 7] = math.nan
    (y,) = call.to(backend.device)(backend.ops)
    assert y[0, 3].isnan().all() and y.isnan().sum() == 20
