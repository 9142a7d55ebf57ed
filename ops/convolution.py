"""Convolution of a map as one operator that compilers call and do not trace.

For ``torch.compile`` and AOTInductor only. Inductor's own lowering of a convolution compares the strides
of its input, and where height and width are both symbolic torch 2.13 fails in that comparison
(``ValueRangeError: Invalid ranges [0:-1]``, pytorch/pytorch#188422). Sizes written as ceil(H / stride) also
keep the index expressions of later operators short.

Plain PyTorch on every device, hence another namespace than that of the compiled operators.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._register import check_shapes, empty


@torch.library.custom_op('grootv_opaque::convolve', mutates_args=())
def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, groups: int) -> Tensor:
    """Convolve a map with an odd square kernel, padded to ceil(size / stride).

    Args:
        x: Map, shape (B, H, W, C), fastest contiguous.
        weight: Shape (C', C / groups, K, K), dtype of ``x``.
        bias: Shape (C',), dtype of ``x``, or None.
        stride: Step in both directions.
        groups: Groups of channels that do not mix.

    Returns:
        Shape (B, ceil(H / stride), ceil(W / stride), C'), contiguous. Differentiable once.
    """
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, weight.shape[-1] // 2, 1, groups)
    return y.permute(0, 2, 3, 1).contiguous()


@torch.library.custom_op('grootv_opaque::convolve_backward', mutates_args=())
def convolve_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, groups: int, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`convolve` by map, weight and bias; an empty one where ``needed`` is false."""
    padding = weight.shape[-1] // 2
    maps = (tensor.permute(0, 3, 1, 2) for tensor in (grad, x))
    options = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups, needed)
    grads = torch.ops.aten.convolution_backward(*maps, weight, [weight.shape[0]], *options)
    outs = _empty_grads(x, weight, needed)
    for out, found in zip((outs[0].permute(0, 3, 1, 2), *outs[1:]), grads, strict=True):
        if found is not None:
            out.copy_(found)
    return outs


def _empty_grads(x: Tensor, weight: Tensor, needed: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Memory of the gradients, in the layouts of map and weight."""
    likes = (x, weight, weight.new_empty(weight.shape[0]))
    x_grad, weight_grad, bias_grad = (
        torch.empty_like(like) if wanted else like.new_empty((0,) * like.dim())
        for like, wanted in zip(likes, needed, strict=True)
    )
    return x_grad, weight_grad, bias_grad


@convolve.register_fake
def _(x, weight, bias, stride, groups):
    sizes = check_shapes('convolve', {}, x=(x, 'B H W C', 'a map'))
    size = ((sizes[side] + stride - 1) // stride for side in 'HW')
    return empty(x, (sizes['B'], *size, weight.shape[0]))


@convolve_backward.register_fake
def _(grad, x, weight, stride, groups, needed):
    return _empty_grads(x, weight, needed)


def _save_for_backward(ctx, inputs, output):
    x, weight, _, ctx.stride, ctx.groups = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad):
    needed = list(ctx.needs_input_grad[:3])
    grads = convolve_backward(grad.contiguous(), *ctx.saved_tensors, ctx.stride, ctx.groups, needed)
    return *(found if wanted else None for found, wanted in zip(grads, needed, strict=True)), None, None


convolve.register_autograd(_backward, setup_context=_save_for_backward)


def opaque(x, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    """Decomposition of ``aten.conv2d`` into :func:`convolve`, for graphs that are already traced."""
    side = weight.shape[2]
    odd_square = side % 2 == 1 and weight.shape[3] == side
    if not odd_square or set(padding) != {side // 2} or len(set(stride)) > 1 or set(dilation) != {1}:
        return NotImplemented
    y = convolve(x.permute(0, 2, 3, 1).contiguous(), weight, bias, stride[0], groups)
    return y.permute(0, 3, 1, 2)
