"""Mamba's selective scan along a tree over the tokens: leaves to root, with a state of any size."""

import torch
from torch import Tensor

from ._fake import check_dim, check_same_device, check_shape, empty
from ._library import available, ops
from .traversal import Tree


def token_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    tree: Tree,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> tuple[Tensor, Tensor]:
    """Gather the state of every token from the tokens below it, and read it out.

    With the step ``d = softplus(delta + delta_bias)``, the state of token t and channel c, a vector of
    N entries, is

    ``h[t] = d[t] x[t] B[t] + sum over children s of t: exp(d[s + 1] A) h[s]``

    where s + 1 is the token that follows s in the text, whatever its parent is; the output is
    ``y[t] = sum_n C[t, n] h[t, n]``. On :func:`grootv.ops.token_chain` this is Mamba's own recurrence.
    States are kept in float32, in float64 for float64, and are never stored for all tokens at once in the
    forward pass; the backward pass computes them again.

    Args:
        x: Signal, shape (B, L, D).
        delta: Step of every token and channel before bias and softplus, shape (B, L, D), dtype of ``x``.
        A: Rates, negative for decays below 1, shape (D, N); converted to float32, to float64 if ``x`` is.
        B: Weights of the signal in the state, shape (B, L, N), dtype of ``x``.
        C: Weights of the state in the output, shape (B, L, N), dtype of ``x``.
        tree: Tree rooted at the last token, from :func:`grootv.ops.token_tree` or
            :func:`grootv.ops.token_chain`.
        delta_bias: Added to ``delta`` at every token, shape (D,), converted as ``A`` is.
        delta_softplus: Whether the step is a softplus, or ``delta + delta_bias`` itself.

    Returns:
        Output, shape (B, L, D), dtype of ``x``; and the state of the last token, from which a recurrence can
        go on, shape (B, D, N) in the dtype of the states. Differentiable once, in reverse mode, in every
        floating argument; the same bits for any number of threads.

    Raises:
        RuntimeError: If shapes, dtypes or devices disagree, or the tree is not one rooted at the last token.
            A CUDA device is not waited for, and gives NaN for such an item.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    bias = None if delta_bias is None else delta_bias.to(wide)
    return ops.token_scan(x, delta, A.to(wide), B, C, bias, tree.order, tree.parent, delta_softplus)


def _save_for_backward(ctx, inputs, output):
    *tensors, ctx.delta_softplus = inputs
    ctx.has_bias = tensors[5] is not None
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad, grad_state):
    saved = x, _, A, *_ = ctx.saved_tensors  # once: a checkpoint unpacks its tensors a single time
    if grad is None:
        grad = torch.zeros_like(x)
    if grad_state is None:
        grad_state = A.new_zeros(len(x), *A.shape)
    *grads, grad_bias = ops.token_scan_backward(grad, grad_state, *saved, ctx.delta_softplus)
    return *grads, grad_bias if ctx.has_bias else None, None, None, None


def _refuse_double_backward(ctx, *grads):
    raise NotImplementedError(
        'token_scan: the second derivative is not implemented; call backward without create_graph=True'
    )


def _check(function, x, delta, A, B, C, delta_bias, order, parent):
    check_dim(function, 'x', x, 3, '(B, L, D)')
    check_dim(function, 'A', A, 2, '(D, N)')
    (batch, length, channels), states = x.shape, A.shape[1]
    check_shape(function, 'delta', 'one value per token and channel', delta, (batch, length, channels))
    check_shape(function, 'A', 'one row per channel', A, (channels, states))
    for name, tensor in dict(B=B, C=C).items():
        check_shape(function, name, 'one value per token and state', tensor, (batch, length, states))
    bias = {} if delta_bias is None else dict(delta_bias=delta_bias)
    for name, tensor in bias.items():
        check_shape(function, name, 'one value per channel', tensor, (channels,))
    tree = dict(order=order, parent=parent)
    for name, tensor in tree.items():
        check_shape(function, name, 'one entry per token of each sequence', tensor, (batch, length))
    check_same_device(function, x=x, delta=delta, A=A, B=B, C=C, **bias, **tree)


def _empty_like(tensor):
    return empty(tensor, tensor.shape)


if available:

    @torch.library.register_fake('grootv::token_scan')
    def _(x, delta, A, B, C, delta_bias, order, parent, delta_softplus):
        _check('token_scan', x, delta, A, B, C, delta_bias, order, parent)
        return _empty_like(x), empty(A, (x.shape[0], *A.shape))

    @torch.library.register_fake('grootv::token_scan_backward')
    def _(grad, grad_state, x, delta, A, B, C, delta_bias, order, parent, delta_softplus):
        function = 'token_scan_backward'
        _check(function, x, delta, A, B, C, delta_bias, order, parent)
        grads = tuple(map(_empty_like, (x, delta, A, B, C)))
        return *grads, empty(A, (A.shape[0],))

    torch.library.register_autograd('grootv::token_scan', _backward, setup_context=_save_for_backward)
    torch.library.register_autograd('grootv::token_scan_backward', _refuse_double_backward)
    for _device in ('cpu', 'cuda'):
        torch.library.register_autocast('grootv::token_scan', _device, torch.float32)
