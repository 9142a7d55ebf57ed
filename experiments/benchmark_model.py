"""Time GrootV compared with networks of timm: inference, backward pass, training step, and their peak memory.

    python experiments/benchmark_model.py --profile --out experiments/results/model_cpu.jsonl
    python experiments/benchmark_model.py --arch small --peers swin_small_patch4_window7_224 --batch 16
    python experiments/benchmark_model.py configs/detection/mask-rcnn_grootv-tiny_fpn_1x_coco.py

All networks take turns in one process, on the same random images, with random weights and without drop
path. A ratio is the median of the rounds' quotients. What is timed:

========= ==============================================================================================
forward   inference in evaluation mode
backward  the backward pass of training alone
step      forward, cross-entropy, backward and AdamW (fused); where a network returns maps, their mean
          squares take the place of the cross-entropy
========= ==============================================================================================

Peak memory is that of a process of its own for each network (measure.py). A detector is its backbone, neck
and dense head. experiments/tables.py makes tables and a picture of the record.
"""

import statistics
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import attribution
import measure
import torch
import torch.nn.functional as F
from networks import ARCHS, DEPLOYED, Way, build, deployed, memory_format
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

NARROW_SIZE = 512  # pixels: the larger the image and the fewer its channels, the more the trees weigh
PEERS = ('swin_tiny_patch4_window7_224', 'convnext_tiny', 'vit_small_patch16_224')
DTYPES = ('float32', 'bfloat16')
MODES = ('forward', 'backward', 'step')

# GrootV-T on the CPU, at 224 px, in float32: times and bytes of timm's swin_tiny.
NAMED = dict(network='grootv_tiny', device='cpu', px=224, peer=PEERS[0])
TARGETS = {
    ('forward', 1, 'ms'): 1.0,
    ('forward', 8, 'ms'): 1.1,
    ('step', 8, 'ms'): 1.25,
    ('step', 8, 'mib'): 1.2,
}
TREE_AND_SCAN = 10  # per cent of the forward pass
PER_STAGE = 0.9  # of the time of a tree per block, where trees dominate; elsewhere 1


class Runs:
    """What can be timed of a model on one batch of random images: the methods named by ``MODES``.

    Args:
        model: Called with images.
        way: Size, type and memory format.
        device: 'cpu' or 'cuda'.
        batch: Number of images.
    """

    def __init__(self, model: nn.Module, way: Way, device: str, batch: int):
        random = torch.Generator().manual_seed(0)
        images = torch.randn(batch, 3, way.size, way.size, generator=random)
        self.images = images.to(device, memory_format=memory_format(way))
        self.labels = torch.randint(2**31, (batch,), generator=random).to(device)
        self.model, self.device, self.half = model, device, way.dtype == 'bfloat16'
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.result = self.error = None

    def call(self, mode: str) -> Callable[[], object]:
        run = getattr(self, mode)

        def prepared():
            if self.model.training != (mode != 'forward'):
                self.model.train(mode != 'forward')
            run()

        return prepared

    def forward(self) -> None:
        with torch.inference_mode(), self.autocast():
            self.result = self.model(self.images)

    def loss(self) -> None:
        """Forward pass of training: cross-entropy, or the mean squares of maps."""
        with self.autocast():
            result = self.model(self.images)
            if isinstance(result, Tensor) and result.dim() == 2:
                self.error = F.cross_entropy(result, self.labels % result.shape[1])
            else:
                self.error = sum(leaf.square().mean() for leaf in tree_leaves(result))

    def backward(self) -> None:
        """The gradients of a forward pass that is kept."""
        if self.error is None:
            self.loss()
        self.optimizer.zero_grad()
        self.error.backward(retain_graph=True)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.loss()
        self.error.backward()
        self.optimizer.step()

    def autocast(self):
        return torch.autocast(self.device, torch.bfloat16) if self.half else nullcontext()

    def finite(self) -> bool:
        """Whether the last call left neither NaN nor infinity."""
        found = [*tree_leaves(self.result), self.error, *(p.grad for p in self.model.parameters())]
        return all(bool(x.isfinite().all()) for x in found if isinstance(x, Tensor))


def network_call(device: str, way: dict, batch: int, mode: str) -> Callable[[], object]:
    """What a process of its own measures the memory of."""
    way = Way(**way)
    return Runs(build(way, device), way, device, batch).call(mode)


def fields(way: Way, mode: str, batch: int) -> dict:
    """What tells a row from others."""
    found = dict(mode=mode, batch=batch, px=way.size, network=way.name)
    return found | dict(tree_per=way.tree_per, dtype=way.dtype, how=way.how)


