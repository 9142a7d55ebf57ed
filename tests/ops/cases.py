"""Inputs of the operators' tests and benchmarks, and how near a result has to be."""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from grootv import ops

GRIDS = [(1, 1), (1, 6), (6, 1), (2, 2), (3, 5), (7, 7), (13, 9)]
SCAN_DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
KINDS = ['normal', 'equal', 'binary', 'special']

# norm(found - exact) / norm(exact), exact in float64: (result, gradient), by the dtype of what is compared.
# Half types: one rounding of the result, at most 2^-11 and 2^-8 of each value, after sums in float32.
# Float32: sums over up to thousands of vertices with decays near 1, of which a star's are the worst (2e-6 by
# the CPU's kernels); the gradient of a decay is a product of two such sums.
LIMITS = {
    torch.float64: (1e-13, 1e-12),
    torch.float32: (5e-6, 2e-5),
    torch.float16: (5e-4, 5e-4),
    torch.bfloat16: (4e-3, 4e-3),
}


def assert_close(found: Tensor, exact: Tensor, gradient: bool = False) -> None:
    """A result of any device next to the one in float64 on the CPU."""
    assert found.shape == exact.shape
    found, exact, limit = found.cpu().double(), exact.cpu().double(), LIMITS[found.dtype][gradient]
    error, scale = (found - exact).norm().item(), exact.norm().item()
    assert error <= limit * (scale or 1), f'relative error {error / (scale or 1):.2g}, at most {limit:g}'


def assert_same(found, expected) -> None:
    """The same dtypes, shapes and bits, where any NaN equals any other."""
    found, expected = ([x] if isinstance(x, Tensor) else x for x in (found, expected))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs.cpu(), rtol=0, atol=0, equal_nan=True)


def features(kind: str, batch: int, height: int, width: int, channels: int) -> Tensor:
    """Feature maps: 'normal', 'equal' (every weight ties), 'binary' (many ties) or 'special' (NaN, inf)."""
    generator = torch.Generator().manual_seed(height * 1000 + width * 10 + channels)
    shape = (batch, height, width, channels)
    if kind == 'equal':
        return torch.ones(shape)
    if kind == 'binary':
        return torch.randint(0, 2, shape, generator=generator).float()
    normal = torch.randn(shape, generator=generator)
    if kind == 'special':
        choice = torch.rand(shape, generator=generator)
        normal[choice < 0.1] = math.nan
        normal[(choice > 0.1) & (choice < 0.2)] = math.inf
        normal[(choice > 0.2) & (choice < 0.3)] = -math.inf
    return normal


PARENTS = {  # of vertex v > 0 among V; what trees of grids are not: as deep or as wide as can be
    'path': lambda v, V: v - 1,
    'star': lambda v, V: 0,
    'comb': lambda v, V: v - 1 if v < V // 2 else v - V // 2,
    'binary': lambda v, V: (v - 1) // 2,
    'spider': lambda v, V: v - 1 if (v - 1) % 20 else 0,
    'random': lambda v, V: int(torch.randint(v, (), generator=torch.Generator().manual_seed(v))),
}


def parent_edges(kind: str, vertices: int) -> Tensor:
    """Edges of a tree of one of the kinds, from vertex 1, 2 ... to its parent, (V - 1, 2) int32."""
    edges = [[v, PARENTS[kind](v, vertices)] for v in range(1, vertices)]
    return torch.tensor(edges, dtype=torch.int32).view(-1, 2)


def tree_of(edges: Tensor, batch: int, root: int = 0) -> ops.Tree:
    """The tree of V - 1 edges."""
    every = torch.arange(len(edges), dtype=torch.int32).repeat(batch, 1)
    return ops.breadth_first_order_from_edges(edges, every, len(edges) + 1, root)


def token_tree(kind: str, batch: int, length: int) -> ops.Tree:
    """'chain', 'published', 'causal' or a tree of ``PARENTS``, rooted at the last token."""
    if kind == 'chain':
        return ops.token_chain(batch, length)
    if kind in PARENTS:
        return tree_of(length - 1 - parent_edges(kind, length), batch, root=length - 1)
    vectors = torch.randn(batch, length, 4, generator=torch.Generator().manual_seed(length))
    context = torch.tensor([[0, length]]).repeat(batch, 1)
    return ops.token_tree(vectors, torch.ones(batch, length, 1), context, causal=kind == 'causal')


