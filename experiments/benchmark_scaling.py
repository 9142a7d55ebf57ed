"""Time and memory of the tree scan against the number of vertices, compared with a raster scan and attention.

    python experiments/benchmark_scaling.py --out experiments/results/scaling_cpu.jsonl

One square map of random features, batch 1, float32. Three layers of equal width take turns on it:

=========== ============================================================================================
tree scan   TreeSSM: projections, convolution, spanning tree, scan, read-out
raster scan the same layer on the path through all vertices, row by row, in place of a spanning tree
attention   projections and PyTorch's scaled_dot_product_attention of every vertex to every other one
=========== ============================================================================================

and the operators of the first two, alone. 'training' is forward and backward. What by its growth so far would
take longer than --limit seconds a call is left out. The exponent p of "grows as vertices^p" is the slope of
the least-squares line through the logarithms from 56 x 56 to 512 x 512. experiments/tables.py makes tables
and a picture of the record.
"""

import math
import statistics
from collections.abc import Callable
from functools import partial

import measure
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from grootv import ops
from grootv.models.layers.tree_ssm import TreeSSM

SIDES = (14, 28, 56, 128, 256, 512, 1024)
FITTED = (56, 512)  # the sides between which growth is judged
EXPONENT = 1.05
POWER = 3  # of the side, by which time is expected to grow
CHANNELS, HEAD_WIDTH = 80, 40  # as in GrootV-T's first stage
MODES = ('forward', 'training')


class Attention(nn.Module):
    """Softmax attention of every vertex to every other one, in heads of 40 channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.heads = max(channels // HEAD_WIDTH, 1)
        self.qkv, self.out_proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).view(1, -1, 3, self.heads, x.shape[-1] // self.heads)
        y = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        return self.out_proj(y.transpose(1, 2).reshape(x.shape))


MIXERS = ('tree scan', 'raster scan', 'attention')


def mixer_call(device: str, name: str, channels: int, side: int, mode: str) -> Callable[[], object]:
    """A call of a layer on one random map of side x side vertices."""
    torch.manual_seed(0)
    mixer = (Attention if name == 'attention' else TreeSSM)(channels).to(device)
    trees = [ops.token_chain(1, side * side, device)] if name == 'raster scan' else []
    x = torch.randn(1, side, side, channels, device=device)

    def mix(x: Tensor) -> Tensor:
        y = mixer(x, *trees)
        return y if name == 'attention' else y[0]

    def forward():
        with torch.inference_mode():
            mix(x)

    def training():
        given = x.detach().requires_grad_()
        torch.autograd.grad(mix(given), [given, *mixer.parameters()], x)  # a gradient as good as any

    return dict(forward=forward, training=training)[mode]


class Recorder(TorchDispatchMode):
    """Keeps the calls of operators of grootv.ops that are made inside, with their inputs, by name."""

    def __init__(self):
        super().__init__()
        self.calls: dict[str, Callable[[], object]] = {}

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        if operator.namespace == 'grootv':
            self.calls[operator._opname] = partial(torch.inference_mode()(operator), *arguments)
        return operator(*arguments, **(options or {}))


def at_side(args, record: measure.Record, mode: str, side: int) -> None:
    """Memory, then time, of every layer on one map, or why they were not measured."""
    mib, left_out, calls = {}, {}, {}
    for name in MIXERS:
        arguments = dict(name=name, channels=CHANNELS, mode=mode)
        known = [row for row in record.rows if row['mode'] == mode and name in row['ms']]
        last = [row['ms'][name] / 1e3 * (side / row['side']) ** POWER for row in known[-1:]]
        if last and last[0] > args.limit:
            left_out[name] = f'about {last[0]:.0f} s a call'
            continue
        small = arguments | dict(side=2)
        peak = measure.peak_memory(mixer_call, args.device, small, side=side, **arguments)
        if isinstance(peak, str):
            left_out[name] = peak
            continue
        mib[name] = peak / 2**20
        calls[name] = mixer_call(args.device, side=side, **arguments)
        if mode == 'forward':
            with Recorder() as recorder:
                calls[name]()
            calls |= {f'{name}: {operator}': call for operator, call in recorder.calls.items()}
    turns = measure.take_turns(calls, args.rounds, args.budget)
    ms = {name: statistics.median(seconds) * 1e3 for name, seconds in turns.items()}
    rounds = min(map(len, turns.values()), default=0)
    record.add(mode=mode, side=side, rounds=rounds, ms=ms, mib=mib, not_measured=left_out)


def exponent(rows: list[dict], name: str, quantity: str) -> float | None:
    """The p of y = c vertices^p that is nearest to the rows in logarithms, between the fitted sides."""
    points = [
        (math.log(row['side'] ** 2), math.log(row[quantity][name]))
        for row in rows
        if FITTED[0] <= row['side'] <= FITTED[1] and name in row[quantity]
    ]
    return statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else None


def judge(record: measure.Record) -> None:
    """Growth of the tree scan against its target; those of the others, and quotients, without one."""
    measured = list(record.rows)
    for mode in dict.fromkeys(row['mode'] for row in measured):
        rows = [row for row in measured if row['mode'] == mode]
        for name in MIXERS:
            target = EXPONENT if name == 'tree scan' else None
            note = f'sides {FITTED[0]} to {FITTED[1]}'
            record.judge(f'{name}, {mode}, exponent of time', exponent(rows, name, 'ms'), target, note=note)
            both = [row for row in rows if {name, 'tree scan'} <= set(row['ms'])]
            if both and name != 'tree scan':
                side, ours, theirs = both[-1]['side'], both[-1]['ms']['tree scan'], both[-1]['ms'][name]
                title = f'tree scan, {mode}, time over {name}, {side} x {side}'
                record.judge(title, ours / theirs, note=f'{ours:.2f} and {theirs:.2f} ms')


def main(argv: list[str] | None = None) -> None:
    parser = measure.make_parser(__doc__)
    parser.add_argument('--sides', nargs='+', type=measure.positive, default=SIDES, help='of the maps')
    parser.add_argument('--limit', type=float, default=30, help='most seconds for a call')
    args = measure.parse(parser, argv)
    about = dict(channels=CHANNELS, fitted=FITTED)
    record = measure.Record('scaling', args.out, args.quick, args.device, **about)
    for mode in MODES:
        for side in sorted(set(args.sides)):
            at_side(args, record, mode, side)
    judge(record)


if __name__ == '__main__':
    main()
