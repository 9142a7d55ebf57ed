"""State-space scans along a tree in linear time, and from their states to the output of the model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._library import KEEPS_DECOMPOSITION, ops
from ._register import check_shapes, empty, register_differentiable, register_fake
from .tree import Tree

DIRECTIONS = ('both', 'up')


def tree_scan(input: Tensor, decay: Tensor, tree: Tree, direction: str = 'both') -> Tensor:
    """Sum every vertex's input at every vertex, attenuated by the decays along the path.

    With P(i, j) the product of the decays on the path between i and j: ``h[i] = sum_j P(i, j) input[j]``.
    Direction ``'up'`` sums over the subtree below i only, the root receiving all inputs: the causal form.

    Sums are kept in float32 for float16 and bfloat16. Under autocast the scan runs in float32.

    Args:
        input: Signal, shape (B, L, C), vertices in row-major order.
        decay: Factor of the edge from a vertex to its parent, shape (B, L, C), dtype of ``input``; a size of
            1 stands for any other. The root's entry is never read.
        tree: Order and parents from :func:`grootv.ops.breadth_first_order` or
            :func:`grootv.ops.build_tree`.
        direction: ``'both'`` or ``'up'``.

    Returns:
        Shape (B, L, C), dtype of ``input``. Differentiable in ``input`` and ``decay``; O(L) per channel.

    Raises:
        RuntimeError: If shapes, dtypes or devices do not fit, or an item's tree is not in breadth-first
            order (on a CUDA device its states are NaN).
        ValueError: If the direction is unknown.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f'tree_scan: direction must be one of {", ".join(DIRECTIONS)}, got {direction!r}')
    decay, decomposition = _expand(decay, input.shape), _heavy_light('tree_scan', tree)
    return ops.tree_scan(input, decay, *tree, direction, decomposition)


