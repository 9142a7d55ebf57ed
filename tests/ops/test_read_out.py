"""The gated read-out: a row by hand, the reference, gradients, dtypes, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grootv import ops
from grootv.ops import reference

NAMES = ('h', 'C', 'x', 'D', 'z', 'h_weight', 'h_bias', 'y_weight', 'y_bias')
DTYPES = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
]


def inputs(batch: int, vertices: int, channels: int, dtype=torch.float64, gate_dtype=None) -> list[Tensor]:
    """The tensors in the order of ``NAMES``."""
    generator = torch.Generator().manual_seed(batch * 10_000 + vertices * 100 + channels)
    rows, vector = (batch, vertices, channels), (channels,)
    shapes = rows, rows[:2], rows, vector, rows, vector, vector, vector, vector
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    tensors[4] = tensors[4].to(gate_dtype or dtype)
    return tensors


def call(library, tensors: list[Tensor], **options) -> Tensor:
    *tensors, h_weight, h_bias, y_weight, y_bias = tensors
    return library.gated_read_out(*tensors, (h_weight, h_bias), (y_weight, y_bias), **options)


def trained(tensors: list[Tensor], dtype=None) -> list[Tensor]:
    return [tensor.detach().clone().to(dtype or tensor.dtype).requires_grad_() for tensor in tensors]


def test_a_row_by_hand():
    #   LN(h) = (-1, 1); y = 2 LN(h) + D x = (-2 + 5, 2) and LN(y) = (1, -1); silu(0) = 0
    one, zero = torch.ones(2), torch.zeros(2)
    h, x, z = torch.tensor([[[3.0, 7.0]]]), torch.tensor([[[5.0, 9.0]]]), torch.tensor([[[-3.0, 0.0]]])
    C, D, weight, bias = torch.tensor([[2.0]]), torch.tensor([1.0, 0.0]), one * 4, one * 5
    found = ops.gated_read_out(h, C, x, D, z, (one, zero), (weight, bias), eps=1e-12)
    torch.testing.assert_close(found, torch.tensor([[[9 * -3 / (1 + math.exp(3)), 0.0]]]))


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 150), st.integers(1, 100)),
    dtypes=st.sampled_from(DTYPES),
)
def test_equals_the_reference(shape, dtypes):
    tensors = inputs(*shape, *dtypes)
    found, expected = (call(library, tensors, eps=1e-3) for library in (ops, reference))
    assert found.dtype == dtypes[1]
    tolerance = 1e-12 if dtypes[0] == torch.float64 else max(3e-6, torch.finfo(dtypes[1]).eps)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize('shape', [(1, 1, 2), (2, 3, 5), (1, 2, 19)])
def test_gradcheck(shape):
    tensors = trained(inputs(*shape))
    assert torch.autograd.gradcheck(lambda *tensors: call(ops, tensors, eps=1e-2), tensors)


@pytest.mark.parametrize('dtypes', DTYPES)
@pytest.mark.parametrize('shape', [(2, 70, 40), (1, 300, 21), (0, 3, 4)])
def test_gradients_of_every_dtype(shape, dtypes):
    tensors = inputs(*shape, *dtypes)
    given, exact = trained(tensors), trained(tensors, torch.float64)
    expected = call(reference, exact)
    weight = torch.randn_like(expected).to(dtypes[1])
    grads = torch.autograd.grad(call(ops, given), given, weight)
    expected_grads = torch.autograd.grad(expected, exact, weight.double())
    for name, grad, leaf, expected in zip(NAMES, grads, given, expected_grads, strict=True):
        assert grad.dtype == leaf.dtype and grad.shape == leaf.shape
        eps = torch.finfo(leaf.dtype).eps
        assert (grad.double() - expected).norm() <= 20 * eps * expected.norm(), name


def test_any_number_of_threads_returns_the_same_bits():
    tensors = inputs(3, 150, 300, torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            given = trained(tensors)
            y = call(ops, given)
            results.append((y, *torch.autograd.grad(y.square().sum(), given)))
    finally:
        torch.set_num_threads(threads)
    for one, two, five in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, five)


def test_inputs_are_left_alone_and_may_be_strided():
    tensors = inputs(2, 6, 5)
    copies = [tensor.clone() for tensor in tensors]
    expected = call(ops, tensors)
    assert all(map(torch.equal, tensors, copies))
    strided = [torch.stack([tensor, tensor], -1)[..., 0] for tensor in tensors]
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert torch.equal(call(ops, strided), expected)


def test_weights_as_models_store_them():
    tensors = inputs(2, 6, 5, torch.float32)
    tensors[3], *tensors[5:] = (tensors[i].bfloat16() for i in (3, 5, 6, 7, 8))
    rounded = [tensor.float() for tensor in tensors]
    tensors[1] = tensors[1].unsqueeze(2)
    given = trained(tensors)
    y = call(ops, given)
    assert torch.equal(y, call(ops, rounded))
    grads = torch.autograd.grad(y.sum(), given)
    assert all(grad.dtype == leaf.dtype for grad, leaf in zip(grads, given, strict=True))


@pytest.mark.parametrize('gate', [-math.inf, -200.0, -21.0, 21.0, 200.0])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_gates_far_open_and_far_closed(gate, dtype):
    tensors = inputs(1, 3, 4, dtype)
    tensors[4] = torch.full_like(tensors[4], gate)
    given, exact = trained(tensors), trained(tensors)
    y, expected = call(ops, given), call(reference, exact)
    tolerance = dict(rtol=1e-12, atol=1e-12) if dtype == torch.float64 else {}
    torch.testing.assert_close(y, expected, equal_nan=True, **tolerance)
    if math.isfinite(gate):
        grads, expected = (
            torch.autograd.grad(f.sum(), leaves) for f, leaves in ((y, given), (expected, exact))
        )
        torch.testing.assert_close(grads, expected, **(tolerance or dict(rtol=1e-4, atol=1e-4)))


def test_nan_stays_with_its_vertex():
    tensors = inputs(1, 5, 20, torch.float32)
    tensors[0][0, 3, 7] = math.nan
    y = call(ops, tensors)
    assert y[0, 3].isnan().all() and y.isnan().sum() == 20


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_reads_out_in_float32(dtype):
    tensors = [tensor.float() for tensor in inputs(1, 4, 3)]
    for name in ('h', 'C', 'x', 'z'):
        tensors[NAMES.index(name)] = tensors[NAMES.index(name)].to(dtype)
    with torch.autocast('cpu', dtype):
        found = call(ops, tensors)
    assert found.dtype == torch.float32
    assert torch.equal(found, call(ops, [tensor.float() for tensor in tensors]))


def test_nothing_but_the_inputs_is_kept_for_the_backward_pass():
    given, kept = trained(inputs(1, 4, 3)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
        call(ops, given)
    assert kept and {tensor.data_ptr() for tensor in kept} <= {tensor.data_ptr() for tensor in given}


def test_second_derivatives_are_refused_with_a_sentence():
    given = trained(inputs(1, 2, 3))
    (grad,) = torch.autograd.grad(call(ops, given).square().sum(), given[0], create_graph=True)
    with pytest.raises(NotImplementedError, match='gated_read_out: the second derivative'):
        grad.sum().backward()


def bad_calls():
    h, C, x, D, z, *norms = inputs(2, 9, 4, torch.float32)
    good = dict(zip(NAMES, (h, C, x, D, z, *norms), strict=True))
    return {
        message: {**good, **changed}
        for message, changed in {
            'h must have shape (B, L, C), got (2, 36)': dict(h=h.flatten(1)),
            'h must be float32 or float64, got float16': dict(h=h.half()),
            'C needs one value per vertex, shape (2, 9), got (2, 4)': dict(C=C[:, :4]),
            'x needs one value per vertex and channel, shape (2, 9, 4), got (2, 9, 3)': dict(x=x[..., :3]),
            'x must be float32, got float64': dict(x=x.double()),
            'z must be float32, float16 or bfloat16, got float64': dict(z=z.double()),
            'z must be float32, float64, float16 or bfloat16, got int32': dict(z=z.int()),
            'z needs one value per vertex and channel, shape (2, 9, 4), got (2, 9)': dict(z=z[..., 0]),
            'D needs one value per channel, shape (4), got (5)': dict(D=torch.zeros(5)),
            'y_bias needs one value per channel, shape (4), got (1)': dict(y_bias=torch.zeros(1)),
            'all tensors must be on one device, but z is on another than the first': dict(z=z.to('meta')),
        }.items()
    }


@pytest.mark.parametrize('message', bad_calls())
def test_bad_input(message):
    with pytest.raises(RuntimeError) as error:
        call(ops, list(bad_calls()[message].values()))
    assert str(error.value).startswith(f'gated_read_out: {message}')


def test_equals_the_layers_it_replaces():
    h, C, x, D, z, *_ = inputs(2, 7, 6, torch.float32)
    state_norm, out_norm = torch.nn.LayerNorm(6), torch.nn.LayerNorm(6)
    expected = out_norm(C.unsqueeze(2) * state_norm(h) + D * x) * F.silu(z)
    norms = [(norm.weight, norm.bias) for norm in (state_norm, out_norm)]
    torch.testing.assert_close(ops.gated_read_out(h, C, x, D, z, *norms, out_norm.eps), expected)
