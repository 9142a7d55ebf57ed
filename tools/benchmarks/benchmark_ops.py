"""Time the CPU operators beside a named peer or a measured floor, in one run.

    python tools/benchmarks/benchmark_ops.py [--out experiments/results/ops_cpu.json]

Every row alternates the operator and its peer and divides the medians. A row whose operator disagrees with
its peer or reference is an error, not a figure.
"""

import argparse
import ctypes
import json
import platform
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from gpu_checks.environment import commit
from measuring.clock import medians, take_turns
from rich.console import Console
from rich.table import Table
from scipy.sparse import csgraph, csr_matrix

from grootv import ops
from grootv.ops.grid_graph import grid_edges


@dataclass
class Row:
    """Median seconds of an operator and of what it is compared with, and the bound on their ratio."""

    name: str
    peer: str
    threads: int
    seconds: float
    peer_seconds: float
    ratio: float
    target: str
    met: bool


@contextmanager
def num_threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def tree_rows(height: int, width: int, channels: int, budget: float):
    """Tree construction beside scipy, one thread each; scipy gets the weights for nothing."""
    vertices = height * width
    maps = torch.randn(1, height, width, channels)
    weight = ops.grid_edge_weight(maps)
    ends = grid_edges(height, width).T.numpy()
    values = weight[0].numpy().astype(np.float64)

    def graph():
        return csr_matrix((values, ends), shape=(vertices, vertices))

    def scipy_tree(sparse):
        tree = csgraph.minimum_spanning_tree(sparse)
        return tree, csgraph.breadth_first_order(tree, 0, directed=False)

    ready = graph()
    tree_edges = ops.minimum_spanning_tree(weight, height, width)
    expected = np.sort(scipy_tree(ready)[0].data)
    if not np.array_equal(np.sort(values[tree_edges[0].numpy()]), expected):
        raise RuntimeError('the spanning tree is not as light as scipy says')

    size = f'{height}x{width}x{channels}'
    peers = {
        'scipy tree + order, graph ready': (lambda: scipy_tree(ready), 1 / 8),
        'scipy tree + order from weights': (lambda: scipy_tree(graph()), 1 / 8),
    }
    with num_threads(1):
        for peer, (function, bound) in peers.items():
            yield row(f'build_tree {size}', peer, 1, lambda: ops.build_tree(maps), function, bound, budget)
        peer, (function, _) = next(iter(peers.items()))
        steps = {
            'grid_edge_weight': lambda: ops.grid_edge_weight(maps),
            'minimum_spanning_tree': lambda: ops.minimum_spanning_tree(weight, height, width),
            'breadth_first_order': lambda: ops.breadth_first_order(tree_edges, height, width),
        }
        for name, step in steps.items():
            yield row(f'  {name} {size}', peer, 1, step, function, None, budget)


def scan_rows(batch: int, height: int, width: int, channels: int, dtype: torch.dtype, budget: float):
    """The scan beside streaming its bytes once: every input read, every output written."""
    tree = ops.build_tree(torch.randn(batch, height, width, 4))
    shape = (batch, height * width, channels)
    signal, grad = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    decay = torch.rand(shape, dtype=dtype)
    outputs = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
    name = f'{batch}x{height}x{width}x{channels} {str(dtype).removeprefix("torch.")}'
    threads = torch.get_num_threads()

    def stream_forward():
        torch.add(signal, decay, out=outputs[0])

    def stream_backward():
        torch.add(signal, decay, out=outputs[0])
        torch.neg(grad, out=outputs[1])

    def forward():
        return ops.tree_scan(signal, decay, tree)

    def backward():
        return torch.ops.grootv.tree_scan_backward(grad, signal, decay, *tree, 'both')

    peer = 'streaming the bytes once'
    yield row(f'tree_scan {name}', peer, threads, forward, stream_forward, 2.5, budget)
    yield row(f'tree_scan_backward {name}', peer, threads, backward, stream_backward, 2.5, budget)


