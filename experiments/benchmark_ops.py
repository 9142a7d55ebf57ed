"""Time the operators compared with a peer or a measured floor.

    python experiments/benchmark_ops.py --out experiments/results/ops_cpu.jsonl
    python experiments/benchmark_ops.py --device cuda

An operator and its peer take turns; the value is the median of the rounds' quotients. An operator that
disagrees with its peer or reference is an error, not a figure. It needs torch alone, scipy too on the CPU.
"""

import ctypes
from collections.abc import Callable
from statistics import median

import measure
import torch

from grootv import ops
from grootv.ops.grid_graph import grid_edges

FLOOR = 'streaming the bytes once'
HALF = torch.bfloat16
# Batch, height, width, channels and type of the scans; targets of forward and backward over the floor.
SCANS = {
    'cpu': [
        ((1, 56, 56, 160), torch.float32, 2.5, 2.5),
        ((8, 56, 56, 160), torch.float32, 2.5, 2.5),
        ((8, 14, 14, 640), torch.float32, 2.5, 2.5),
        ((8, 56, 56, 160), HALF, 2.5, 2.5),
    ],
    'cuda': [
        ((128, 56, 56, 160), torch.float32, 2, 2),
        ((128, 56, 56, 160), HALF, 2, 2),
        ((2, 200, 320, 160), torch.float32, 6, None),
    ],
}
# Targets in ms of trees on a GPU, by shape.
TREES = {(128, 56, 56, 160): 0.3, (2, 200, 320, 160): 1.5}
MAP = (56, 56, 160)  # height, width and channels of the tree that is compared with scipy's
# Sides of which the largest is compared with the others, and channels.
GROWTH = {'cpu': ((56, 512), 160), 'cuda': ((256, 512, 1024), 32)}


class Bench:
    """Adds a row for every pair of calls that take turns."""

    def __init__(self, args):
        self.record = measure.Record('ops', args.out, args.quick, args.device)
        self.turns, self.device = (args.rounds, args.budget), args.device

    def row(
        self, name: str, peer: str, ours: Callable, theirs: Callable, target=None, scale=1.0, threads=None
    ) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        turns = measure.take_turns({'ours': ours, 'theirs': theirs}, *self.turns)
        torch.set_num_threads(before)
        times = dict(ms=median(turns['ours']) * 1e3, peer_ms=median(turns['theirs']) * 1e3)
        value = measure.ratio(turns['ours'], turns['theirs']) * scale
        self.record.judge(name, value, target, peer=peer, threads=threads or before, **times)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, device=self.device).to(dtype)