def timed(args, record: measure.Record, models: dict[Way, nn.Module], mode: str, batch: int) -> None:
    """A row for every way of running the networks, all of them in turn."""
    torch.compiler.reset()  # or, after some sizes and types, new ones would run without being compiled
    torch._functorch.config.donated_buffer = False  # a compiled backward pass is repeated
    runs = {way: Runs(model, way, args.device, batch) for way, model in models.items()}
    calls = {way: run.call(mode) for way, run in runs.items()}
    turns = measure.take_turns(calls, args.rounds, args.budget)
    for way, seconds in turns.items():
        ms = statistics.median(seconds) * 1e3
        p95 = max(seconds) if len(seconds) < 20 else statistics.quantiles(seconds, n=20)[-1]
        peer = args.peers[0] if args.peers else None
        over = {
            f'/ {word}': measure.ratio(seconds, turns[o])
            for word, o in way.others(peer).items()
            if o in turns
        }
        figures = dict(ms=ms, p95_ms=p95 * 1e3, images_per_s=batch / ms * 1e3, finite=runs[way].finite())
        record.add(**fields(way, mode, batch), rounds=len(seconds), **figures, **over)


def memory(args, record: measure.Record, ways: list[Way], mode: str) -> None:
    """Peak memory of the greatest batch; a compiler's own would count, so eager."""
    batch, found = max(args.batch), {}
    warm_up = dict(way=asdict(Way('grootv_pico', size=32)), batch=2, mode='step')
    for way in ways:
        what = dict(way=asdict(way), batch=batch, mode=mode)
        found[way] = measure.peak_memory('benchmark_model', 'network_call', args.device, warm_up, **what)
    sizes = {way: peak for way, peak in found.items() if isinstance(peak, int)}
    for way, peak in found.items():
        if way not in sizes:
            record.add(**fields(way, mode, batch), not_measured=peak)
            continue
        others = way.others(args.peers[0] if args.peers else None).items()
        over = {f'/ {word}': peak / sizes[other] for word, other in others if other in sizes}
        record.add(**fields(way, mode, batch), mib=peak / 2**20, **over)


def profile(record: measure.Record, model: nn.Module, way: Way, device: str, batch: int, mode: str) -> None:
    """Milliseconds of the parts of a network, under the profiler and without it."""
    runs = Runs(model, way, device, batch)
    (plain,) = measure.take_turns({'': runs.call(mode)}, 2 if record.quick else 5).values()
    whole, parts = attribution.time_shares(runs, mode == 'backward', calls=1 if record.quick else 5)
    about = dict(mode=mode, batch=batch, px=way.size, network=way.name)
    parts = {part: seconds * 1e3 for part, seconds in parts.items()}
    record.add(**about, parts_ms=parts, profiled_ms=whole * 1e3, plain_ms=statistics.median(plain) * 1e3)


def judge(record: measure.Record, network: str, peer: str | None, named: bool) -> None:
    """Every target: of the rows that it speaks of, the greatest ratio counts."""
    rows = list(record.rows)

    def worst(title: str, over: str, target: float | None, unit: str = 'ms', **wanted) -> None:
        chosen = [row for row in rows if unit in row and f'/ {over}' in row and wanted.items() <= row.items()]
        row = max(chosen, key=lambda row: row[f'/ {over}'], default=None)
        if row is None:
            return record.judge(title, None, target, 'not part of this run')
        what = f'{row["mode"]}, batch {row["batch"]}, {row["dtype"]}, tree per {row["tree_per"]}'
        note = f'worst of {len(chosen)}: {what}; {row[unit]:.1f} {unit}'
        return record.judge(title, row[f'/ {over}'], target, note)

    ours = dict(network=network, how='eager')
    plain = ours | dict(dtype='float32', tree_per='block')
    for (mode, batch, unit), target in TARGETS.items() if peer else ():
        title = f'{mode}, batch {batch}, {"time" if unit == "ms" else "peak memory"} over {peer}'
        worst(title, peer, target if named else None, unit, **plain, mode=mode, batch=batch)
    for row in rows:
        if 'parts_ms' in row and row['mode'] == 'forward':
            share = 100 * (row['parts_ms']['tree'] + row['parts_ms']['scan']) / row['plain_ms']
            title = f'{row["network"]}, tree and scan in the forward pass, batch {row["batch"]}, %'
            record.judge(title, share, TREE_AND_SCAN if named and row['network'] == network else None)
    name = 'tree per stage over tree per block'
    worst(f'{name}, where trees dominate', 'block', PER_STAGE, network='grootv_narrow')
    worst(f'{name}, everywhere', 'block', 1.0, **ours)
    worst('bfloat16 autocast, time over float32', 'float32', 1.0 if has_bfloat16() else None, **ours)
    finite = [row['finite'] for row in rows if 'finite' in row]
    record.judge('results with NaN or infinity', finite.count(False), 0, f'of {len(finite)}')
    for how in sorted({row['how'] for row in rows if 'how' in row} - {'eager'}):
        target = 1.0 if how == 'torch.compile' else None
        worst(f'{how}, time over eager', 'eager', target, network=network, how=how)