def to_device(given, device: str):
    """Tensors, also of a tree, dict or list, moved to a device with their strides; ``to`` changes some."""

    def move(tensor):
        if device == tensor.device.type or tensor.is_contiguous() or 0 in tensor.stride():
            return tensor.to(device)
        moved = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        return moved.copy_(tensor)

    return tree_map_only(Tensor, move, given)


@dataclass
class Call:
    """A call of a differentiable operator: its name, its tensors in the schema's order, tree and options."""

    name: str
    tensors: list[Tensor | None]
    tree: ops.Tree | None = None
    options: dict = field(default_factory=dict)

    def __call__(self, library) -> tuple[Tensor, ...]:
        """The results by ``grootv.ops``, its reference or a backend's functions."""
        tensors, function = self.tensors, getattr(library, self.name)
        if self.name == 'gated_read_out':
            result = function(*tensors[:5], tensors[5:7], tensors[7:], **self.options)
        elif self.name in ('tree_scan', 'tree_edge_distance'):
            result = function(*tensors, self.tree, **self.options)
        else:
            first, others = tensors[: -len(self.optional)], tensors[-len(self.optional) :]
            optional = dict(zip(self.optional, others, strict=True))
            result = function(*first, tree=self.tree, **optional, **self.options)
        return result if isinstance(result, tuple) else (result,)

    @property
    def optional(self) -> tuple[str, ...]:
        """Names of the last tensors, which may be None."""
        return ('delta_bias', 'distance', 'scale') if self.name == 'selective_tree_scan' else ('delta_bias',)

    def given(self) -> list[Tensor]:
        return [tensor for tensor in self.tensors if tensor is not None]

    def map(self, change) -> 'Call':
        """The call with every tensor but the tree's changed."""
        return replace(self, tensors=[x if x is None else change(x) for x in self.tensors])

    def fill(self, given) -> 'Call':
        """The call with its tensors replaced in turn."""
        given = iter(given)
        return self.map(lambda _: next(given))

    def double(self) -> 'Call':
        return self.map(Tensor.double)

    def to(self, device: str) -> 'Call':
        return replace(self, tensors=to_device(self.tensors, device), tree=to_device(self.tree, device))

    def trained(self) -> 'Call':
        return self.map(lambda x: x.detach().requires_grad_())

    def with_gradients(self, library, grads=None) -> list[tuple[Tensor, ...]]:
        """The results, and the gradients by every tensor."""
        copy = self.trained()
        results = copy(library)
        grads = [torch.ones_like(result) for result in results] if grads is None else grads
        grads = [grad.to(result) for grad, result in zip(grads, results, strict=True)]
        found = torch.autograd.grad(results, copy.given(), grads, allow_unused=True, materialize_grads=True)
        return [tuple(x.detach() for x in results), found]


def random(*seeds: int):
    """A function that makes normal tensors of float64 of a shape."""
    generator = torch.Generator().manual_seed(sum(seed * 100**i for i, seed in enumerate(seeds)))
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def spanning_tree(batch: int, height: int, width: int) -> ops.Tree:
    return ops.build_tree(features('normal', batch, height, width, 4))


def tree_scan(tree: ops.Tree, channels: int, dtype=torch.float32, **options) -> Call:
    """Decays in (0, 1)."""
    batch, vertices = tree.order.shape
    normal, shape = random(vertices, channels), (batch, vertices, channels)
    return Call('tree_scan', [normal(*shape).to(dtype), normal(*shape).sigmoid().to(dtype)], tree, options)


def selective_tree_scan(tree: ops.Tree, channels: int, *options, distance=False, **named) -> Call:
    call = selective_scan('selective_tree_scan', 'B', (), tree, channels, *options, **named)
    A, uniform = call.tensors[2], random(channels, *tree.order.shape)
    shapes = (tree.order.shape, (channels,)) if distance else ()
    edge = [uniform(*shape).sigmoid().to(A.dtype) for shape in shapes] or [None, None]
    return replace(call, tensors=[*call.tensors, *edge])


