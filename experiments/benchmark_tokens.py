"""Time per token of the tree scan over tokens against the sequence's length, compared with the chain scan.

    python experiments/benchmark_tokens.py --out experiments/results/tokens_cpu.jsonl

One sequence of random tokens, float32, all of them context, as a layer of Mamba-130M sees it: 1,536 channels
of 16 states. The operators alone take turns with whole layers: transformers' own, ours with the chain scan
alone, and with the tree. 'training' is forward and backward. What by its time so far would take longer than
--limit seconds a call is left out. experiments/tables.py makes tables and a picture of the record.
"""

from collections.abc import Callable
from functools import partial
from statistics import median

import measure
import torch

from grootv import ops

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
MODES = ('forward', 'training')
CHANNELS, STATES, WIDTH, RANK = 1536, 16, 768, 48
FLAT, OVER_CHAIN = 1.5, 2.5
TREE = ('tree', 'tree scan')  # what the tree costs in place of the chain scan


def operator_calls(device: str, mode: str, length: int) -> dict[str, Callable[[], object]]:
    """The two scans, and the tree of the second, on random tokens."""
    normal = partial(torch.randn, device=device, generator=torch.Generator(device).manual_seed(0))
    x, delta = normal(1, length, CHANNELS), normal(1, length, CHANNELS) - 2
    B, C = normal(1, length, STATES), normal(1, length, STATES)
    A = -torch.arange(1.0, STATES + 1, device=device).repeat(CHANNELS, 1)
    context = torch.tensor([[0, length]], device=device)
    inputs = [tensor.requires_grad_(mode == 'training') for tensor in (x, delta, A, B, C)]

    def scan(tree: ops.Tree) -> None:
        y, _ = ops.token_scan(*inputs, tree)
        if mode == 'training':
            torch.autograd.grad(y.sum(), inputs)

    return {
        'chain scan': partial(scan, ops.token_chain(1, length, device)),
        'tree': lambda: ops.token_tree(x, B, context),
        'tree scan': partial(scan, ops.token_tree(x, B, context)),
    }


def layer_calls(device: str, mode: str, length: int) -> dict[str, Callable[[], object]]:
    """transformers' layer and ours, with equal weights."""
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    from grootv.language import TreeMambaMixer

    config = MambaConfig(hidden_size=WIDTH, state_size=STATES, time_step_rank=RANK)
    tokens = torch.randn(1, length, WIDTH, device=device)

    def layer(kind: type[MambaMixer], **options) -> Callable[[], object]:
        torch.manual_seed(0)
        mixer = kind(config, layer_idx=0).to(device)
        for name, value in options.items():
            setattr(mixer, name, value)

        def call() -> None:
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


def at_length(args, record: measure.Record, mode: str, length: int) -> None:
    """Microseconds a token of every operator and layer on a sequence of this length."""
    calls = operator_calls(args.device, mode, length)
    if not args.operators:
        calls |= layer_calls(args.device, mode, length)
    for row in record.rows:
        for name, us in row['us'].items() if row['mode'] == mode else ():
            if us * length > args.limit * 1e6:
                calls.pop(name, None)
    turns = measure.take_turns(calls, args.rounds, args.budget)
    us = {name: median(seconds) / length * 1e6 for name, seconds in turns.items()}
    record.add(mode=mode, length=length, rounds=min(map(len, turns.values())), us=us)


def judge(record: measure.Record) -> None:
    """Growth of the time per token, and the tree's time over the chain scan's."""
    rows = list(record.rows)
    for mode in dict.fromkeys(row['mode'] for row in rows):
        us = {row['length']: row['us'] for row in rows if row['mode'] == mode}
        lengths = sorted(us)
        tree = {length: sum(us[length][name] for name in TREE) for length in lengths}
        longest = max(tree, key=tree.get)
        note = f'{tree[longest]:.1f} and {tree[lengths[0]]:.1f} us a token'
        title = f'tree and tree scan, {mode}, time per token at {longest} over {lengths[0]} tokens'
        record.judge(title, tree[longest] / tree[lengths[0]], FLAT, note=note)
        over = {length: tree[length] / us[length]['chain scan'] for length in lengths}
        worst = max(over, key=over.get)
        title, note = title.partition(', time')[0], f'worst of {len(lengths)}: {worst} tokens'
        record.judge(f'{title}, time over the chain scan', over[worst], OVER_CHAIN, note=note)


def main(argv: list[str] | None = None) -> None:
    parser = measure.make_parser(__doc__)
    parser.add_argument('--lengths', nargs='+', type=measure.positive, default=LENGTHS, help='tokens')
    parser.add_argument('--limit', type=float, default=3, help='most seconds for a call')
    parser.add_argument('--operators', action='store_true', help='operators alone, without transformers')
    args = measure.parse(parser, argv)
    record = measure.Record('tokens', args.out, args.quick, args.device)
    for mode in MODES:
        for length in sorted(set(args.lengths)):
            at_length(args, record, mode, length)
    judge(record)


if __name__ == '__main__':
    main()
