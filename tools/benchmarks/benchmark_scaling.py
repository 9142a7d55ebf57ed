"""Time and memory of the tree scan against the number of vertices, beside a raster scan and attention.

    python tools/benchmarks/benchmark_scaling.py --out experiments/results/scaling_cpu.json

One square map of random features, batch 1, float32. Three layers of equal width take turns on it:

=========== ============================================================================================
tree scan   TreeSSM: projections, convolution, spanning tree, scan, read-out
raster scan the same layer on the path through all vertices, row by row, in place of a spanning tree
attention   projections and PyTorch's scaled_dot_product_attention of every vertex to every other one
=========== ============================================================================================

and the operators of the first two, alone. 'training' is forward and backward. What by its growth so far
would take longer than --limit seconds a call, or more memory than there is, is left out. The exponent p of
"grows as vertices^p" is the slope of the least-squares line through the logarithms from 56 x 56 to
512 x 512. measuring/peak_memory.py says which memory counts. --out writes JSON, and beside it tables and a
picture (render_tables.py).
"""

import argparse
import math
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import render_tables
from gpu_checks.report import Report, table
from measuring import clock
from measuring.arguments import add_common_arguments, apply_common_arguments, limits, save
from measuring.machine import available_memory, machine
from measuring.mixers import MIXERS, MODES, MixerRuns, operator_calls
from measuring.peak_memory import NotMeasured, peak_memory

from grootv import cli

SIDES = (14, 28, 56, 128, 256, 512, 1024)
FITTED = (56, 512)  # the sides between which growth is judged
EXPONENT = 1.05
MEMORY_SHARE = 0.8  # of the memory that is available
SCANS = ('tree scan', 'raster scan')


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    apply_common_arguments(args)
    found = {
        'kind': 'scaling',
        **machine(args.device),
        **dict(channels=args.channels, fitted=FITTED, limit_s=args.limit, quick=args.quick),
        **dict(rows=[], exponents=[], targets=[]),
    }
    for mode in args.modes:
        for side in sorted(set(args.sides)):
            found['rows'] += at_side(args, found['rows'], mode, side)
            save(found, args.out)
    found['exponents'] = exponents(found['rows'])
    print('\ntargets')
    found['targets'] = [asdict(figure) for figure in judge(found).figures]
    save(found, args.out)
    if args.out:
        print('wrote', args.out, *render_tables.write(args.out))


def at_side(args: argparse.Namespace, earlier: list[dict], mode: str, side: int) -> list[dict]:
    """Memory, then time, of every layer and operator on one map, or why they were not measured."""
    rows, calls = {}, {}
    for name in MIXERS:
        rows[name] = row = dict(name=name, mode=mode, side=side, vertices=side * side)
        row |= dict(median_s=None, p95_s=None, rounds=0, bytes=None, not_measured=None)
        known = [each for each in earlier if each['name'] == name and each['mode'] == mode]
        row['not_measured'] = too_much(args, known, side)
        if row['not_measured'] is None:
            what = dict(name=name, channels=args.channels, side=side, mode=mode)
            try:
                row['bytes'] = peak_memory('mixer', args.device, torch.get_num_threads(), **what)
            except NotMeasured as reason:
                row['not_measured'] = str(reason)
    for name in [name for name, row in rows.items() if row['not_measured'] is None]:
        runs = MixerRuns(args.device, name, args.channels, side)
        calls[name] = runs.call(mode)
        if mode == 'forward' and name in SCANS:
            calls |= {f'{name}: {operator}': call for operator, call in operator_calls(runs).items()}
    for name, seconds in clock.take_turns(calls, args.device, **limits(args, 100)).items():
        row = rows.setdefault(name, dict(name=name, mode=mode, side=side, vertices=side * side))
        median = clock.medians({name: seconds})[name]
        row |= dict(median_s=median, p95_s=clock.percentile95(seconds), rounds=len(seconds))
    print(f'\n{mode}, {side} x {side}')
    print(table(*render_tables.scaling_table(list(rows.values()))), flush=True)
    return list(rows.values())


