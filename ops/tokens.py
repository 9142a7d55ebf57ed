"""Trees over the tokens of a sequence, rooted at the last one, and Mamba's selective scan along them."""

import torch
from torch import Tensor

from ._library import ops
from ._register import (
    check_shapes,
    empty,
    refuse_tangents,
    register_constant,
    register_differentiable,
    register_fake,
)
from .tree import Tree


def token_edges(length: int, reach: int, device: torch.device | str = 'cpu') -> Tensor:
    """List the pairs of tokens that are at most ``reach`` apart, from the end of the sequence.

    Token t has the edges to t - 1, t - 2 ... t - ``reach``, in this order; the last token comes first. A pair
    that would begin before the first token is the edge (0, t) instead, so that every token has as many.

    Returns:
        Pairs (earlier, later), shape ((L - 1) * reach, 2) int32.
    """
    if length < 1 or reach < 1 or length * reach >= 2**31:
        raise ValueError(
            'token_edges: length and reach must be 1 or more, and their product below 2^31, '
            f'got {length} and {reach}'
        )
    later = torch.arange(length - 1, 0, -1, dtype=torch.int32, device=device).unsqueeze(1)
    earlier = later - torch.arange(1, reach + 1, dtype=torch.int32, device=device)
    return torch.stack([earlier.clamp_min(0), later.expand_as(earlier)], dim=-1).view(-1, 2)


def token_edge_weight(x: Tensor, B: Tensor, context: Tensor, reach: int = 3) -> Tensor:
    """Compute the weight of every edge between tokens from what the tokens add to the state.

    Token t adds the outer product of ``x[t]`` and ``B[t]``; an edge weighs exp(-cos) of the angle between
    two of them. Inside the context all edges count; elsewhere neighbours alone do.

    Args:
        x: Signal of every token times its step, shape (B, L, C), any floating dtype.
        B: Weight of every state, shape (B, L, N), dtype of ``x``.
        context: First token of each sequence's context and the one after its last, shape (B, 2) int32 or
            int64.
        reach: How many tokens an edge may span, at least 1.

    Returns:
        Shape (B, (L - 1) * reach) float32, ordered as :func:`token_edges`; infinite where no edge is. Not
        differentiable.

    Raises:
        RuntimeError: If shapes, dtypes or devices do not fit, ``reach`` is below 1, or a context is not
            within its sequence (on a CUDA device the part that is counts).
    """
    refuse_tangents('token_edge_weight', x, B)
    return ops.token_edge_weight(x.detach(), B.detach(), context, reach)


def token_tree(x: Tensor, B: Tensor, context: Tensor, reach: int = 3, causal: bool = False) -> Tree:
    """Build the tree of the tokens of each sequence.

    The minimum spanning tree of the weighted edges, through which a token of the context receives from later
    ones of the context. Or, if ``causal``, a tree in which no token depends on a later one, neither by what
    it receives nor by the tree's shape: the parent of a token of the context is the first of the ``reach``
    tokens after it to which it is the most similar of the ``reach`` before that one, the nearest of equals;
    if there is none, the last of them. Outside the context the tree is the chain.

    Args:
        x, B, context, reach: As for :func:`token_edge_weight`.
        causal: Whether no token depends on a later one.

    Returns:
        Tree of every sequence, rooted at its last token.

    Raises:
        RuntimeError: As :func:`token_edge_weight`.
    """
    length, device = x.shape[1], x.device
    weight = token_edge_weight(x, B, context, reach)
    if causal:
        parent = _causal_parents(weight.view(len(x), length - 1, reach), context)
        edges = torch.stack([torch.arange(length - 1, device=device).expand_as(parent), parent], dim=-1).int()
        tree_edges = torch.arange(length - 1, dtype=torch.int32, device=device).repeat(len(x), 1)
    else:
        edges = token_edges(length, reach, device).unsqueeze(0)
        tree_edges = ops.minimum_spanning_tree_from_edges(edges, weight, length, wait=False)
    # These edges are always valid: no device is waited for.
    return Tree(*ops.breadth_first_order_from_edges(edges, tree_edges, length, length - 1, wait=False))


def _causal_parents(weight: Tensor, context: Tensor) -> Tensor:
    """Parent of every token but the last, (B, L - 1), by weight (B, L - 1, reach) and context (B, 2)."""
    count, reach = weight.shape[1:]
    chosen = weight.flip(1).argmin(dim=-1) + 1  # distance of tokens 1, 2 ... to the most similar before them
    token = torch.arange(count, device=weight.device)
    span = torch.arange(1, reach + 1, device=weight.device)
    later = token.unsqueeze(1) + span
    chooses = (chosen[:, later.clamp_max(count) - 1] == span) & (later <= count)
    last = torch.minimum(token + reach, context[:, 1:] - 1).clamp_max(count)
    return torch.where(chooses.any(dim=-1), token + 1 + chooses.int().argmax(dim=-1), last)


def token_chain(batch: int, length: int, device: torch.device | str = 'cpu') -> Tree:
    """Return the tree in which the parent of every token is the next one: a recurrence over the sequence."""
    if batch < 0 or not 1 <= length <= 2**30:
        raise ValueError(
            f'token_chain: batch must be 0 or more and length 1 to 2^30, got {batch} and {length}'
        )
    token = torch.arange(length, dtype=torch.int32, device=device)
    tree = Tree(token.flip(0), (token + 1).clamp_max(length - 1))
    return Tree(*(tensor.expand(batch, -1).contiguous() for tensor in tree))


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
    """Sum the state of every token from the tokens below it, and read it out.

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
        Output, shape (B, L, D), dtype of ``x``; and the state of the last token, with which a recurrence can
        continue, shape (B, D, N) in the dtype of the states. Differentiable in every floating argument.

    Raises:
        RuntimeError: If shapes, dtypes or devices do not fit, or an item's tree is not rooted at the last
            token (on a CUDA device its results are NaN).
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    bias = None if delta_bias is None else delta_bias.to(wide)
    return ops.token_scan(x, delta, A.to(wide), B, C, bias, tree.order, tree.parent, delta_softplus)


@register_fake('token_edge_weight')
def _(x, B, context, reach):
    signal, weight = (x, 'B L C', 'one row per token'), (B, 'B L N', 'one row per token')
    bounds = context, 'B 2', 'two bounds per sequence'
    check_shapes('token_edge_weight', {}, x=signal, B=weight, context=bounds)
    return empty(x, (x.shape[0], (x.shape[1] - 1) * reach), torch.float32)


register_constant('token_edge_weight')
PER_STATE = ('B L N', 'one value per token and state')
register_differentiable(
    'token_scan',
    dict(
        x=('B L D', 'tokens and channels of each sequence'),
        delta=('B L D', 'one value per token and channel'),
        A=('D N', 'one row per channel'),
        B=PER_STATE,
        C=PER_STATE,
        delta_bias=('D', 'one value per channel'),
        **dict.fromkeys(Tree._fields, ('B L', 'one entry per token of each sequence')),
    ),
    results={'x': 'B L D', 'A': 'B D N'},
    gradients=6,
    multiply_adds=lambda B, L, D, N, **_: 9 * B * L * D * N,  # as Mamba counts its scan
)