def label(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return 'x'.join(map(str, shape)) + f' {str(dtype).removeprefix("torch.")}'


def tree_compared_with_scipy(bench: Bench) -> None:
    """Tree construction, one thread each; scipy gets the weights for nothing."""
    import numpy as np
    from scipy.sparse import csgraph, csr_matrix

    height, width, channels = MAP
    maps = bench.normal(1, height, width, channels)
    weight = ops.grid_edge_weight(maps)
    ends, values = grid_edges(height, width).T.numpy(), weight[0].numpy().astype(np.float64)

    def graph():
        return csr_matrix((values, ends), shape=(height * width, height * width))

    def scipy_tree(sparse):
        tree = csgraph.minimum_spanning_tree(sparse)
        return tree, csgraph.breadth_first_order(tree, 0, directed=False)

    sparse = graph()
    tree_edges = ops.minimum_spanning_tree(weight, height, width)
    if not np.array_equal(np.sort(values[tree_edges[0].numpy()]), np.sort(scipy_tree(sparse)[0].data)):
        raise RuntimeError('the spanning tree is not as light as scipy says')
    ready = 'scipy tree + order, graph ready', lambda: scipy_tree(sparse)
    from_weights = 'scipy tree + order from weights', lambda: scipy_tree(graph())
    steps = [
        ('build_tree', lambda: ops.build_tree(maps), ready, 1 / 8),
        ('build_tree', lambda: ops.build_tree(maps), from_weights, 1 / 8),
        ('  grid_edge_weight', lambda: ops.grid_edge_weight(maps), ready, None),
        ('  minimum_spanning_tree', lambda: ops.minimum_spanning_tree(weight, height, width), ready, None),
        ('  breadth_first_order', lambda: ops.breadth_first_order(tree_edges, height, width), ready, None),
    ]
    for name, ours, (peer, theirs), target in steps:
        bench.row(f'{name} {height}x{width}x{channels}', peer, ours, theirs, target, threads=1)


def tree_on_gpu(bench: Bench, shape: tuple[int, ...], target: float) -> None:
    """Milliseconds of tree construction."""
    maps = bench.normal(*shape)
    (seconds,) = measure.take_turns({'': lambda: ops.build_tree(maps)}, *bench.turns).values()
    bench.record.judge(f'build_tree {label(shape, maps.dtype)}, ms', median(seconds) * 1e3, target)


def scan(bench: Bench, shape: tuple[int, ...], dtype: torch.dtype, *targets: float | None) -> None:
    """The scan compared with streaming its bytes once: every input read, every output written."""
    batch, height, width, channels = shape
    tree = ops.build_tree(bench.normal(batch, height, width, 4))
    signal, grad = (bench.normal(batch, height * width, channels, dtype=dtype) for _ in range(2))
    decay = torch.rand_like(signal)
    out, other = torch.empty_like(signal), torch.empty_like(signal)
    decomposition = torch.ops.grootv.heavy_light(*tree, 'tree_scan')  # the forward pass keeps it

    def forward():
        return ops.tree_scan(signal, decay, tree)

    def backward():
        return torch.ops.grootv.tree_scan_backward(grad, signal, decay, *tree, 'both', decomposition)

    def stream():
        return torch.add(signal, decay, out=out)

    name = label(shape, dtype)
    bench.row(f'tree_scan {name}', FLOOR, forward, stream, targets[0])
    bench.row(
        f'tree_scan_backward {name}',
        FLOOR,
        backward,
        lambda: (stream(), torch.neg(grad, out=other)),
        targets[1],
    )


def selective_scan(bench: Bench, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The selective scan compared with PyTorch's softplus, exp and products and tree_scan after them."""
    batch, height, width, channels = shape
    with torch.inference_mode(False):
        tree = ops.build_tree(bench.normal(batch, height, width, 4))
        x, delta, grad = (bench.normal(batch, height * width, channels, dtype=dtype) for _ in range(3))
        A, B = -bench.normal(channels).sigmoid() - 0.5, bench.normal(batch, height * width, dtype=dtype)
        bias = bench.normal(channels) - 4  # short steps, as a network starts with
        inputs = [tensor.requires_grad_() for tensor in (x, delta, A, B, bias)]

    def fused():
        return ops.selective_tree_scan(x, delta, A, B, tree, bias)

    def separate():
        step = torch.nn.functional.softplus(delta.float() + bias)
        signal = step * (B.float().unsqueeze(-1) * x.float())
        return ops.tree_scan(signal, torch.exp(step * A), tree).to(dtype)

    def train(scan):
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(scan(), inputs, grad)

    for found, expected in zip(train(fused), train(separate), strict=True):
        if (found - expected).norm() > 1e-2 * expected.norm():
            raise RuntimeError('selective_tree_scan is not what its separate steps compute')
    name, peer = label(shape, dtype), 'softplus, exp, products, tree_scan'
    bench.row(f'selective_tree_scan {name}', peer, fused, separate, 1.0)
    bench.row(f'  with its backward {name}', peer, lambda: train(fused), lambda: train(separate), 1.0)


def growth(bench: Bench, sides: tuple[int, ...], channels: int) -> None:
    """Time per vertex of the largest grid over that of smaller ones, about as many vertices in each batch."""
    count, trees, scans = sides[-1] ** 2, {}, {}
    for side in sides:
        maps = bench.normal(max(count // side**2, 1), side, side, channels)
        signal, decay, tree = maps.flatten(1, 2), maps.flatten(1, 2).sigmoid(), ops.build_tree(maps)
        trees[side] = lambda maps=maps: ops.build_tree(maps)
        scans[side] = lambda given=(signal, decay, tree): ops.tree_scan(*given)
    for side in sides[:-1]:
        batch = count // side**2
        for name, calls in (('build_tree', trees), ('tree_scan', scans)):
            for threads in sorted({1, torch.get_num_threads()}) if name == 'tree_scan' else [1]:
                pair, peer = (calls[sides[-1]], calls[side]), f'{batch} of {side}x{side}'
                title, scale = f'{name} per vertex, {sides[-1]}x{sides[-1]}', batch * side**2 / count
                bench.row(title, peer, *pair, 2.0, scale, threads)


def keep_freed_memory() -> None:
    """Let glibc reuse what is freed: rows time operators, not the mapping of fresh pages."""
    trim_threshold, mmap_threshold = -1, -3
    if hasattr(libc := ctypes.CDLL(None), 'mallopt'):
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**25)  # the largest that it accepts


def main(argv: list[str] | None = None) -> None:
    args = measure.parse(measure.make_parser(__doc__, budget=3), argv)
    torch.manual_seed(0)
    keep_freed_memory()
    bench = Bench(args)
    with torch.inference_mode():
        if args.device == 'cpu':
            tree_compared_with_scipy(bench)
        else:
            for shape, target in TREES.items():
                tree_on_gpu(bench, shape, target)
        for shape, dtype, *targets in SCANS[args.device]:
            scan(bench, shape, dtype, *targets)
        for shape, dtype, *_ in SCANS[args.device]:
            if shape[0] > 1:
                selective_scan(bench, shape, dtype)
        growth(bench, *GROWTH[args.device])


if __name__ == '__main__':
    main()
