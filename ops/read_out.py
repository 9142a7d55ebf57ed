"""From the states of a scan to the output of a selective state-space model."""

import torch
from torch import Tensor

from ._fake import check_dim, check_same_device, check_shape
from ._library import available, ops
from .tree_scan import _empty_like


def gated_read_out(
    h: Tensor,
    C: Tensor,
    x: Tensor,
    D: Tensor,
    z: Tensor,
    h_norm: tuple[Tensor, Tensor],
    y_norm: tuple[Tensor, Tensor],
    eps: float = 1e-5,
) -> Tensor:
    """``LayerNorm(C * LayerNorm(h) + D * x) * silu(z)`` in one pass over the vertices.

    All arithmetic is in the dtype of ``h``; under autocast every input is taken in float32.

    Args:
        h: States, shape (B, L, C), float32 or float64.
        C: Weight of every vertex, shape (B, L) or (B, L, 1), dtype of ``h``.
        x: What was scanned, shape (B, L, C), dtype of ``h``.
        D: Weight of every channel of ``x``, shape (C,); converted to the dtype of ``h``.
        z: Gate, shape (B, L, C); float64 if ``h`` is, otherwise float32, float16 or bfloat16.
        h_norm: Weight and bias of the norm of the states, both (C,), converted as ``D`` is.
        y_norm: Weight and bias of the outer norm, likewise.
        eps: Added to the variance by both norms.

    Returns:
        Shape (B, L, C), dtype of ``z``. Differentiable once, in reverse mode, in all tensors, keeping
        nothing but these for the backward pass; every gradient has the same bits for any number of threads.

    Raises:
        RuntimeError: If shapes, dtypes or devices disagree.
    """
    if C.dim() == 3 and C.shape[2] == 1:
        C = C.squeeze(2)
    wide = torch.promote_types(h.dtype, torch.float32)
    vectors = [vector.to(wide) for vector in (D, *h_norm, *y_norm)]
    return ops.gated_read_out(h, C, x, vectors[0], z, *vectors[1:], eps)


def _save_for_backward(ctx, inputs, output):
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    return *ops.gated_read_out_backward(grad, *ctx.saved_tensors, ctx.eps), None


def _refuse_double_backward(ctx, *grads):
    raise NotImplementedError(
        'gated_read_out: the second derivative is not implemented; call backward without create_graph=True'
    )


def _check(function, h, C, x, z, **vectors):
    check_dim(function, 'h', h, 3, '(B, L, C)')
    check_shape(function, 'C', 'one value per vertex', C, tuple(h.shape[:2]))
    for name, tensor in dict(x=x, z=z).items():
        check_shape(function, name, 'one value per vertex and channel', tensor, tuple(h.shape))
    for name, tensor in vectors.items():
        check_shape(function, name, 'one value per channel', tensor, tuple(h.shape[2:]))
    check_same_device(function, h=h, C=C, x=x, z=z, **vectors)


if available:

    @torch.library.register_fake('grootv::gated_read_out')
    def _(h, C, x, D, z, h_weight, h_bias, y_weight, y_bias, eps):
        vectors = dict(D=D, h_weight=h_weight, h_bias=h_bias, y_weight=y_weight, y_bias=y_bias)
        _check('gated_read_out', h, C, x, z, **vectors)
        return _empty_like(z)

    @torch.library.register_fake('grootv::gated_read_out_backward')
    def _(grad, h, C, x, D, z, h_weight, h_bias, y_weight, y_bias, eps):
        vectors = dict(D=D, h_weight=h_weight, h_bias=h_bias, y_weight=y_weight, y_bias=y_bias)
        _check('gated_read_out_backward', h, C, x, z, **vectors)
        return tuple(map(_empty_like, (h, C, x, D, z, h_weight, h_bias, y_weight, y_bias)))

    torch.library.register_autograd('grootv::gated_read_out', _backward, setup_context=_save_for_backward)
    torch.library.register_autograd('grootv::gated_read_out_backward', _refuse_double_backward)
    for _device in ('cpu', 'cuda'):
        torch.library.register_autocast('grootv::gated_read_out', _device, torch.float32)
