"""Speed of the operators beside the device's own copy, measured in the same run."""

import gc
import math
from functools import partial

import torch

from .environment import Options, import_ops
from .operators import dtype_name, selective_scan
from .report import Report
from .timing import as_graph, copy_of, medians, num_sets
from .tokens import random_scan

ops = import_ops()

STAGES = [(56, 56, 160), (28, 28, 320), (14, 14, 640), (7, 7, 1280)]  # GrootV-T at 224 px
GROWTH = (14, 28, 56, 128, 256, 512, 1024)
LARGE = 256  # sides from here on must cost alike


def run(options: Options, report: Report) -> None:
    torch.manual_seed(options.seed)
    classification, detection = (128, 56, 56, 160), (2, 200, 320, 160)
    text = (8, 1024, 1, 1536)  # Mamba-130m
    rows = [
        (bandwidth, ()),
        (tree, (classification, torch.float32, 0.3)),
        (tree, (classification, torch.bfloat16, 0.3)),
        (tree, (detection, torch.float32, 1.5)),
        (scan, (classification, torch.float32, 2, 2)),
        (scan, (classification, torch.bfloat16, 2, 2)),
        (scan, (detection, torch.float32, 6, None)),
        (selective, (classification, torch.float32)),
        (selective, (classification, torch.bfloat16)),
        (selective, (detection, torch.float32)),
        (tokens, (text, torch.float32)),
        (tokens, (text, torch.bfloat16)),
        (growth, ()),
    ]
    with torch.no_grad():
        for measure, arguments in rows:
            title = f'{measure.__name__} {label(*arguments[:2]) if arguments else ""}'.strip()
            # The set-up included: another row may still fit into the memory.
            report.attempt(title, '', partial(measure, options, report, *arguments))
            gc.collect()


