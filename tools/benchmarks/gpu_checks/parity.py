"""Every operator on the device beside the CPU's kernels."""

import itertools

import torch
from torch import Tensor

from .compare import Tally, keep_strides, twice
from .environment import Options, import_ops
from .operators import dtype_name, selective_definition
from .report import Report
from .tokens import graph_shapes, token_scans, token_trees

ops = import_ops()
from tests.ops.cases import GRIDS, SCAN_DTYPES, features  # noqa: E402  (found through import_ops)

KINDS = ('normal', 'equal', 'binary', 'special')
LARGE = [(56, 56), (65, 63), (128, 130), (200, 320)]
STEPS = ('grid_edge_weight', 'minimum_spanning_tree', 'breadth_first_order', 'build_tree')


class Parity:
    """The cases, their random numbers and what they found."""

    def __init__(self, options: Options, report: Report, small: bool):
        self.device = options.device
        self.options = options
        self.report = report
        self.tally = Tally()
        self.random = torch.Generator().manual_seed(options.seed)
        self.small = small or options.dry_run
        long_grids = [(1, 40), (40, 1)]
        large = LARGE[:-1] if options.quick else LARGE
        self.grids = GRIDS + ([] if self.small else [*long_grids, *large])
        self.lengths = 60 if self.small else 5000  # vertices of the edge-list graphs

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=self.random).to(dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(shape, generator=self.random).to(dtype)

    def integer(self, high: int) -> int:
        return int(torch.randint(high, (), generator=self.random))

    def maps(self, kind: str, *shape: int) -> Tensor:
        """Maps of a kind that no earlier run has seen."""
        if kind == 'normal':
            return self.normal(*shape)
        shift = self.integer(shape[1]), self.integer(shape[2])
        return features(kind, *shape).roll(shift, (1, 2))

    def finish(self, title: str) -> None:
        print(f'  -- {title}', flush=True)
        self.tally.report(self.report)


def run(options: Options, report: Report, small: bool = False) -> None:
    parity = Parity(options, report, small)
    print(f'  seed {options.seed}', flush=True)
    trees, sums = (grid_trees, graph_trees, token_trees), (scans, selective_scans, token_scans, read_outs)
    for part in (*trees, *sums, special_signals, bad_inputs):
        part(parity)
        parity.finish(part.__name__.replace('_', ' '))


def grid_trees(parity: Parity) -> None:
    for (height, width), kind, metric in itertools.product(parity.grids, KINDS, ops.METRICS):
        large = height * width > 10_000
        if large and (kind, metric) not in {
            ('normal', 'cosine'),
            ('binary', 'euclidean'),
            ('equal', 'manhattan'),
            ('special', 'cosine'),
        }:
            continue
        shape = (1 if large else 3, height, width, 160 if (height, width) == (56, 56) else 20)
        compare_trees(parity, f'{kind} {metric}', parity.maps(kind, *shape), metric)
    for dtype in SCAN_DTYPES:
        maps = parity.normal(2, 9, 11, 33, dtype=dtype)
        compare_trees(parity, dtype_name(dtype), maps)
        compare_trees(parity, f'{dtype_name(dtype)} strided', strided(maps))
    compare_trees(parity, 'batch 0', torch.ones(0, 7, 7, 4))
    if parity.small and parity.device == 'cuda':  # the path of large grids, once
        compare_trees(parity, 'large', parity.maps('normal', 1, 128, 130, 4))
    elif not parity.small and not parity.options.quick:
        huge_tree(parity)


def compare_trees(parity: Parity, label: str, maps: Tensor, metric: str = 'cosine') -> None:
    batch, height, width, channels = maps.shape
    case = f'{label} {batch}x{height}x{width}x{channels}'
    root = parity.integer(height * width)
    expected = tree_steps(maps, metric, root)
    with parity.tally.case('trees', case):
        moved = keep_strides(maps, parity.device)
        found = twice(parity.tally, 'trees', case, lambda: tree_steps(moved, metric, root))
        for name, ours, theirs in zip(STEPS, *map(by_step, (found, expected)), strict=True):
            parity.tally.exact(name, case, ours, theirs)


def tree_steps(maps: Tensor, metric: str, root: int) -> tuple[Tensor, ...]:
    height, width = maps.shape[1:3]
    weight = ops.grid_edge_weight(maps, metric)
    tree_edges = ops.minimum_spanning_tree(weight, height, width)
    order = ops.breadth_first_order(tree_edges, height, width, root)
    return weight, tree_edges, *order, *ops.build_tree(maps, metric, root)


def by_step(results: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    return [results[:1], results[1:2], results[2:5], results[5:]]


def graph_trees(parity: Parity) -> None:
    """Edge lists: trees deep and wide, with further edges between them."""
    vertices = parity.lengths
    for name, parents in graph_shapes(vertices).items():
        own = torch.tensor([[v, parents(v)] for v in range(1, vertices)])
        more = torch.randint(vertices, (vertices, 2), generator=parity.random)
        edges = torch.cat([own, more])
        shuffled = torch.stack([edges[torch.randperm(len(edges), generator=parity.random)] for _ in range(2)])
        for label, graph, batch in (
            ('shared', edges, 3),
            ('per item', shuffled.int(), 2),
            ('batch 0', edges, 0),
        ):
            weight = parity.uniform(batch, len(edges)) if label != 'shared' else torch.ones(batch, len(edges))
            root = parity.integer(vertices)
            expected = graph_steps(graph, weight, vertices, root)
            case = f'{name} {label}'
            with parity.tally.case('edge lists', case):
                moved = graph.to(parity.device), weight.to(parity.device)
                found = twice(
                    parity.tally,
                    'edge lists',
                    case,
                    lambda moved=moved, root=root: graph_steps(*moved, vertices, root),
                )
                parity.tally.exact('minimum_spanning_tree_from_edges', case, found[:1], expected[:1])
                parity.tally.exact('breadth_first_order_from_edges', case, found[1:], expected[1:])


def graph_steps(edges: Tensor, weight: Tensor, vertices: int, root: int) -> tuple[Tensor, ...]:
    tree_edges = ops.minimum_spanning_tree_from_edges(edges, weight, vertices)
    return tree_edges, *ops.breadth_first_order_from_edges(edges, tree_edges, vertices, root)


def scan_trees(parity: Parity):
    """Trees to scan along, on the CPU: name, batch, tree."""
    for height, width in parity.grids:
        batch = 1 if height * width > 10_000 else 3
        yield f'{batch}x{height}x{width}', ops.build_tree(parity.normal(batch, height, width, 4))
    for name, parents in graph_shapes(parity.lengths).items():
        edges = torch.tensor([[v, parents(v)] for v in range(1, parity.lengths)])
        tree_edges = torch.arange(parity.lengths - 1, dtype=torch.int32).unsqueeze(0)
        yield name, ops.breadth_first_order_from_edges(edges, tree_edges, parity.lengths, 1)
    yield 'batch 0', ops.build_tree(torch.ones(0, 3, 4, 2))


def scans(parity: Parity) -> None:
    channels = itertools.cycle([1, 33, 5] if parity.small else [1, 33, 160])
    for (name, tree), dtype in itertools.product(list(scan_trees(parity)), SCAN_DTYPES):
        batch, vertices = tree.order.shape
        shape = (batch, vertices, 8 if vertices > 10_000 else next(channels))
        for direction, slow in itertools.product(('both', 'up'), (False, True)):
            if slow and dtype == torch.float16:  # sums of thousands of vertices overflow
                continue
            decay = parity.uniform(*shape)
            decay = (1 - decay / 50 if slow else decay).to(dtype)
            inputs = parity.normal(*shape, dtype=dtype), decay
            case = f'{name}x{shape[-1]}' + (' slow decay' if slow else '')
            label = f'tree_scan {direction}'
            compare_scan(
                parity,
                label,
                case,
                inputs,
                tree,
                lambda u, a, tree, d=direction: ops.tree_scan(u, a, tree, d),
            )
    signal, decay = (parity.uniform(2, 99, 6) for _ in range(2))
    tree = ops.build_tree(parity.normal(2, 9, 11, 4))
    compare_scan(parity, 'tree_scan both', 'strided', (strided(signal), strided(decay)), tree, ops.tree_scan)
    compare_scan(
        parity, 'tree_scan both', 'expanded', (signal[..., :1].expand(2, 99, 6), decay), tree, ops.tree_scan
    )
    pairs = ops.Tree(*(torch.stack([field, field], -1)[..., 0] for field in tree))
    compare_scan(parity, 'tree_scan both', 'strided tree', (signal, decay), pairs, ops.tree_scan)


def compare_scan(parity: Parity, name: str, case: str, inputs: tuple, tree, scan, definition=None) -> None:
    """Result and gradients beside float64 on the CPU; None among the inputs is passed on."""
    tally, device = parity.tally, parity.device
    exact = tuple(x if x is None else x.double() for x in inputs)
    shape = inputs[0].shape
    grad = parity.normal(*shape, dtype=inputs[0].dtype)
    expected = with_gradients(definition or scan, exact, tree, grad.double())
    with tally.case(name, case):
        moved = tuple(x if x is None else keep_strides(x, device) for x in inputs)
        moved_tree = ops.Tree(*(keep_strides(field, device) for field in tree))
        moved_grad = grad.to(device)
        found = twice(tally, name, case, lambda: with_gradients(scan, moved, moved_tree, moved_grad))
        tally.close(name, case, found[0], expected[0])
        for ours, theirs in zip(found[1:], expected[1:], strict=True):
            tally.close(f'{name} gradient', case, ours, theirs, gradient=True)


def with_gradients(scan, inputs: tuple, tree, grad: Tensor) -> tuple[Tensor, ...]:
    inputs = tuple(x if x is None else x.detach().requires_grad_() for x in inputs)
    result = scan(*inputs, tree)
    return result.detach(), *torch.autograd.grad(result, [x for x in inputs if x is not None], grad)


def selective_scans(parity: Parity) -> None:
    if not hasattr(ops, 'selective_tree_scan'):
        parity.report.missing('selective_tree_scan', 'cases fail', 'grootv.ops has no selective_tree_scan')
        return
    for (name, tree), dtype in itertools.product(list(scan_trees(parity)), SCAN_DTYPES):
        for biased, softplus in ((True, True), (False, True), (True, False)):
            compare_selective(parity, name, tree, dtype, biased, softplus)
    tree = ops.build_tree(parity.normal(2, 7, 7, 4))
    compare_selective(parity, 'strided', tree, torch.float32, True, True, change=strided)
    for extreme in (-100.0, 50.0):
        compare_selective(
            parity,
            f'delta {extreme:g}',
            tree,
            torch.float32,
            True,
            True,
            change=lambda x, e=extreme: spike(x, e),
        )


def compare_selective(parity, name, tree, dtype, biased, softplus, change=None) -> None:
    batch, vertices = tree.order.shape
    channels = 8 if vertices > 10_000 else 20
    wide = torch.promote_types(dtype, torch.float32)
    delta = (
        parity.normal(batch, vertices, channels) - 1
        if softplus
        else parity.uniform(batch, vertices, channels)
    )
    inputs = [
        parity.normal(batch, vertices, channels, dtype=dtype),
        delta.to(dtype) if change is None else change(delta.to(dtype)),
        -(0.5 + parity.uniform(channels, dtype=wide)),
        parity.normal(batch, vertices, dtype=dtype),
        parity.uniform(channels, dtype=wide) / 10 if biased else None,
    ]
    case = f'{name}x{channels}' + ' bias' * biased + ' softplus' * softplus

    def scan(x, delta, A, B, bias, tree):
        return ops.selective_tree_scan(x, delta, A, B, tree, delta_bias=bias, delta_softplus=softplus)

    def definition(x, delta, A, B, bias, tree):
        return selective_definition(x, delta, A, B, tree, bias, softplus)

    compare_scan(parity, 'selective_tree_scan', case, tuple(inputs), tree, scan, definition)


def read_outs(parity: Parity) -> None:
    tree = ops.build_tree(parity.normal(1, 2, 2, 4))  # which compare_scan hands on, and nothing reads

    def read_out(z, h, C, x, D, *norms):
        h_weight, h_bias, y_weight, y_bias, _ = norms
        return ops.gated_read_out(h, C, x, D, z, (h_weight, h_bias), (y_weight, y_bias), eps=1e-3)

    large = [] if parity.small else [(64, 3136, 160), (32, 49, 1280)]
    for shape, dtype in itertools.product([(0, 3, 5), (1, 1, 1), (2, 49, 33), *large], SCAN_DTYPES):
        wide = torch.promote_types(dtype, torch.float32)
        vectors = [parity.normal(shape[2], dtype=wide) for _ in range(5)]
        rows = [parity.normal(*shape, dtype=wide) for _ in range(2)]
        C = parity.normal(*shape[:2], dtype=wide)
        inputs = (parity.normal(*shape, dtype=dtype), rows[0], C, rows[1], *vectors)
        compare_scan(parity, 'gated_read_out', 'x'.join(map(str, shape)), inputs, tree, read_out)


def special_signals(parity: Parity) -> None:
    """NaN and infinity go where the CPU sends them; the root's decay is never read."""
    device, tally = parity.device, parity.tally
    for dtype, direction in itertools.product(SCAN_DTYPES, ('both', 'up')):
        tree = ops.build_tree(parity.normal(2, 7, 7, 4))
        moved = ops.Tree(*(field.to(device) for field in tree))
        signal, decay = parity.normal(2, 49, 5, dtype=dtype), parity.uniform(2, 49, 5, dtype=dtype)
        decay[:, 0] = torch.nan
        case = f'{direction} {dtype_name(dtype)}'
        with tally.case('tree_scan special', case):
            tally.holds(
                "the root's decay is not read",
                case,
                bool(ops.tree_scan(signal.to(device), decay.to(device), moved, direction).isfinite().all()),
            )
            signal[0, 17, 1], signal[1, 3, 2] = torch.nan, torch.inf
            found = ops.tree_scan(signal.to(device), decay.to(device), moved, direction)
            expected = ops.tree_scan(signal, decay, tree, direction)
            tally.exact('NaN of tree_scan', case, found.isnan().cpu(), expected.isnan())


def bad_inputs(parity: Parity) -> None:
    """The sentence that the CPU raises, as a RuntimeError, for every wrong call."""
    device = parity.device
    for name, call in bad_calls('cpu').items():
        expected = raised(call)
        found = raised(bad_calls(device)[name])
        parity.tally.holds('wrong calls are refused as on the CPU', name, found == expected, found)
    other = 'meta' if device == 'cpu' else 'cpu'
    for name, call in mixed_calls(device, other).items():
        found = raised(call)
        refused = 'all tensors must be on one device' in found
        parity.tally.holds('mixed devices are refused', name, refused, found)


def raised(call) -> str:
    try:
        call()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    except Exception as error:
        return f'{type(error).__name__}, not a RuntimeError: {error}'
    return 'nothing was raised'


def bad_calls(device: str) -> dict:
    signal, decay = torch.ones(2, 9, 4, device=device), torch.ones(2, 9, 4, device=device)
    tree = ops.Tree(*(field.to(device) for field in ops.build_tree(torch.ones(2, 3, 3, 4))))
    triangle = torch.tensor([[0, 1], [1, 2], [0, 2], [2, 3]], device=device)

    def ones(*shape, dtype=torch.float32):
        return torch.ones(shape, dtype=dtype, device=device)

    def edges(*indices):
        return torch.tensor([indices], dtype=torch.int32, device=device)

    return {
        'maps without batch': lambda: ops.build_tree(ones(3, 3, 4)),
        'integer maps': lambda: ops.grid_edge_weight(ones(1, 3, 3, 4, dtype=torch.int32)),
        'empty grid': lambda: ops.grid_edge_weight(ones(1, 0, 3, 4)),
        'root outside': lambda: ops.build_tree(ones(1, 2, 2, 1), root=4),
        'too few weights': lambda: ops.minimum_spanning_tree(ones(2, 5), 2, 2),
        'unconnected graph': lambda: ops.minimum_spanning_tree_from_edges(triangle[[0, 3, 0]], ones(1, 3), 4),
        'edge to nowhere': lambda: ops.minimum_spanning_tree_from_edges(triangle, ones(1, 4), 3),
        'not a tree of the grid': lambda: ops.breadth_first_order(edges(0, 1, 3, 5, 0), 2, 3),
        'not a tree of the graph': lambda: ops.breadth_first_order_from_edges(triangle, edges(0, 1, 2), 4),
        'too few decays': lambda: ops.tree_scan(signal, decay[..., :3], tree),
        'another dtype': lambda: ops.tree_scan(signal, decay.double(), tree),
        'flat signal': lambda: ops.tree_scan(signal.flatten(1), decay, tree),
        'integer signal': lambda: ops.tree_scan(signal.int(), decay.int(), tree),
        'another batch': lambda: ops.tree_scan(signal, decay, ops.Tree(*(field[:1] for field in tree))),
        'int64 order': lambda: ops.tree_scan(signal, decay, tree._replace(order=tree.order.long())),
        **selective_bad_calls(signal, decay, tree),
        **token_bad_calls(signal, decay, tree),
    }


def selective_bad_calls(signal: Tensor, delta: Tensor, tree) -> dict:
    if not hasattr(ops, 'selective_tree_scan'):
        return {}
    A, B = signal[0, 0], signal[..., 0]
    return {
        'too few steps': lambda: ops.selective_tree_scan(signal, delta[..., :3], A, B, tree),
        'too few rates': lambda: ops.selective_tree_scan(signal, delta, A[:3], B, tree),
        'too few writes': lambda: ops.selective_tree_scan(signal, delta, A, B[:, :5], tree),
        'too few biases': lambda: ops.selective_tree_scan(signal, delta, A, B, tree, delta_bias=A[:3]),
    }


def token_bad_calls(signal: Tensor, delta: Tensor, tree) -> dict:
    context, rates = torch.zeros_like(tree.order[:, :2]), signal[0, :4]
    return {
        'no reach': lambda: ops.token_edge_weight(signal, delta, context, 0),
        'tokens without writes': lambda: ops.token_edge_weight(signal, delta[:, 1:], context),
        'too few contexts': lambda: ops.token_edge_weight(signal, delta, context[:1]),
        'too few steps of tokens': lambda: ops.token_scan(signal, delta[:, 1:], rates, delta, delta, tree),
        'too few rates of states': lambda: ops.token_scan(signal, delta, rates[:3], delta, delta, tree),
        'another dtype of tokens': lambda: ops.token_scan(signal, delta.half(), rates, delta, delta, tree),
    }


def mixed_calls(device: str, other: str) -> dict:
    signal, decay = torch.ones(2, 9, 4, device=device), torch.ones(2, 9, 4)
    tree = ops.Tree(*(field.to(device) for field in ops.build_tree(torch.ones(2, 3, 3, 4))))
    graph = torch.tensor([[0, 1]], device=device)
    calls = {
        'decay': lambda: ops.tree_scan(signal, decay.to(other), tree),
        'edge weight': lambda: ops.minimum_spanning_tree_from_edges(graph, torch.ones(1, 1, device=other), 2),
    }
    for field in tree._fields:
        moved = tree._replace(**{field: getattr(tree, field).to(other)})
        calls[field] = lambda moved=moved: ops.tree_scan(signal, decay.to(device), moved)
    return calls


def huge_tree(parity: Parity) -> None:
    maps = parity.normal(1, 2048, 2048, 4)
    expected = ops.build_tree(maps)
    with parity.tally.case('trees', '2048x2048'):
        moved = maps.to(parity.device)
        found = twice(parity.tally, 'build_tree', '2048x2048', lambda: ops.build_tree(moved))
        parity.tally.exact('build_tree', '2048x2048', found, expected)


def strided(tensor: Tensor) -> Tensor:
    """The same values, the first and last dimension swapped in memory."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def spike(tensor: Tensor, value: float) -> Tensor:
    """A few entries replaced by an extreme value."""
    tensor = tensor.clone()
    tensor[:, ::7, ::3] = value
    return tensor
