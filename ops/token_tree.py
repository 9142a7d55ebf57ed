"""Trees over the tokens of a sequence, rooted at the last one."""

import torch
from torch import Tensor

from ._fake import check_dim, check_same_device, check_shape, empty
from ._library import available, ops
from .traversal import Tree


def token_edges(length: int, reach: int, device: torch.device | str = 'cpu') -> Tensor:
    """List the pairs of tokens that are at most ``reach`` apart, from the end of the sequence.

    Token t has the edges to t - 1, t - 2 ... t - ``reach``, in this order; the last token comes first. A pair
    that would begin before the first token is the edge (0, t) instead, so that every token has as many.

    Returns:
        Pairs (earlier, later), shape ((L - 1) * reach, 2) int32.
    """
    later = torch.arange(length - 1, 0, -1, dtype=torch.int32, device=device).unsqueeze(1)
    earlier = later - torch.arange(1, reach + 1, dtype=torch.int32, device=device)
    return torch.stack([earlier.clamp_min(0), later.expand_as(earlier)], dim=-1).view(-1, 2)


def token_edge_weight(x: Tensor, B: Tensor, context: Tensor, reach: int = 3) -> Tensor:
    """Weigh the edges between the tokens of each sequence by what they write into the state.

    Token t writes the outer product of ``x[t]`` and ``B[t]``; an edge weighs exp(-cos) of the angle between
    two of them. Inside the context all edges count; elsewhere neighbours alone do.

    Args:
        x: Signal of every token times its step, shape (B, L, C), any floating dtype.
        B: Weight of every state, shape (B, L, N), dtype of ``x``.
        context: First token of each sequence's context and the one after its last, shape (B, 2) int32 or
            int64.
        reach: How many tokens an edge may span, at least 1.

    Returns:
        Shape (B, (L - 1) * reach) float32, ordered as :func:`token_edges`; infinite where no edge is.

    Raises:
        RuntimeError: If shapes, dtypes or devices disagree, or ``reach`` is not positive.
    """
    return ops.token_edge_weight(x.detach(), B.detach(), context.int(), reach)


def token_tree(x: Tensor, B: Tensor, context: Tensor, reach: int = 3, causal: bool = False) -> Tree:
    """Grow the tree of the tokens of each sequence.

    The minimum spanning tree of the weighted edges, which lets a token of the context hear later ones of the
    context. Or, if ``causal``, a tree in which no token depends on a later one, neither by what it hears nor
    by the tree's shape: every token of the context hangs from the first of the ``reach`` tokens after it to
    which it is the most alike of the ``reach`` before that one, the nearest of equals; if it is to none,
    from the last of them. Outside the context the tree is the chain.

    Args:
        x: As for :func:`token_edge_weight`.
        B: As for :func:`token_edge_weight`.
        context: As for :func:`token_edge_weight`.
        reach: As for :func:`token_edge_weight`.
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
    # Nothing can be wrong with these edges: no device is waited for.
    return Tree(*ops.breadth_first_order_from_edges(edges, tree_edges, length, length - 1, wait=False))


def _causal_parents(weight: Tensor, context: Tensor) -> Tensor:
    """Parent of every token but the last, (B, L - 1), by weight (B, L - 1, reach) and context (B, 2)."""
    count, reach = weight.shape[1:]
    chosen = (
        weight.flip(1).argmin(dim=-1) + 1
    )  # how far back the one lies that token 1, 2 ... is most alike to
    token = torch.arange(count, device=weight.device)
    span = torch.arange(1, reach + 1, device=weight.device)
    later = token.unsqueeze(1) + span
    chooses = (chosen[:, later.clamp_max(count) - 1] == span) & (later <= count)
    last = torch.minimum(token + reach, context[:, 1:] - 1).clamp_max(count)
    return torch.where(chooses.any(dim=-1), token + 1 + chooses.int().argmax(dim=-1), last)


def token_chain(batch: int, length: int, device: torch.device | str = 'cpu') -> Tree:
    """The tree in which every token hangs from the next one: a plain recurrence over the sequence."""
    token = torch.arange(length, dtype=torch.int32, device=device)
    tree = Tree(token.flip(0), (token + 1).clamp_max(length - 1))
    return Tree(*(tensor.expand(batch, -1).contiguous() for tensor in tree))


if available:

    @torch.library.register_fake('grootv::token_edge_weight')
    def _(x, B, context, reach):
        function = 'token_edge_weight'
        check_dim(function, 'x', x, 3, '(B, L, C)')
        check_dim(function, 'B', B, 3, '(B, L, N)')
        batch, length, _ = x.shape
        check_shape(function, 'B', 'one row per token', B, (batch, length, B.shape[2]))
        check_shape(function, 'context', 'two bounds per sequence', context, (batch, 2))
        check_same_device(function, x=x, B=B, context=context)
        return empty(x, (batch, (length - 1) * reach), torch.float32)
