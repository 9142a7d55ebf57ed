"""Register what PyTorch needs of an operator besides its kernels: shapes, gradient, autocast and FLOPs.

A shape is a string of sizes, 'B L C' for (B, L, C); the first argument that has a size gives it its value.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from ._library import available, ops

Shapes = Mapping[str, tuple[str, str]]  # name of an argument: its shape, and in words what that means


def check_shapes(
    function: str, sizes: dict[str, int], **arguments: tuple[Tensor | None, str, str]
) -> dict[str, int]:
    """Check what needs no data, with the sentences of ``csrc/checks.h``, and return the sizes by name.

    Args:
        function: Name of the operator.
        sizes: Sizes that are known beforehand.
        arguments: Every tensor, None where an optional one is missing, with its shape and that in words.
    """
    sizes = {'2': 2} | sizes
    given = {name: (tensor, *rule) for name, (tensor, *rule) in arguments.items() if tensor is not None}
    first = next(iter(given.values()))[0]
    for name, (tensor, shape, rule) in given.items():
        found, axes = tuple(tensor.shape), shape.split()
        if len(found) != len(axes):
            raise RuntimeError(f'{function}: {name} must have shape ({", ".join(axes)}), got {found}')
        expected = tuple(sizes.setdefault(axis, size) for axis, size in zip(axes, found, strict=True))
        if found != expected:
            raise RuntimeError(f'{function}: {name} needs {rule}, shape {expected}, got {found}')
        if tensor.device != first.device:
            raise RuntimeError(
                f'{function}: all tensors must be on one device, but {name} is on another than the first'
            )
    return sizes


def empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Allocate a contiguous tensor of one dimension or more on the device of another.

    PyTorch's own function gives symbolic sizes strides with Max(1, size) in them: no compiler sees that such
    a tensor is contiguous, and sympy takes long over them.
    """
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return like.new_empty_strided(shape, strides, dtype=dtype)


def register_fake(name: str) -> Callable:
    """Decorate the fake kernel of an operator; without the compiled library there is nothing to register."""
    return torch.library.register_fake(f'{ops.name}::{name}') if available else lambda kernel: kernel


class _ReverseMode(torch.library.Library):
    """Adds to every kernel of autograd that it refuses tangents, which it would drop without a word."""

    def impl(self, op_name, fn, dispatch_key='', **options):
        def kernel(keyset, *args, **kwargs):
            refuse_tangents(op_name, *args)
            return fn(keyset, *args, **kwargs)

        super().impl(op_name, kernel, dispatch_key, **options)


_REVERSE_MODE = _ReverseMode(ops.name, 'FRAGMENT') if available else None


def refuse_tangents(function: str, *args) -> None:
    """Raise an error if a tensor carries a tangent of forward-mode differentiation."""
    if forward_ad._current_level < 0:  # nobody differentiates forward; asking every tensor takes 6 us
        return
    tensors = (each for each in args if isinstance(each, Tensor))
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError(
            f'grootv.ops.{function}: forward-mode derivatives are not implemented; use reverse mode, or '
            'grootv.ops.reference'
        )


def register_autograd(name: str, backward: Callable, setup: Callable | None = None) -> None:
    """Register the gradient of an operator in reverse mode; forward mode is refused."""
    qualified = f'{ops.name}::{name}'
    torch.library.register_autograd(qualified, backward, setup_context=setup, lib=_REVERSE_MODE)


def register_constant(name: str) -> None:
    """Register an operator with a floating result that passes no gradient on, in either mode."""
    if not available:
        return

    def refuse(ctx, *grads):
        raise NotImplementedError(f'grootv.ops.{name} is not differentiable: detach its input')

    register_autograd(name, refuse)