def token_scan(tree: ops.Tree, channels: int, states: int, *options, **named) -> Call:
    return selective_scan('token_scan', 'BC', (states,), tree, channels, *options, **named)


def selective_scan(name, weights, states, tree, channels, dtype=torch.float32, bias=True, softplus=True):
    """Decays in (0, 1), as without them sums overflow."""
    shape, wide = (*tree.order.shape, channels), torch.promote_types(dtype, torch.float32)
    normal = random(*shape[1:], *states)
    x, delta, A, shift = normal(*shape), normal(*shape), normal(channels, *states), normal(channels)
    if not softplus:
        delta, shift = delta.abs(), shift.abs()
    per_vertex = [normal(*shape[:2], *states).to(dtype) for _ in weights]
    shift = shift.to(wide) if bias else None
    tensors = [x.to(dtype), delta.to(dtype), -A.exp().to(wide), *per_vertex, shift]
    return Call(name, tensors, tree, dict(delta_softplus=softplus))


def tree_edge_distance(tree: ops.Tree, channels: int, dtype=torch.float32, metric='cosine') -> Call:
    batch, vertices = tree.order.shape
    rows = random(vertices, channels)(batch, vertices, channels)
    return Call('tree_edge_distance', [rows.to(dtype)], tree, dict(metric=metric))


READ_OUT = ('h', 'C', 'x', 'D', 'z', 'h_weight', 'h_bias', 'y_weight', 'y_bias')


def gated_read_out(
    batch: int, vertices: int, channels: int, dtype=torch.float32, gate=None, **options
) -> Call:
    """Tensors in the order of ``READ_OUT``; the gate may have another dtype."""
    normal = random(vertices, channels)
    rows, vector = (batch, vertices, channels), (channels,)
    shapes = rows, rows[:2], rows, vector, rows, vector, vector, vector, vector
    tensors = [normal(*shape).to(dtype) for shape in shapes]
    tensors[4] = tensors[4].to(gate or dtype)
    return Call('gated_read_out', tensors, None, options)


# Every differentiable operator in every form; plain is without bias and softplus.
FORMS = ['tree_scan both', 'tree_scan up', 'gated_read_out']
FORMS += [f'selective_tree_scan{form}' for form in ('', ' without bias', ' without softplus')]
FORMS += [f'selective_tree_scan with distance{form}' for form in ('', ', plain')]
FORMS += [
    f'token_scan {tree}' for tree in ('chain', 'published', 'causal', 'random', 'without bias', 'plain')
]
FORMS += [f'tree_edge_distance {metric}' for metric in ops.METRICS]


def make(form: str, batch: int, height: int, width: int, channels: int, dtype=torch.float32, states=3):
    """A call of one of ``FORMS`` on the spanning tree of a grid, or over as many tokens."""
    name, _, kind = form.partition(' ')
    plain = kind.endswith('plain')
    options = dict(
        bias=not plain and kind != 'without bias', softplus=not plain and kind != 'without softplus'
    )
    if name == 'tree_scan':
        return tree_scan(spanning_tree(batch, height, width), channels, dtype, direction=kind)
    if name == 'tree_edge_distance':
        return tree_edge_distance(spanning_tree(batch, height, width), channels, dtype, kind)
    if name == 'gated_read_out':
        wide = torch.promote_types(dtype, torch.float32)
        return gated_read_out(batch, height * width, channels, wide, dtype, eps=1e-2)
    if name == 'selective_tree_scan':
        options['distance'] = 'with distance' in kind
        return selective_tree_scan(spanning_tree(batch, height, width), channels, dtype, **options)
    tree = token_tree('random' if kind in ('without bias', 'plain') else kind, batch, height * width)
    return token_scan(tree, channels, states, dtype, **options)


def twice(call):
    """The result of a call, with the same bits where uninitialised memory holds NaN and great integers."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first = call()
    finally:
        torch.use_deterministic_algorithms(False)
    for one, two in zip(call(), first, strict=True):
        assert_same(one, two)
    return first


def with_threads(counts, call) -> list:
    """The results of a call by each number of threads."""
    before, results = torch.get_num_threads(), []
    try:
        for count in counts:
            torch.set_num_threads(count)
            results.append(call())
    finally:
        torch.set_num_threads(before)
    return results
