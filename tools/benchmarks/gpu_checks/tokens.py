"""The operators over tokens: inputs and trees, and the device beside the CPU."""

import itertools

import torch
from torch import Tensor

from .compare import keep_strides, twice
from .environment import import_ops
from .operators import dtype_name

ops = import_ops()
from tests.ops.cases import SCAN_DTYPES  # noqa: E402  (found through import_ops)

FORMS = [(True, True), (False, True), (True, False)]  # bias, softplus


def token_trees(parity) -> None:
    lengths = [1, 2, 17, 60] if parity.small else [1, 2, 17, 300, 5000]
    for length, reach, dtype in itertools.product(lengths, (1, 3), SCAN_DTYPES):
        batch = 1 if length > 1000 else 3
        shape = f'{batch}x{length} reach {reach} {dtype_name(dtype)}'
        x, B = parity.normal(batch, length, 33, dtype=dtype), parity.normal(batch, length, 16, dtype=dtype)
        context = torch.randint(0, length + 1, (batch, 2), generator=parity.random)
        compare_trees(parity, shape, x, B, context, reach)
        equal = (tensor[:, :1].expand_as(tensor) for tensor in (x, B))
        compare_trees(parity, f'{shape} equal', *equal, context, reach)
    compare_trees(parity, 'batch 0', torch.ones(0, 5, 3), torch.ones(0, 5, 2), torch.ones(0, 2).int(), 3)


def compare_trees(parity, case: str, x: Tensor, B: Tensor, context: Tensor, reach: int) -> None:
    expected = tree_steps(x, B, context, reach)
    with parity.tally.case('token trees', case):
        moved = tuple(keep_strides(tensor, parity.device) for tensor in (x, B, context))
        found = twice(parity.tally, 'token trees', case, lambda: tree_steps(*moved, reach))
        parity.tally.exact('token_edge_weight', case, found[:1], expected[:1])
        parity.tally.exact('token_tree', case, found[1:], expected[1:])


def tree_steps(x: Tensor, B: Tensor, context: Tensor, reach: int) -> tuple[Tensor, ...]:
    trees = (ops.token_tree(x, B, context, reach, causal) for causal in (False, True))
    return ops.token_edge_weight(x, B, context, reach), *itertools.chain(*trees)


def token_scans(parity) -> None:
    forms, channels = itertools.cycle(FORMS), itertools.cycle([5, 33, 20] if parity.small else [5, 33, 160])
    for (name, tree), dtype in itertools.product(list(scan_trees(parity)), SCAN_DTYPES):
        shape = *tree.order.shape, next(channels)
        for states in (1, 3, 16, 20) if shape[1] < 1000 else (16,):
            compare_scans(parity, f'{name}x{shape[2]}x{states}', tree, shape[2], states, dtype, *next(forms))


def scan_trees(parity):
    """Trees rooted at the last token, on the CPU: name, tree."""
    for batch, length in [(2, 1), (3, 40)] if parity.small else [(2, 1), (3, 40), (3, 300), (1, 5000)]:
        yield f'chain {batch}x{length}', ops.token_chain(batch, length)
        x, B = parity.normal(batch, length, 8), parity.uniform(batch, length, 2)
        context = torch.tensor([[0, length]]).repeat(batch, 1)
        for causal in (False, True):
            name = f'{"causal" if causal else "published"} {batch}x{length}'
            yield name, ops.token_tree(x, B, context, causal=causal)
    for name, parents in graph_shapes(parity.lengths).items():
        last = parity.lengths - 1
        edges = last - torch.tensor([[v, parents(v)] for v in range(1, parity.lengths)])
        every = torch.arange(last, dtype=torch.int32).unsqueeze(0)
        yield name, ops.breadth_first_order_from_edges(edges, every, parity.lengths, last)
    yield 'batch 0', ops.token_chain(0, 3)


def graph_shapes(vertices: int) -> dict:
    """Parents of the vertices 1, 2 ... of trees rooted at 0."""
    half = vertices // 2
    return {
        'star': lambda v: 0,
        'path': lambda v: v - 1,
        'comb': lambda v: v - 1 if v < half else v - half,
        'binary': lambda v: (v - 1) // 2,
    }


def compare_scans(parity, case, tree, channels, states, dtype, biased, softplus) -> None:
    """Output, state and gradients beside float64 on the CPU."""
    batch, length = tree.order.shape
    wide = torch.promote_types(dtype, torch.float32)
    delta = parity.normal(batch, length, channels) if softplus else parity.uniform(batch, length, channels)
    inputs = (
        parity.normal(batch, length, channels, dtype=dtype),
        delta.to(dtype),
        -(0.1 + parity.uniform(channels, states, dtype=wide)),
        parity.normal(batch, length, states, dtype=dtype),
        parity.normal(batch, length, states, dtype=dtype),
        parity.uniform(channels, dtype=wide) / 10 if biased else None,
    )
    grad_state = parity.normal(batch, channels, states, dtype=wide)
    grads = parity.normal(batch, length, channels, dtype=dtype), grad_state
    exact = (tuple(x if x is None else x.double() for x in given) for given in (inputs, grads))
    expected = scan_with_gradients(*exact, tree, softplus)
    case += ' bias' * biased + ' softplus' * softplus
    with parity.tally.case('token_scan', case):
        device = parity.device
        moved = [tuple(x if x is None else x.to(device) for x in given) for given in (inputs, grads)]
        moved_tree = ops.Tree(*(field.to(device) for field in tree))
        found = twice(
            parity.tally, 'token_scan', case, lambda: scan_with_gradients(*moved, moved_tree, softplus)
        )
        for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            name = 'token_scan gradient' if i > 1 else 'token_scan'
            parity.tally.close(name, case, ours, theirs, gradient=i > 1)


def scan_with_gradients(inputs: tuple, grads: tuple, tree, softplus: bool = True) -> tuple[Tensor, ...]:
    inputs = tuple(x if x is None else x.detach().requires_grad_() for x in inputs)
    results = ops.token_scan(*inputs[:5], tree, inputs[5], softplus)
    trained = [x for x in inputs if x is not None]
    return *(result.detach() for result in results), *torch.autograd.grad(results, trained, grads)


def random_scan(batch: int, length: int, channels: int, states: int, device: str, dtype=torch.float32):
    """Inputs of a scan and gradients of its results."""

    def normal(*shape):
        return torch.randn(shape, device=device).to(dtype)

    rate = -torch.rand(channels, states, device=device)
    signals = normal(batch, length, channels), normal(batch, length, channels)
    weights = normal(batch, length, states), normal(batch, length, states)
    inputs = *signals, rate, *weights, torch.rand(channels, device=device)
    return inputs, (normal(batch, length, channels), torch.randn(batch, channels, states, device=device))
