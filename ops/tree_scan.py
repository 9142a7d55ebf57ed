"""The state-space recurrence along a tree, in linear time."""

import torch
from torch import Tensor

from ._fake import check_dim, check_same_device, check_shape, empty
from ._library import available, ops
from .traversal import Tree

DIRECTIONS = ('both', 'up')


def tree_scan(input: Tensor, decay: Tensor, tree: Tree, direction: str = 'both') -> Tensor:
    """Sum every vertex's input at every vertex, weakened along the path.

    With P(i, j) the product of the decays on the path between i and j: ``h[i] = sum_j P(i, j) input[j]``.
    Direction ``'up'`` sums over the subtree below i only, the root hearing everyone: the causal form.

    Sums are kept in float32 for float16 and bfloat16, and the same bits come back for any number of
    threads. Under autocast the scan runs in float32.

    Args:
        input: Signal, shape (B, L, C), vertices in row-major order.
        decay: Factor of the edge from a vertex to its parent, shape (B, L, C), dtype of ``input``. The
            root's entry is never read.
        tree: Order and parents from :func:`grootv.ops.breadth_first_order` or
            :func:`grootv.ops.build_tree`.
        direction: ``'both'`` or ``'up'``.

    Returns:
        Shape (B, L, C), dtype of ``input``. Differentiable once, in reverse mode, in ``input`` and
        ``decay``, keeping nothing but these two for the backward pass; O(L) per channel.

    Raises:
        ValueError: If the direction is unknown.
        RuntimeError: If shapes, dtypes or devices disagree, or the tree is not in breadth-first order.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f'tree_scan: direction must be one of {", ".join(DIRECTIONS)}, got {direction!r}')
    return ops.tree_scan(input, decay, tree.order, tree.parent, direction)


def selective_tree_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    tree: Tree,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """The tree scan of a selective state-space model of state size 1, in both directions.

    With the step ``d = softplus(delta + delta_bias)`` (PyTorch's, which is ``delta + delta_bias`` itself
    above 20) this is ``tree_scan(d * B * x, exp(d * A), tree)``, with signal and decay computed on the way:
    neither is stored as a whole, forward or backward. All arithmetic is in float32, and in float64 for
    float64. Under autocast the inputs are taken in float32 as well.

    Args:
        x: Signal before its weights, shape (B, L, C), vertices in row-major order.
        delta: Step of every vertex and channel before bias and softplus, shape (B, L, C), dtype of ``x``.
        A: Rate of every channel, negative for decays below 1, shape (C,) or (C, 1); converted to float32,
            to float64 if ``x`` is.
        B: Weight of every vertex, shape (B, L) or (B, L, 1), dtype of ``x``.
        tree: Order and parents, as for :func:`tree_scan`.
        delta_bias: Added to ``delta`` in every vertex, shape (C,), converted as ``A`` is.
        delta_softplus: Whether the step is a softplus, or ``delta + delta_bias`` itself.

    Returns:
        Shape (B, L, C), dtype of ``x``. Differentiable once, in reverse mode, in ``x``, ``delta``,
        ``A``, ``B`` and ``delta_bias``, keeping nothing but these for the backward pass. Every gradient,
        also the sums over channels or vertices, has the same bits for any number of threads; O(L) per
        channel.

    Raises:
        RuntimeError: If shapes, dtypes or devices disagree, or the tree is not in breadth-first order.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    if A.dim() == 2 and A.shape[1] == 1:
        A = A.squeeze(1)
    if B.dim() == 3 and B.shape[2] == 1:
        B = B.squeeze(2)
    bias = None if delta_bias is None else delta_bias.to(wide)
    return ops.selective_tree_scan(x, delta, A.to(wide), B, bias, tree.order, tree.parent, delta_softplus)


def _save_for_backward(ctx, inputs, output):
    input, decay, order, parent, ctx.direction = inputs
    ctx.save_for_backward(input, decay, order, parent)


def _backward(ctx, grad):
    grads = ops.tree_scan_backward(grad, *ctx.saved_tensors, ctx.direction)
    return *grads, None, None, None


