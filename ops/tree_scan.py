"""The state-space recurrence along a tree, in linear time."""

import torch
from torch import Tensor

from ._fake import check_dim, check_same_device, check_shape
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
        Shape (B, L, C), dtype of ``input``. Differentiable once in ``input`` and ``decay``, keeping
        nothing but these two for the backward pass; O(L) per channel.

    Raises:
        ValueError: If the direction is unknown.
        RuntimeError: If shapes, dtypes or devices disagree, or the tree is not in breadth-first order.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f'tree_scan: direction must be one of {", ".join(DIRECTIONS)}, got {direction!r}')
    return ops.tree_scan(input, decay, tree.order, tree.parent, tree.level_ptr, direction)


def _save_for_backward(ctx, inputs, output):
    input, decay, order, parent, level_ptr, ctx.direction = inputs
    ctx.save_for_backward(input, decay, order, parent, level_ptr)


def _backward(ctx, grad):
    grads = ops.tree_scan_backward(grad, *ctx.saved_tensors, ctx.direction)
    return *grads, None, None, None, None


def _refuse_double_backward(ctx, *grads):
    raise NotImplementedError(
        'tree_scan: the second derivative is not implemented; call backward without create_graph=True'
    )


def _check(function, input, decay, order, parent, level_ptr):
    check_dim(function, 'input', input, 3, '(B, L, C)')
    batch, vertices, _ = input.shape
    check_shape(function, 'decay', 'one value per vertex and channel', decay, tuple(input.shape))
    rule = 'one entry per vertex of each item'
    check_shape(function, 'order', rule, order, (batch, vertices))
    check_shape(function, 'parent', rule, parent, (batch, vertices))
    check_shape(function, 'level_ptr', 'one entry more than vertices', level_ptr, (batch, vertices + 1))
    tree = dict(order=order, parent=parent, level_ptr=level_ptr)
    check_same_device(function, input=input, decay=decay, **tree)


if available:

    @torch.library.register_fake('grootv::tree_scan')
    def _(input, decay, order, parent, level_ptr, direction):
        _check('tree_scan', input, decay, order, parent, level_ptr)
        return torch.empty_like(input, memory_format=torch.contiguous_format)

    @torch.library.register_fake('grootv::tree_scan_backward')
    def _(grad, input, decay, order, parent, level_ptr, direction):
        _check('tree_scan_backward', input, decay, order, parent, level_ptr)
        contiguous = torch.contiguous_format
        return (
            torch.empty_like(input, memory_format=contiguous),
            torch.empty_like(decay, memory_format=contiguous),
        )

    torch.library.register_autograd('grootv::tree_scan', _backward, setup_context=_save_for_backward)
    torch.library.register_autograd('grootv::tree_scan_backward', _refuse_double_backward)
    for _device in ('cpu', 'cuda'):
        torch.library.register_autocast('grootv::tree_scan', _device, torch.float32)
