"""Model the dependent steps of the CUDA scan from trees, without a GPU.

    python experiments/scan_model.py --grid 56 56 --channels 160

Divides trees of random maps as ``ops/csrc/cuda/scan/heavy_light.cu`` does, with the constants of the
sources, and prints for one pass of the block of one item, means over the trees: the batches, whose loads go
out together, on the longest way through all barriers; those of the scans of carries; barriers; and the
entries that a lane takes for each vertex, empty ones included. A prediction from counts, no measurement.
"""

import argparse
import re
from dataclasses import asdict, astuple, dataclass, fields
from math import ceil, log2
from pathlib import Path

import torch

from grootv import ops

CUDA = Path(__file__).resolve().parents[1] / 'ops/csrc/cuda'
WARP, SHARED_BYTES, MOST_CHANNELS, VECTOR_CHANNELS, VECTOR_BYTES = 32, 227 << 10, 32, 4, 16  # H200, float32
PASSES = {
    'forward': (1, 1),
    'backward up': (2, 1),
    'backward down': (2, 1),
    'selective backward down': (2, 2),
}


def constant(file: str, name: str) -> int:
    """The first number that a source gives a constant."""
    found = re.search(rf'\b{name}(?:<.*>)? =[^;,\d]*(\d+)', (CUDA / file).read_text())
    assert found, f'{file} names no {name}'
    return int(found.group(1))


@dataclass
class Scheme:
    """How the entries of heavy paths become chunks and batches."""

    length: int  # of a piece of a long path
    window: int  # in which the short paths of a chunk start
    longest: int  # short path
    ahead: int  # entries whose inputs are loaded together
    threads: int  # of a block

    @classmethod
    def of_sources(cls) -> 'Scheme':
        chunk = (constant('scan/heavy_light.h', name) for name in ('LENGTH', 'WINDOW', 'LONGEST'))
        ahead = constant('scan/scan_passes.h', 'ENTRIES_AHEAD')
        return cls(*chunk, ahead, constant('common/device.h', 'SCAN_THREADS'))


def heavy_paths(order: list[int], parent: list[int]) -> list[tuple[int, int]]:
    """Light depth and number of entries of every heavy path, in the order of their tops."""
    size, children = [1] * len(order), [[] for _ in order]
    for v in reversed(order[1:]):
        size[parent[v]] += size[v]
    for v in order[1:]:
        children[parent[v]].append(v)
    top, depth, length = {order[0]: order[0]}, {order[0]: 0}, {}
    for v in order:
        length[top[v]] = length.get(top[v], 0) + max(1, len(children[v]) - 1)
        heavy = max(children[v], key=lambda child: size[child], default=None)  # of equal ones the first
        for child in children[v]:
            top[child] = top[v] if child == heavy else child
            depth[child] = depth[v] + (child != heavy)
    return [(depth[v], length[v]) for v in order if top[v] == v]


def chunks(paths: list[tuple[int, int]], light_depth: int, scheme: Scheme) -> tuple[list, list, list]:
    """Lengths of the pieces of long paths and of the chunks of short paths; pieces of each long path."""
    pieces, counts, short, end = [], [], {}, 0
    for depth, length in paths:
        if depth != light_depth:
            continue
        if length > scheme.longest:
            cut = [min(scheme.length, length - at) for at in range(0, length, scheme.length)]
            pieces += cut
            counts.append(len(cut))
        else:
            short[end // scheme.window] = short.get(end // scheme.window, 0) + length
            end += length
    return pieces, [short.get(k, 0) for k in range(ceil(end / scheme.window))], counts


@dataclass
class Counts:
    batches: float = 0
    carry_batches: float = 0
    barriers: float = 0
    entries_per_vertex: float = 0


def count(
    paths: list[tuple[int, int]], scheme: Scheme, signals: int, tile_threads: int, vertices: int
) -> Counts:
    tasks, in_warp = scheme.threads // tile_threads, WARP // tile_threads
    total = Counts()

    def phase(lengths: list[int]) -> None:
        warps = [0] * (tasks // in_warp)
        for begin in range(0, len(lengths), in_warp):
            batches = ceil(max(lengths[begin : begin + in_warp]) / scheme.ahead)
            warps[begin // in_warp % len(warps)] += batches
            total.entries_per_vertex += batches * scheme.ahead * in_warp / vertices
        total.batches += max(warps)
        total.barriers += 1

    for light_depth in range(1 + max(depth for depth, _ in paths)):
        pieces, short, counts = chunks(paths, light_depth, scheme)
        if pieces:
            phase(pieces)
            ahead, counts = (
                constant('scan/scan_passes.h', 'CARRIES_AHEAD'),
                [n for n in counts for _ in range(signals)],
            )
            total.carry_batches += max(sum(ceil(n / ahead) for n in counts[i::tasks]) for i in range(tasks))
            total.barriers += 1
        phase(pieces + short)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--grid', nargs=2, type=int, default=(56, 56), metavar=('H', 'W'))
    parser.add_argument('--channels', type=int, default=160)
    parser.add_argument('--trees', type=int, default=20)
    names = ','.join(field.name for field in fields(Scheme)).upper()
    parser.add_argument('--scheme', help=f'{names} in place of those of the sources')
    args = parser.parse_args()
    given = Scheme(*map(int, args.scheme.split(','))) if args.scheme else Scheme.of_sources()
    vertices = args.grid[0] * args.grid[1]
    tree = ops.build_tree(torch.randn(args.trees, *args.grid, 16, generator=torch.Generator().manual_seed(0)))
    trees = [heavy_paths(*pair) for pair in zip(tree.order.tolist(), tree.parent.tolist(), strict=True)]
    print(f'{given}\n| pass | {" | ".join(field.name for field in fields(Counts))} |')
    for name, (signals, part) in PASSES.items():
        scheme = Scheme(**asdict(given) | {'ahead': given.ahead // part})
        tile_threads = min(MOST_CHANNELS, args.channels) // VECTOR_CHANNELS
        while tile_threads > 1 and signals * vertices * tile_threads * VECTOR_BYTES > SHARED_BYTES:
            tile_threads //= 2
        share = given.threads * signals * vertices * tile_threads * VECTOR_BYTES / SHARED_BYTES
        scheme.threads = min(given.threads, max(2 * WARP, 2 ** ceil(log2(share))))
        every = [astuple(count(paths, scheme, signals, tile_threads, vertices)) for paths in trees]
        means = (sum(column) / len(every) for column in zip(*every, strict=True))
        print(f'| {name} | {" | ".join(f"{mean:.1f}" for mean in means)} |')


if __name__ == '__main__':
    main()