def too_much(args: argparse.Namespace, known: list[dict], side: int) -> str | None:
    """Why a layer shall not be measured, by what smaller maps took."""
    for row in known:
        if row['not_measured']:
            return row['not_measured']
    seconds = expected(known, 'median_s', side * side)
    if seconds > args.limit:
        return f'about {seconds:.0f} s a call expected at {side} x {side}'
    size, there = expected(known, 'bytes', side * side), available_memory(args.device)
    if size > MEMORY_SHARE * there:
        return f'about {size / 2**30:.0f} GiB expected at {side} x {side}, {there / 2**30:.0f} available'
    return None


def expected(known: list[dict], quantity: str, vertices: int) -> float:
    """A quantity at a larger number of vertices: it grows on as it did last, linearly at least."""
    if not known:
        return 0.0
    *_, last = known
    growth = 1.0
    if len(known) > 1:
        before = known[-2]
        growth = math.log(last[quantity] / before[quantity]) / math.log(last['vertices'] / before['vertices'])
    return last[quantity] * (vertices / last['vertices']) ** min(max(growth, 1.0), 2.0)


def exponents(rows: list[dict]) -> list[dict]:
    """Growth of time and memory of every layer and operator, where two sides or more were measured."""
    found = []
    for mode, name in dict.fromkeys((row['mode'], row['name']) for row in rows):
        for quantity in ('median_s', 'bytes'):
            points = {
                row['side']: (row['vertices'], row[quantity])
                for row in rows
                if (row['mode'], row['name']) == (mode, name)
                and FITTED[0] <= row['side'] <= FITTED[1]
                and row.get(quantity)
            }
            if len(points) > 1:
                fit = dict(exponent=exponent(points.values()), sides=sorted(points))
                found.append(dict(name=name, mode=mode, quantity=quantity, **fit))
    return found


def exponent(points) -> float:
    """The p of y = c x^p that is nearest to the points (x, y) in logarithms."""
    xs, ys = zip(*((math.log(x), math.log(y)) for x, y in points), strict=True)
    return statistics.linear_regression(xs, ys).slope


def judge(found: dict) -> Report:
    """Growth of the tree scan against its target; beside it, without one, that of the others."""
    report = Report('targets', judge=not found['quick'])
    for mode in dict.fromkeys(row['mode'] for row in found['rows']):
        for name in MIXERS:
            limit = EXPONENT if name == 'tree scan' else None
            title = f'{name}, {mode}, exponent of time'
            fits = [fit for fit in found['exponents'] if fit['quantity'] == 'median_s']
            fit = next((fit for fit in fits if (fit['name'], fit['mode']) == (name, mode)), None)
            if fit is None:
                report.missing(title, '', 'fewer than two sides of the range were measured', limit)
            else:
                sides = ', '.join(map(str, fit['sides']))
                report.figure(title, fit['exponent'], '', limit, f'sides {sides}')
        for other in MIXERS:
            if other != 'tree scan':
                compare(report, found, mode, other)
    return report


def compare(report: Report, found: dict, mode: str, other: str) -> None:
    """Time of the tree scan over another layer's, at the largest side where both were measured."""
    measured = {
        (row['name'], row['side']): row['median_s']
        for row in found['rows']
        if row['mode'] == mode and row['median_s']
    }
    sides = [side for name, side in measured if name == other and ('tree scan', side) in measured]
    if sides:
        side = max(sides)
        seconds = measured['tree scan', side], measured[other, side]
        text = f'{seconds[0] * 1e3:.2f} and {seconds[1] * 1e3:.2f} ms'
        title = f'tree scan, {mode}, time beside {other}, {side} x {side}'
        report.figure(title, seconds[0] / seconds[1], 'times', note=text)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--sides', nargs='+', type=cli.positive, default=SIDES, help='heights, and widths, of the maps'
    )
    parser.add_argument(
        '--channels', type=cli.positive, default=80, help="width of the layers; GrootV-T's first stage"
    )
    parser.add_argument('--modes', nargs='+', choices=MODES, default=MODES)
    parser.add_argument('--limit', type=float, default=30, help='most seconds for a call')
    add_common_arguments(parser, rounds=5, budget=10)
    return parser.parse_args(argv)


if __name__ == '__main__':
    cli.run(main)