def label(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return 'x'.join(map(str, shape)) + ' ' + dtype_name(dtype)


def bandwidth(options: Options, report: Report) -> None:
    traffic = 2**20 if options.dry_run else 2**31
    seconds = medians(options, {'copy': copy_of(options, traffic)}, 1)['copy']
    report.figure('copy bandwidth', traffic / seconds / 1e9, 'GB/s', note='bytes read and written')


def tree(options: Options, report: Report, shape: tuple, dtype: torch.dtype, limit: float) -> None:
    """The three steps and all together, in ms, called directly and as a CUDA graph."""
    shape = options.shrink(*shape)
    name = label(shape, dtype)
    _, height, width, _ = shape
    maps = [random(options, shape, dtype) for _ in range(sets_of(options, shape, dtype))]
    weights = [ops.grid_edge_weight(x) for x in maps]
    edges = [ops.minimum_spanning_tree(x, height, width) for x in weights]
    calls = {
        'build_tree': lambda k: ops.build_tree(maps[k]),
        'grid_edge_weight': lambda k: ops.grid_edge_weight(maps[k]),
        'minimum_spanning_tree': lambda k: ops.minimum_spanning_tree(weights[k], height, width),
        'breadth_first_order': lambda k: ops.breadth_first_order(edges[k], height, width),
    }
    for operator, call in calls.items():
        bound = limit if operator == 'build_tree' else None

        def measure(title, call, bound=bound):
            report.figure(title, medians(options, {'call': call}, len(maps))['call'] * 1e3, 'ms', bound)

        capturable = operator != 'breadth_first_order'  # it waits for the device to judge its input
        directly_and_as_graph(
            options, report, f'{operator} {name}', 'ms', measure, call, len(maps), bound, capturable
        )


def directly_and_as_graph(options, report, title, unit, measure, call, sets, limit, capturable) -> None:
    """``measure(title, call)`` for a call and for the CUDA graphs of the same call, which leave no gaps."""
    report.attempt(title, unit, lambda: measure(title, call), limit)
    if not capturable:
        return
    title += ', as a CUDA graph'
    if options.device == 'cuda':
        report.attempt(title, unit, lambda: measure(title, as_graph(call, sets)), limit)
    else:
        report.missing(title, unit, 'CUDA graphs need a GPU', limit)


def scan(options, report, shape, dtype, limit, backward_limit) -> None:
    """Ratios of the plain scan's time to that of a copy that moves the same bytes."""
    shape = options.shrink(*shape)
    name, tensor = label(shape, dtype), flat(shape)
    count = sets_of(options, shape, dtype, 2)
    tree = ops.build_tree(random(options, (*shape[:3], 4), torch.float32))
    signal, grad = ([random(options, tensor, dtype) for _ in range(count)] for _ in range(2))
    decay = [torch.rand(tensor, device=options.device).to(dtype) for _ in range(count)]
    bytes_each, bytes_tree = signal[0].nbytes, sum(field.nbytes for field in tree)

    def forward(k):
        return ops.tree_scan(signal[k], decay[k], tree)

    def backward(k):
        return torch.ops.grootv.tree_scan_backward(grad[k], signal[k], decay[k], *tree, 'both')

    traffic, title = 3 * bytes_each + bytes_tree, f'tree_scan {name}'
    beside_copy(options, report, title, forward, count, traffic, limit, capturable=True)
    traffic, title = 5 * bytes_each + bytes_tree, f'tree_scan backward {name}'
    beside_copy(options, report, title, backward, count, traffic, backward_limit, capturable=True)


def selective(options, report, shape, dtype) -> None:
    """The selective scan likewise, without a limit."""
    shape = options.shrink(*shape)
    name, tensor = label(shape, dtype), flat(shape)
    titles = f'selective_tree_scan {name}', f'selective_tree_scan backward {name}'
    if not hasattr(ops, 'selective_tree_scan'):
        for title in titles:
            report.missing(title, 'x copy', 'grootv.ops has no selective_tree_scan')
        return
    count = sets_of(options, shape, dtype, 2)
    tree = ops.build_tree(random(options, (*shape[:3], 4), torch.float32))
    bytes_tree = sum(field.nbytes for field in tree)
    A, bias = -torch.rand(shape[-1], device=options.device), torch.rand(shape[-1], device=options.device)
    inputs = [
        (
            random(options, tensor, dtype),
            random(options, tensor, dtype),
            A,
            random(options, tensor[:2], dtype),
            bias,
        )
        for _ in range(count)
    ]
    grad = random(options, tensor, dtype)

    def forward(k):
        x, delta, A, B, bias = inputs[k]
        return selective_scan(x, delta, A, B, tree, bias)

    traffic = 3 * grad.nbytes + inputs[0][3].nbytes + bytes_tree
    beside_copy(options, report, titles[0], forward, count, traffic, None, capturable=True)
    trained = [tuple(x.detach().requires_grad_() for x in each) for each in inputs]
    with torch.enable_grad():
        results = [selective_scan(*each[:4], tree, each[4]) for each in trained]

    def backward(k):
        return torch.autograd.grad(results[k], trained[k], grad, retain_graph=True)

    traffic = 5 * grad.nbytes + 2 * inputs[0][3].nbytes + bytes_tree
    beside_copy(options, report, titles[1], backward, count, traffic, None)


def tokens(options, report, shape, dtype) -> None:
    """Tree and scan of texts, whose inputs are read once and whose results are written once."""
    batch, length, width, channels = options.shrink(*shape)
    name = label((batch, length * width, channels), dtype)
    sets = [
        random_scan(batch, length * width, channels, 16, options.device, dtype)
        for _ in range(sets_of(options, shape, dtype, 4))
    ]
    context = torch.tensor([[0, length * width]], device=options.device).repeat(batch, 1)

    def tree(k, causal=False):
        return ops.token_tree(sets[k][0][0], sets[k][0][3], context, causal=causal)

    def measure(title, call):
        report.figure(title, medians(options, {'call': call}, len(sets))['call'] * 1e3, 'ms')

    for title, call in ('token_tree', tree), ('token_tree causal', partial(tree, causal=True)):
        directly_and_as_graph(options, report, f'{title} {name}', 'ms', measure, call, len(sets), None, True)

    grown = tree(0)
    fields = grown.order, grown.parent, True

    def forward(k):
        return torch.ops.grootv.token_scan(*sets[k][0], *fields)

    def backward(k):
        return torch.ops.grootv.token_scan_backward(*sets[k][1], *sets[k][0], *fields)

    inputs, grads = (sum(tensor.nbytes for tensor in part) for part in sets[0])
    beside_copy(options, report, f'token_scan {name}', forward, len(sets), inputs + grads, None, True)
    traffic, title = 2 * inputs + grads, f'token_scan backward {name}'
    beside_copy(options, report, title, backward, len(sets), traffic, None, True)


def beside_copy(options, report, name, call, sets, traffic, limit, capturable=False) -> None:
    def measure(title, call):
        gc.collect()
        seconds = medians(options, {'call': call, 'copy': copy_of(options, traffic)}, sets)
        note = f'{seconds["call"] * 1e3:.4f} ms, copy {seconds["copy"] * 1e3:.4f} ms, {traffic / 1e6:.1f} MB'
        report.figure(title, seconds['call'] / seconds['copy'], 'x copy', limit, note)

    directly_and_as_graph(options, report, name, 'x copy', measure, call, sets, limit, capturable)


def growth(options: Options, report: Report) -> None:
    """Time per vertex of square grids, the batch filled up to a million vertices."""
    costs = {'build_tree': {}, 'tree_scan': {}}
    for side in (4, 8, 12) if options.dry_run else GROWTH:
        for name, call, sets, batch in growth_calls(options, side):
            title = f'{name} per vertex, {batch} of {side}x{side}'

            def measure(title=title, name=name, call=call, sets=sets, batch=batch, side=side):
                seconds = medians(options, {'call': call}, sets, 0.3)['call']
                costs[name][side] = seconds / (batch * side**2) * 1e9
                report.figure(title, costs[name][side], 'ns')

            report.attempt(title, 'ns', measure)
    for name, cost in costs.items():
        large = [cost[side] for side in cost if side >= LARGE or options.dry_run]
        title = f'{name} per vertex, dearest over cheapest large grid'
        if len(large) < 2:
            report.missing(title, 'ratio', 'fewer than two large grids were measured', 2)
        else:
            report.figure(title, max(large) / min(large), 'ratio', 2)


def growth_calls(options: Options, side: int):
    """Name, call, number of input sets and batch of both operators."""
    batch = 2 if options.dry_run else max(1, 2**20 // side**2)
    shape = (batch, side, side, 4 if options.dry_run else 32)
    maps = [random(options, shape, torch.float32) for _ in range(sets_of(options, shape, torch.float32))]
    signal = [x.flatten(1, 2) for x in maps]
    decay = [x.sigmoid() for x in signal]
    yield 'build_tree', lambda k: ops.build_tree(maps[k]), len(maps), batch
    tree = ops.build_tree(maps[0])
    yield 'tree_scan', lambda k: ops.tree_scan(signal[k], decay[k], tree), len(maps), batch


def stage_trees(options: Options, report: Report, batch: int, dtype: torch.dtype, depths: list[int]) -> float:
    """Seconds that the trees of all blocks of GrootV-T take, as called directly."""
    total = 0.0
    for (height, width, channels), depth in zip(STAGES, depths, strict=True):
        shape = options.shrink(batch, height, width, channels)
        maps = [random(options, shape, dtype) for _ in range(sets_of(options, shape, dtype))]
        seconds = medians(options, {'call': lambda k, maps=maps: ops.build_tree(maps[k])}, len(maps), 0.2)[
            'call'
        ]
        report.figure(f'build_tree {label(shape, dtype)}, stage of GrootV-T', seconds * 1e3, 'ms')
        total += depth * seconds
    return total


def random(options: Options, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, device=options.device).to(dtype)


def flat(shape: tuple[int, ...]) -> tuple[int, int, int]:
    batch, height, width, channels = shape
    return batch, height * width, channels


def sets_of(options: Options, shape: tuple, dtype: torch.dtype, tensors: int = 1) -> int:
    return num_sets(options, math.prod(shape) * dtype.itemsize * tensors)