def selective_scan_rows(
    batch: int, height: int, width: int, channels: int, dtype: torch.dtype, budget: float
):
    """The selective scan beside PyTorch's softplus, exp and products and tree_scan after them."""
    vertices = height * width
    with torch.inference_mode(False):
        tree = ops.build_tree(torch.randn(batch, height, width, 4))
        x, delta, grad = (torch.randn(batch, vertices, channels).to(dtype) for _ in range(3))
        A, B = -torch.rand(channels) - 0.5, torch.randn(batch, vertices).to(dtype)
        bias = torch.randn(channels) - 4  # short steps, as a network starts with
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
    name = f'{batch}x{height}x{width}x{channels} {str(dtype).removeprefix("torch.")}'
    common = 'softplus, exp, products, tree_scan', torch.get_num_threads()
    yield row(f'selective_tree_scan {name}', *common, fused, separate, 1.0, budget)
    pair = (lambda: train(fused)), (lambda: train(separate))
    yield row(f'  with its backward {name}', *common, *pair, 1.0, budget)


def growth_rows(channels: int, budget: float):
    """Time per vertex at 512 x 512 beside 56 x 56, both over about 262,000 vertices."""
    large, small = torch.randn(1, 512, 512, channels), torch.randn(84, 56, 56, channels)
    scale = 84 * 56 * 56 / 512**2
    threads = torch.get_num_threads()

    def scan(maps, tree):
        signal = maps.flatten(1, 2)
        decay = signal.sigmoid()
        return lambda: ops.tree_scan(signal, decay, tree)

    trees = ops.build_tree(large), ops.build_tree(small)
    with num_threads(1):
        pair = (lambda: ops.build_tree(large)), (lambda: ops.build_tree(small))
        yield row('build_tree per vertex, 512x512', '84 of 56x56', 1, *pair, 2.0, budget, scale)
        pair = scan(large, trees[0]), scan(small, trees[1])
        yield row('tree_scan per vertex, 512x512', '84 of 56x56', 1, *pair, 2.0, budget, scale)
    yield row('tree_scan per vertex, 512x512', '84 of 56x56', threads, *pair, 2.0, budget, scale)


def row(name, peer, threads, ours, theirs, bound, budget, scale=1.0) -> Row:
    calls = {'ours': lambda _: ours(), 'theirs': lambda _: theirs()}
    seconds, peer_seconds = medians(take_turns(calls, 'cpu', budget)).values()
    ratio = seconds / peer_seconds * scale
    target = '' if bound is None else f'<= {bound:.3g}'
    return Row(name, peer, threads, seconds, peer_seconds, ratio, target, bound is None or ratio <= bound)


def keep_freed_memory() -> None:
    """Let glibc reuse what is freed: rows shall time operators, not the mapping of fresh pages."""
    trim_threshold, mmap_threshold = -1, -3
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'):
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**25)  # the largest that it accepts


def machine() -> dict:
    return {
        'commit': commit(),
        'processor': torch.backends.cpu.get_cpu_capability() + ', ' + platform.machine(),
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'python': platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--budget', type=float, default=3.0, help='seconds a row')
    parser.add_argument('--out', type=Path, help='JSON file to write')
    args = parser.parse_args()
    torch.manual_seed(0)
    keep_freed_memory()

    table = Table('operator', 'beside', 'threads', 'ms', 'peer ms', 'ratio', 'target', 'met')
    console, rows = Console(width=150), []
    with console.status('measuring'), torch.inference_mode():
        groups = [
            tree_rows(56, 56, 160, args.budget),
            scan_rows(1, 56, 56, 160, torch.float32, args.budget),
            scan_rows(8, 56, 56, 160, torch.float32, args.budget),
            scan_rows(8, 14, 14, 640, torch.float32, args.budget),
            scan_rows(8, 56, 56, 160, torch.bfloat16, args.budget),
            selective_scan_rows(8, 56, 56, 160, torch.float32, args.budget),
            selective_scan_rows(8, 14, 14, 640, torch.float32, args.budget),
            selective_scan_rows(8, 56, 56, 160, torch.bfloat16, args.budget),
            growth_rows(160, args.budget),
        ]
        for found in (found for group in groups for found in group):
            rows.append(found)
            times = f'{found.seconds * 1e3:.3f}', f'{found.peer_seconds * 1e3:.3f}'
            met = '' if not found.target else 'yes' if found.met else 'no'
            table.add_row(
                found.name, found.peer, str(found.threads), *times, f'{found.ratio:.3f}', found.target, met
            )
    console.print(table)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**machine(), 'rows': [asdict(r) for r in rows]}, indent=1) + '\n')
        console.print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