def _expand(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Repeat a tensor along its sizes of 1; what does not fit then is left to the operator, which says so."""
    if tuple(tensor.shape) == tuple(shape) or tensor.dim() != len(shape):
        return tensor
    fits = all(size in (1, wanted) for size, wanted in zip(tensor.shape, shape, strict=True))
    return tensor.expand(*shape) if fits else tensor


def selective_tree_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    tree: Tree,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    distance: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Run the tree scan of a selective state-space model of state size 1, in both directions.

    With the step ``d = softplus(delta + delta_bias)`` (PyTorch's, which is ``delta + delta_bias`` itself
    above 20) this is ``tree_scan(d * B * x, exp(d * A), tree)``, with signal and decay computed on the way:
    neither is stored as a whole, forward or backward. With ``distance`` and ``scale`` the edge itself counts:
    the decay is ``exp(d * A - scale * distance)``. All arithmetic is in float32, and in float64 for float64.
    Under autocast the inputs are taken in float32 as well.

    Args:
        x: Signal before its weights, shape (B, L, C), vertices in row-major order.
        delta: Step of every vertex and channel before bias and softplus, shape (B, L, C), dtype of ``x``; a
            size of 1 stands for any other, here and in ``A``, ``B``, ``delta_bias``, ``distance``, ``scale``.
        A: Rate of every channel, negative for decays below 1, shape (C,) or (C, 1); converted to float32,
            to float64 if ``x`` is.
        B: Weight of every vertex, shape (B, L) or (B, L, 1), dtype of ``x``.
        tree: Order and parents, as for :func:`tree_scan`.
        delta_bias: Added to ``delta`` in every vertex, shape (C,), converted as ``A`` is.
        delta_softplus: Whether the step is a softplus, or ``delta + delta_bias`` itself.
        distance: Length of the edge from every vertex to its parent, finite and 0 or more, shape (B, L) or
            (B, L, 1), converted as ``A`` is. The root's entry is never read.
        scale: Rate of every channel per unit of ``distance``, shape (C,), converted as ``A`` is. Given with
            ``distance`` or not at all.

    Returns:
        Shape (B, L, C), dtype of ``x``. Differentiable in every floating argument; O(L) per channel.

    Raises:
        RuntimeError: As :func:`tree_scan`.
        ValueError: If one of ``distance`` and ``scale`` is given without the other.
    """
    if (distance is None) != (scale is None):
        alone = 'scale' if distance is None else 'distance'
        raise ValueError(
            f'selective_tree_scan: distance and scale must be given together, got {alone} alone; '
            'give both or neither'
        )
    wide = torch.promote_types(x.dtype, torch.float32)
    if A.dim() == 2 and A.shape[1] == 1:
        A = A.squeeze(1)
    if B.dim() == 3 and B.shape[2] == 1:
        B = B.squeeze(2)
    if distance is not None and distance.dim() == 3 and distance.shape[2] == 1:
        distance = distance.squeeze(2)
    bias = None if delta_bias is None else _expand(delta_bias.to(wide), x.shape[-1:])
    distance = None if distance is None else _expand(distance.to(wide), x.shape[:-1])
    scale = None if scale is None else _expand(scale.to(wide), x.shape[-1:])
    delta, A, B = _expand(delta, x.shape), _expand(A.to(wide), x.shape[-1:]), _expand(B, x.shape[:-1])
    decomposition = _heavy_light('selective_tree_scan', tree)
    return ops.selective_tree_scan(
        x, delta, A, B, bias, distance, scale, *tree, delta_softplus, decomposition
    )


def _heavy_light(function: str, tree: Tree) -> Tensor | None:
    """Decompose a tree for a scan and its gradient, where the device works by that."""
    return ops.heavy_light(*tree, function) if tree.order.device.type in KEEPS_DECOMPOSITION else None


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
    """Compute ``LayerNorm(C * LayerNorm(h) + D * x) * silu(z)`` in one pass over the vertices.

    All arithmetic is in the dtype of ``h``; under autocast every input is taken in float32.

    Args:
        h: States, shape (B, L, C), float32 or float64.
        C: Weight of every vertex, shape (B, L) or (B, L, 1), dtype of ``h``.
        x: The signal of the scan, shape (B, L, C), dtype of ``h``.
        D: Weight of every channel of ``x``, shape (C,); converted to the dtype of ``h``.
        z: Gate, shape (B, L, C); float64 if ``h`` is, otherwise float32, float16 or bfloat16.
        h_norm: Weight and bias of the norm of the states, both (C,), converted as ``D`` is.
        y_norm: Weight and bias of the outer norm, likewise.
        eps: Added to the variance by both norms.

    Returns:
        Shape (B, L, C), dtype of ``z``. Differentiable in all tensors.

    Raises:
        RuntimeError: If shapes, dtypes or devices do not fit.
    """
    if C.dim() == 3 and C.shape[2] == 1:
        C = C.squeeze(2)
    wide = torch.promote_types(h.dtype, torch.float32)
    vectors = [vector.to(wide) for vector in (D, *h_norm, *y_norm)]
    return ops.gated_read_out(h, C, x, vectors[0], z, *vectors[1:], eps)


FIRST = ('B L C', 'vertices and channels of each item')
LIKE_FIRST = ('B L C', 'one value per vertex and channel')
PER_VERTEX = ('B L', 'one value per vertex')
PER_CHANNEL = ('C', 'one value per channel')
TREE = dict.fromkeys(Tree._fields, ('B L', 'one entry per vertex of each item'))
DECOMPOSITION = ('B W', 'the result of heavy_light')


@register_fake('heavy_light')
def _(order, parent, function):
    sizes = check_shapes(function, {}, order=(order, *TREE['order']), parent=(parent, *TREE['parent']))
    # words_of_one() of csrc/cuda/scan/heavy_light.h
    words = 7 * sizes['L'] + 256 if order.device.type in KEEPS_DECOMPOSITION else 0
    return empty(order, (sizes['B'], words))


register_differentiable(
    'tree_scan',
    dict(input=FIRST, decay=LIKE_FIRST, **TREE, decomposition=DECOMPOSITION),
    results={'input': 'B L C'},
    gradients=2,
    # One on the way to the root, two on the way back.
    multiply_adds=lambda B, L, C, direction, **_: (3 if direction == 'both' else 1) * B * L * C,
)
register_differentiable(
    'selective_tree_scan',
    dict(x=FIRST, delta=LIKE_FIRST, A=PER_CHANNEL, B=PER_VERTEX, delta_bias=PER_CHANNEL)
    | dict(distance=PER_VERTEX, scale=PER_CHANNEL, **TREE, decomposition=DECOMPOSITION),
    results={'x': 'B L C'},
    gradients=7,
    # As Mamba counts its scan, per value of a state; one more for the distance.
    multiply_adds=lambda B, L, C, distance, **_: (9 if distance is None else 10) * B * L * C,
)
register_differentiable(
    'gated_read_out',
    dict(h=FIRST, C=PER_VERTEX, x=LIKE_FIRST, D=PER_CHANNEL, z=LIKE_FIRST)
    | dict.fromkeys(('h_weight', 'h_bias', 'y_weight', 'y_bias'), PER_CHANNEL),
    results={'z': 'B L C'},
    gradients=9,
    # Five for either norm, as fvcore counts them, two for C and D, one for the gate.
    multiply_adds=lambda B, L, C, **_: (2 * 5 + 3) * B * L * C,
)