def register_flops(name: str, shapes: Shapes, multiply_adds: Callable[..., int], times: int = 1) -> None:
    """Let ``torch.utils.flop_counter.FlopCounterMode`` count an operator: two for every multiply-add.

    ``multiply_adds`` is a function of the sizes and of the operator's other arguments, by name.
    """
    if not available:
        return
    arguments = _argument_names(name)

    def formula(*args, out_shape=None, **kwargs):  # a shape in the place of every tensor
        given = dict(zip(arguments, args, strict=False)) | kwargs
        sizes = {
            axis: size
            for argument, (shape, _) in shapes.items()
            if given.get(argument) is not None
            for axis, size in zip(shape.split(), given[argument], strict=True)
        }
        return 2 * times * multiply_adds(**given | sizes)

    register_flop_formula(getattr(ops, name))(formula)


def register_differentiable(
    name: str,
    shapes: Shapes,
    results: dict[str, str],
    gradients: int,
    multiply_adds: Callable[..., int],
) -> None:
    """Register an operator whose gradient is the operator of the same name with '_backward'.

    The latter receives the gradients of the results and then the same arguments, and returns the gradients of
    the leading ones. Its own gradient is refused. Under autocast the operator computes in float32. The
    backward pass counts as two forward passes, as a matrix product's does.

    Args:
        name: Name of the operator.
        shapes: Shape of every tensor, and that in words. All tensors are kept for the backward pass.
        results: Shape of every result, under the argument that has its dtype.
        gradients: Number of leading tensors that receive a gradient.
        multiply_adds: As for :func:`register_flops`, of one forward pass.
    """
    if not available:
        return
    backward = f'{name}_backward'
    grads = {argument: shape for argument, (shape, _) in list(shapes.items())[:gradients]}

    def allocate(function, args, results) -> tuple[torch.Tensor, ...]:
        # PyTorch leaves out a last argument, the decomposition, that is None.
        given = dict(zip(_argument_names(function), args, strict=False))
        tensors = {argument: given.get(argument) for argument in shapes}
        sizes = check_shapes(function, {}, **{name: (tensors[name], *shapes[name]) for name in shapes})
        # Optional arguments with a gradient have the dtype of A. Without one its gradient is empty, but for
        # delta_bias, which is then a vector of zeros.
        like = {source: given['A'] if given[source] is None else given[source] for source in results}
        absent = {source for source in results if given[source] is None} - {'delta_bias'}
        return tuple(
            empty(like[source], [0 if source in absent else sizes[axis] for axis in shape.split()])
            for source, shape in results.items()
        )

    def fake(*args):
        return alone(allocate(name, args, results))

    def fake_backward(*args):
        return alone(allocate(backward, args, grads))

    def alone(found):
        return found[0] if len(found) == 1 else found

    names = _argument_names(name)

    def save(ctx, inputs, output):
        given = dict(zip(names, inputs, strict=True))
        ctx.save_for_backward(*(given.pop(tensor) for tensor in shapes))
        ctx.options = given

    def differentiate(ctx, *grads):
        saved = ctx.saved_tensors  # once: a checkpoint unpacks its tensors a single time
        given = dict(zip(shapes, saved, strict=True)) | ctx.options
        found = getattr(ops, backward)(*grads, *(given[argument] for argument in names))
        found = (found,) if isinstance(found, Tensor) else found
        needed = (grad if saved[i] is not None else None for i, grad in enumerate(found))
        return *needed, *[None] * (len(names) - gradients)

    def refuse(ctx, *grads):
        raise NotImplementedError(
            f'{name}: the second derivative is not implemented; call backward without create_graph=True'
        )

    register_fake(name)(fake)
    register_fake(backward)(fake_backward)
    register_autograd(name, differentiate, save)
    register_autograd(backward, refuse)
    for device in ('cpu', 'cuda'):
        torch.library.register_autocast(f'{ops.name}::{name}', device, torch.float32)
    register_flops(name, shapes, multiply_adds)
    register_flops(backward, shapes, multiply_adds, times=2)


def _argument_names(name: str) -> list[str]:
    return [argument.name for argument in getattr(ops, name).default._schema.arguments]
