"""Time per token of the tree scan over tokens against the length of the sequence, beside the chain scan.

    python tools/benchmarks/benchmark_tokens.py --out experiments/results/tokens_cpu.json

One sequence of random tokens, float32, all of them context, as a layer of Mamba-130M sees it: 1,536 channels
of 16 states. The operators alone take turns with whole layers: transformers' own, ours with the chain scan
alone, and with the tree. 'training' is forward and backward. What by its time so far would take longer than
--limit seconds a call is left out. --out writes JSON, and beside it tables and a picture (render_tables.py).
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import render_tables
from gpu_checks.report import Report, table
from measuring import clock
from measuring.arguments import add_common_arguments, apply_common_arguments, limits, save
from measuring.machine import machine

from grootv import cli, ops

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
MODES = ('forward', 'training')
CHANNELS, STATES, WIDTH, RANK = 1536, 16, 768, 48
FLAT, BESIDE_CHAIN = 1.5, 2.5
TREE = ('tree', 'tree scan')  # what the tree costs in place of the chain scan


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    apply_common_arguments(args)
    found = dict(kind='tokens', **machine(args.device), quick=args.quick, rows=[], targets=[])
    for mode in args.modes:
        for length in sorted(set(args.lengths)):
            found['rows'] += at_length(args, found['rows'], mode, length)
            save(found, args.out)
    print('\ntargets')
    found['targets'] = [asdict(figure) for figure in judge(found).figures]
    save(found, args.out)
    if args.out:
        print('wrote', args.out, *render_tables.write(args.out))


def at_length(args: argparse.Namespace, earlier: list[dict], mode: str, length: int) -> list[dict]:
    """Seconds of every operator and layer on a sequence of this length."""
    calls = operator_calls(args.device, mode, length) | layer_calls(args.device, mode, length)
    for row in earlier:
        if row['mode'] == mode and row['median_s'] * length / row['length'] > args.limit:
            calls.pop(row['name'], None)
    rows = []
    for name, seconds in clock.take_turns(calls, args.device, **limits(args, 50)).items():
        row = dict(name=name, mode=mode, length=length, median_s=clock.medians({name: seconds})[name])
        rows.append(row | dict(p95_s=clock.percentile95(seconds), rounds=len(seconds)))
    print(f'\n{mode}, {length} tokens')
    print(table(*render_tables.token_table(rows)), flush=True)
    return rows


def operator_calls(device: str, mode: str, length: int) -> dict[str, Callable[[int], object]]:
    """The two scans, and the tree of the second, on random tokens."""
    normal = partial(torch.randn, device=device, generator=torch.Generator(device).manual_seed(0))
    x, delta = normal(1, length, CHANNELS), normal(1, length, CHANNELS) - 2
    B, C = normal(1, length, STATES), normal(1, length, STATES)
    A = -torch.arange(1.0, STATES + 1, device=device).repeat(CHANNELS, 1)
    context = torch.tensor([[0, length]], device=device)
    inputs = [tensor.requires_grad_(mode == 'training') for tensor in (x, delta, A, B, C)]

    def scan(tree: ops.Tree, _: int) -> None:
        y, _ = ops.token_scan(*inputs, tree)
        if mode == 'training':
            torch.autograd.grad(y.sum(), inputs)

    return {
        'chain scan': partial(scan, ops.token_chain(1, length, device)),
        'tree': lambda _: ops.token_tree(x, B, context),
        'tree scan': partial(scan, ops.token_tree(x, B, context)),
    }


def layer_calls(device: str, mode: str, length: int) -> dict[str, Callable[[int], object]]:
    """transformers' layer and ours, with equal weights."""
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    from grootv.language import TreeMambaMixer

    config = MambaConfig(hidden_size=WIDTH, state_size=STATES, time_step_rank=RANK)
    tokens = torch.randn(1, length, WIDTH, device=device)

    def layer(kind: type[MambaMixer], **options) -> Callable[[int], object]:
        torch.manual_seed(0)
        mixer = kind(config, layer_idx=0).to(device)
        for name, value in options.items():
            setattr(mixer, name, value)

        def call(_: int) -> None:
            with torch.set_grad_enabled(mode == 'training'):
                y = mixer(tokens)
            if mode == 'training':
                torch.autograd.grad(y.sum(), list(mixer.parameters()))

        return call

    return {
        "layer, transformers' own": layer(MambaMixer),
        'layer, chain alone': layer(TreeMambaMixer, scale=0),
        'layer, chain and tree': layer(TreeMambaMixer),
    }


def judge(found: dict) -> Report:
    """Growth of the time per token, and the tree's time beside the chain scan's."""
    report = Report('targets', judge=not found['quick'])
    for mode in dict.fromkeys(row['mode'] for row in found['rows']):
        seconds = {
            (row['name'], row['length']): row['median_s'] for row in found['rows'] if row['mode'] == mode
        }
        lengths = sorted({length for _, length in seconds})
        tree = {length: sum(seconds[name, length] for name in TREE) for length in lengths}
        shares = {length: seconds / length for length, seconds in tree.items()}
        worst = max(shares, key=shares.get)
        note = f'{shares[worst] * 1e6:.1f} and {shares[lengths[0]] * 1e6:.1f} us a token'
        title = f'tree and tree scan, {mode}, time per token at {worst} beside {lengths[0]} tokens'
        report.figure(title, shares[worst] / shares[lengths[0]], 'times', FLAT, note)
        beside = {length: tree[length] / seconds['chain scan', length] for length in lengths}
        worst = max(beside, key=beside.get)
        title = f'tree and tree scan, {mode}, time beside the chain scan'
        report.figure(title, beside[worst], 'times', BESIDE_CHAIN, f'worst of {len(lengths)}: {worst} tokens')
    return report


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--lengths', nargs='+', type=cli.positive, default=LENGTHS, help='tokens')
    parser.add_argument('--modes', nargs='+', choices=MODES, default=MODES)
    parser.add_argument('--limit', type=float, default=3, help='most seconds for a call')
    add_common_arguments(parser, rounds=5, budget=10)
    return parser.parse_args(argv)


if __name__ == '__main__':
    cli.run(main)