def has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16."""
    flags = {*measure.cpuinfo('flags').split(), *measure.cpuinfo('Features').split()}
    return torch.cuda.is_available() or not flags.isdisjoint({'avx512_bf16', 'amx_bf16', 'bf16'})


def parse_args(argv: list[str] | None):
    parser = measure.make_parser(__doc__, rounds=20, budget=60)
    parser.add_argument('config', nargs='?', help='config file')
    parser.add_argument('--arch', choices=ARCHS, help='a classifier by name; tiny, if there is no config')
    parser.add_argument(
        '--peers', nargs='*', help="timm's names; the first is what the others are divided by"
    )
    parser.add_argument('--modes', nargs='+', choices=MODES, default=MODES)
    parser.add_argument('--batch', nargs='+', type=measure.positive, default=[1, 8])
    parser.add_argument('--input-size', type=measure.positive, default=224, help='height and width in pixels')
    parser.add_argument('--dtype', nargs='+', choices=DTYPES, default=DTYPES, help='bfloat16 by autocast')
    parser.add_argument(
        '--tree-per', nargs='+', choices=('block', 'stage'), help='default: both; of a config, its'
    )
    parser.add_argument('--compile', action='store_true', help='every network also under torch.compile')
    parser.add_argument(
        '--deploy', nargs='+', choices=DEPLOYED, default=[], help='inference also as exported'
    )
    parser.add_argument(
        '--channels-last', action='store_true', help='images and weights in that memory format'
    )
    parser.add_argument('--profile', action='store_true', help='where the time of the first network goes')
    args = measure.parse(parser, argv)
    if args.config and args.arch:
        parser.error('give either a config or --arch, not both')
    if args.deploy and (args.config or args.device != 'cpu'):
        parser.error('--deploy takes --arch, on the CPU: tools/deployment/ exports the model of a config')
    args.arch = None if args.config else args.arch or 'tiny'
    args.tree_per = args.tree_per or (['block', 'stage'] if args.arch else [None])
    args.peers = list(PEERS if args.arch else ()) if args.peers is None else args.peers
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    shape = dict(size=args.input_size, channels_last=args.channels_last)
    ours = [Way(args.config or f'grootv_{args.arch}', tree_per, **shape) for tree_per in args.tree_per]
    networks = {way: build(way, args.device) for way in [*ours, *(Way(peer, **shape) for peer in args.peers)]}
    peer = args.peers[0] if args.peers else None
    record = measure.Record('model', args.out, args.quick, args.device, peer=peer, network=ours[0].name)
    eager = {replace(way, dtype=dtype): model for dtype in args.dtype for way, model in networks.items()}
    for batch, mode in product(args.batch, args.modes):
        models = dict(eager)
        if args.compile:
            compiled = {
                replace(w, how='torch.compile'): torch.compile(m, dynamic=False) for w, m in eager.items()
            }
            models |= compiled
        with tempfile.TemporaryDirectory() as folder:
            for kind in args.deploy if mode == 'forward' else ():
                way = replace(ours[0], how=DEPLOYED[kind])
                models[way] = deployed(kind, networks[ours[0]], args.input_size, Path(folder))
            timed(args, record, models, mode, batch)
    if args.profile:
        for batch, mode in product(args.batch, ('forward', 'backward')):
            profile(record, networks[ours[0]], ours[0], args.device, batch, mode)
    if args.arch and len(args.tree_per) == 2:
        size = args.input_size if args.quick else NARROW_SIZE
        narrow = {
            w: build(w, args.device) for w in [Way('grootv_narrow', per, size=size) for per in args.tree_per]
        }
        timed(args, record, narrow, 'forward', 1)
        profile(record, next(iter(narrow.values())), next(iter(narrow)), args.device, 1, 'forward')
    del networks, models
    for mode in args.modes:
        if mode != 'backward':
            memory(args, record, list(eager), mode)
    named = dict(network=ours[0].name, device=args.device, px=args.input_size, peer=peer) == NAMED
    judge(record, ours[0].name, peer, named)


if __name__ == '__main__':
    main()