def _save_selection_for_backward(ctx, inputs, output):
    *tensors, ctx.delta_softplus = inputs
    ctx.has_bias = tensors[4] is not None
    ctx.save_for_backward(*tensors)


def _selective_backward(ctx, grad):
    *grads, grad_bias = ops.selective_tree_scan_backward(grad, *ctx.saved_tensors, ctx.delta_softplus)
    return *grads, grad_bias if ctx.has_bias else None, None, None, None


def _refuse_double_backward(ctx, *grads):
    _refuse('tree_scan')


def _refuse_selective_double_backward(ctx, *grads):
    _refuse('selective_tree_scan')


def _refuse(function):
    raise NotImplementedError(
        f'{function}: the second derivative is not implemented; call backward without create_graph=True'
    )


def _check(function, input, decay, order, parent):
    check_dim(function, 'input', input, 3, '(B, L, C)')
    check_shape(function, 'decay', 'one value per vertex and channel', decay, tuple(input.shape))
    tree = dict(order=order, parent=parent)
    _check_tree(function, input, **tree)
    check_same_device(function, input=input, decay=decay, **tree)


def _check_selective(function, x, delta, A, B, delta_bias, order, parent):
    check_dim(function, 'x', x, 3, '(B, L, C)')
    check_shape(function, 'delta', 'one value per vertex and channel', delta, tuple(x.shape))
    check_shape(function, 'A', 'one value per channel', A, tuple(x.shape[2:]))
    check_shape(function, 'B', 'one value per vertex', B, tuple(x.shape[:2]))
    bias = {} if delta_bias is None else dict(delta_bias=delta_bias)
    for name, tensor in bias.items():
        check_shape(function, name, 'one value per channel', tensor, tuple(x.shape[2:]))
    tree = dict(order=order, parent=parent)
    _check_tree(function, x, **tree)
    check_same_device(function, x=x, delta=delta, A=A, B=B, **bias, **tree)


def _check_tree(function, signal, order, parent):
    batch, vertices, _ = signal.shape
    rule = 'one entry per vertex of each item'
    check_shape(function, 'order', rule, order, (batch, vertices))
    check_shape(function, 'parent', rule, parent, (batch, vertices))


def _empty_like(tensor):
    return empty(tensor, tensor.shape)


if available:

    @torch.library.register_fake('grootv::tree_scan')
    def _(input, decay, order, parent, direction):
        _check('tree_scan', input, decay, order, parent)
        return _empty_like(input)

    @torch.library.register_fake('grootv::tree_scan_backward')
    def _(grad, input, decay, order, parent, direction):
        _check('tree_scan_backward', input, decay, order, parent)
        return _empty_like(input), _empty_like(decay)

    @torch.library.register_fake('grootv::selective_tree_scan')
    def _(x, delta, A, B, delta_bias, order, parent, delta_softplus):
        _check_selective('selective_tree_scan', x, delta, A, B, delta_bias, order, parent)
        return _empty_like(x)

    @torch.library.register_fake('grootv::selective_tree_scan_backward')
    def _(grad, x, delta, A, B, delta_bias, order, parent, delta_softplus):
        function = 'selective_tree_scan_backward'
        _check_selective(function, x, delta, A, B, delta_bias, order, parent)
        return *map(_empty_like, (x, delta, A, B)), _empty_like(A)

    torch.library.register_autograd('grootv::tree_scan', _backward, setup_context=_save_for_backward)
    torch.library.register_autograd('grootv::tree_scan_backward', _refuse_double_backward)
    torch.library.register_autograd(
        'grootv::selective_tree_scan', _selective_backward, setup_context=_save_selection_for_backward
    )
    torch.library.register_autograd('grootv::selective_tree_scan_backward', _refuse_selective_double_backward)
    for _device in ('cpu', 'cuda'):
        for _name in ('tree_scan', 'selective_tree_scan'):
            torch.library.register_autocast(f'grootv::{_name}', _device, torch.float32)
