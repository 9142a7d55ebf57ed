"""Time GrootV compared with networks of timm: inference, backward pass, training step, and their peak memory.

    python experiments/benchmark_model.py --profile --out experiments/results/model_cpu.jsonl
    python experiments/benchmark_model.py --arch small --peers swin_small_patch4_window7_224 --batch 16

All networks take turns in one process, on the same random images, with random weights and without drop
path. A ratio is the median of the rounds' quotients. What is timed::

    forward   inference in evaluation mode
    backward  the backward pass of training alone
    step      forward, cross-entropy, backward and AdamW (fused)

Peak memory is that of a process of its own for each network (measure.py). --profile lists the operators that
take most of the time.
"""

import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import measure
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

import grootv.integrations.timm  # noqa: F401  # registers GrootV

# The fewer the channels, and the larger the image, the more of the time the trees take: 'narrow' is for that.
ARCHS = dict(pico=[1, 1, 2, 1], narrow=[2, 2, 9, 2], tiny=None, small=None, base=None)
NARROW_SIZE = 512
PEERS = ('swin_tiny_patch4_window7_224', 'convnext_tiny', 'vit_small_patch16_224')
DTYPES = ('float32', 'bfloat16')
MODES = ('forward', 'backward', 'step')
DEPLOYED = {'export': 'torch.export', 'aoti': 'AOTInductor', 'onnx': 'ONNX Runtime'}

# GrootV-T on the CPU, at 224 px, in float32: times and bytes of timm's swin_tiny.
NAMED = dict(arch='tiny', device='cpu', input_size=224)
TARGETS = {
    ('forward', 1, 'ms'): 1.0,
    ('forward', 8, 'ms'): 1.1,
    ('step', 8, 'ms'): 1.25,
    ('step', 8, 'mib'): 1.2,
}
TREE_AND_SCAN = 10  # per cent of the forward pass
PER_STAGE = 0.9  # of the time of a tree per block, where trees dominate; elsewhere 1

TREE, SCAN = 'grootv::build_tree', 'grootv::selective_tree_scan'
SHOWN = 12  # operators in the profile, the rest together


@dataclass(frozen=True)
class Way:
    """A network and one way of running it."""

    network: str  # timm's name, or 'grootv_' and a key of ARCHS
    tree_per: str | None = None  # of GrootV
    dtype: str = 'float32'  # or 'bfloat16', by autocast
    how: str = 'eager'  # 'torch.compile' or a value of DEPLOYED
    px: int = 224

    def ratios(self, figures: dict['Way', object], divide: Callable, peer: str | None) -> dict[str, float]:
        """What this way's figure is over those of others, by the word for them."""
        others = dict(block=replace(self, tree_per='block' if self.tree_per else None))
        others |= dict(float32=replace(self, dtype='float32'), eager=replace(self, how='eager'))
        others |= {peer: replace(self, network=peer, tree_per=None)} if peer else {}
        known = {word: way for word, way in others.items() if way != self and way in figures}
        return {f'/ {word}': divide(figures[self], figures[way]) for word, way in known.items()}


def build(way: Way, device: str) -> nn.Module:
    """The network with random weights and without drop path, for images of this size."""
    torch.manual_seed(0)
    depths = ARCHS.get(way.network.removeprefix('grootv_'))
    options = dict(tree_per=way.tree_per) if way.tree_per else {}
    options |= dict(embed_dims=16, depths=depths) if depths else {}
    name = 'grootv_tiny' if depths else way.network
    try:
        model = timm.create_model(name, drop_path_rate=0.0, img_size=way.px, **options)
    except TypeError:  # a network that takes every size has no such option
        model = timm.create_model(name, drop_path_rate=0.0, **options)
    return model.to(device)


def deployed(kind: str, network: nn.Module, px: int, folder: Path) -> nn.Module:
    """A classifier exported and loaded again: any batch, height and width."""
    from grootv import export, ops

    network, path = network.eval(), folder / ('model.onnx' if kind == 'onnx' else 'model.pt2')
    if kind == 'export':
        torch.export.save(export.export_program(network, px, px), path)
        call = torch.export.load(path).module().forward
    elif kind == 'aoti':
        export.compile_package(export.export_program(network, px, px), path)
        call = torch._inductor.aoti_load_package(str(path))
    else:
        import onnxruntime

        with torch.no_grad():
            export.export_onnx(network, torch.randn(2, 3, px, px), {}, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Waiting threads would otherwise keep the cores busy while the next network takes its turn.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        options.register_custom_ops_library(ops.onnxruntime_library())
        session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])

        def call(images: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {'image': images.numpy()})[0])

    module = nn.Module()
    module.network, module.forward = network, lambda images: call(images)
    return module


class Runs:
    """What can be timed of a model on one batch of random images: the methods named by ``MODES``."""

    def __init__(self, model: nn.Module, way: Way, device: str, batch: int):
        random = torch.Generator().manual_seed(0)
        self.images = torch.randn(batch, 3, way.px, way.px, generator=random).to(device)
        self.labels = torch.randint(1000, (batch,), generator=random).to(device)
        self.model, self.device, self.half = model, device, way.dtype == 'bfloat16'
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.result = self.error = None

    def call(self, mode: str) -> Callable[[], object]:
        def prepared():
            if self.model.training != (mode != 'forward'):
                self.model.train(mode != 'forward')
            getattr(self, mode)()

        return prepared

    def forward(self) -> None:
        with torch.inference_mode(), self.autocast():
            self.result = self.model(self.images)

    def loss(self) -> None:
        with self.autocast():
            logits = self.model(self.images)
            self.error = F.cross_entropy(logits, self.labels % logits.shape[1])

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
        found = self.result, self.error, *(parameter.grad for parameter in self.model.parameters())
        return all(bool(x.isfinite().all()) for x in found if x is not None)


def network_call(device: str, way: dict, batch: int, mode: str) -> Callable[[], object]:
    """What a process of its own measures the memory of."""
    way = Way(**way)
    return Runs(build(way, device), way, device, batch).call(mode)


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
        figures = dict(ms=ms, p95_ms=p95 * 1e3, images_per_s=batch / ms * 1e3, finite=runs[way].finite())
        figures |= way.ratios(turns, measure.ratio, args.peer)
        record.add(mode=mode, batch=batch, **asdict(way), rounds=len(seconds), **figures)


def memory(args, record: measure.Record, ways: list[Way], mode: str) -> None:
    """Peak memory of the greatest batch; a compiler's own would count, so eager."""
    batch, found = max(args.batch), {}
    warm_up = dict(way=asdict(Way('grootv_pico', px=32)), batch=2, mode='step')
    for way in ways:
        what = dict(way=asdict(way), batch=batch, mode=mode)
        found[way] = measure.peak_memory(network_call, args.device, warm_up, **what)
    sizes = {way: peak for way, peak in found.items() if isinstance(peak, int)}
    for way, peak in found.items():
        figures = dict(not_measured=peak)
        if way in sizes:
            figures = dict(mib=peak / 2**20) | way.ratios(sizes, lambda mine, other: mine / other, args.peer)
        record.add(mode=mode, batch=batch, **asdict(way), **figures)


def profile(args, record: measure.Record, model: nn.Module, way: Way, batch: int, mode: str) -> None:
    """Milliseconds of the operators that take most of a call, and of the call unprofiled."""
    runs, count = Runs(model, way, args.device, batch), 1 if args.quick else 5
    (plain,) = measure.take_turns({'': runs.call(mode)}, count).values()
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # else it reports that it starts and stops
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (args.device == 'cuda')
    with profiler(activities=activities, acc_events=True) as found:
        for _ in range(count):
            runs.call(mode)()
    time = 'self_device_time_total' if args.device == 'cuda' else 'self_cpu_time_total'
    ms = Counter({event.key: getattr(event, time) / 1e3 / count for event in found.key_averages()})
    parts = {name: ms.pop(name, 0.0) for name in dict.fromkeys([TREE, SCAN, *dict(ms.most_common(SHOWN))])}
    parts |= {'others': ms.total()}
    about = dict(mode=mode, batch=batch, px=way.px, network=way.network)
    whole, alone = sum(parts.values()), statistics.median(plain) * 1e3
    record.add(**about, parts_ms=parts, profiled_ms=whole, plain_ms=alone)


def judge(args, record: measure.Record) -> None:
    """Every target: of the rows that it speaks of, the greatest ratio counts."""
    rows, network, peer = list(record.rows), f'grootv_{args.arch}', args.peer
    named = peer == PEERS[0] and all(getattr(args, key) == value for key, value in NAMED.items())

    def worst(title: str, over: str, target: float | None, unit: str = 'ms', **wanted) -> None:
        chosen = [row for row in rows if unit in row and f'/ {over}' in row and wanted.items() <= row.items()]
        row = max(chosen, key=lambda row: row[f'/ {over}'], default=None)
        note = 'not part of this run'
        if row:
            what = ', '.join(str(row[key]) for key in ('mode', 'batch', 'dtype', 'tree_per'))
            note = f'worst of {len(chosen)}: {what}; {row[unit]:.1f} {unit}'
        record.judge(title, row and row[f'/ {over}'], target, note=note)

    ours = dict(network=network, how='eager')
    plain = ours | dict(dtype='float32', tree_per='block')
    for (mode, batch, unit), target in TARGETS.items() if peer else ():
        title = f'{mode}, batch {batch}, {"time" if unit == "ms" else "peak memory"} over {peer}'
        worst(title, peer, target if named else None, unit, **plain, mode=mode, batch=batch)
    for row in rows:
        if 'parts_ms' in row and row['mode'] == 'forward':
            share = 100 * (row['parts_ms'][TREE] + row['parts_ms'][SCAN]) / row['plain_ms']
            title = f'{row["network"]}, tree and scan in the forward pass, batch {row["batch"]}, %'
            record.judge(title, share, TREE_AND_SCAN if named and row['network'] == network else None)
    name = 'tree per stage over tree per block'
    worst(f'{name}, where trees dominate', 'block', PER_STAGE, network='grootv_narrow')
    worst(f'{name}, everywhere', 'block', 1.0, **ours)
    native = torch.cuda.is_available() or 'bf16' in measure.cpuinfo()  # the processor multiplies in bfloat16
    worst('bfloat16 autocast, time over float32', 'float32', 1.0 if native else None, **ours)
    finite = [row['finite'] for row in rows if 'finite' in row]
    record.judge('results with NaN or infinity', finite.count(False), 0, note=f'of {len(finite)}')
    for how in sorted({row['how'] for row in rows if 'how' in row} - {'eager'}):
        target = 1.0 if how == 'torch.compile' else None
        worst(f'{how}, time over eager', 'eager', target, network=network, how=how)


def main(argv: list[str] | None = None) -> None:
    parser = measure.make_parser(__doc__, rounds=20, budget=60)
    add = parser.add_argument
    add('--arch', choices=ARCHS, default='tiny')
    add('--peers', nargs='*', default=PEERS, help="timm's names; the others are divided by the first")
    add('--modes', nargs='+', choices=MODES, default=MODES)
    add('--batch', nargs='+', type=measure.positive, default=[1, 8])
    add('--input-size', type=measure.positive, default=224, help='height and width in pixels')
    add('--dtype', nargs='+', choices=DTYPES, default=DTYPES, help='bfloat16 by autocast')
    add('--tree-per', nargs='+', choices=('block', 'stage'), default=('block', 'stage'))
    add('--compile', action='store_true', help='every network also under torch.compile')
    add('--deploy', nargs='+', choices=DEPLOYED, default=[], help='inference also as exported, on the CPU')
    add('--profile', action='store_true', help='where the time of the first network goes')
    args = measure.parse(parser, argv)
    if args.deploy and args.device != 'cpu':
        parser.error('--deploy runs on the CPU')
    args.peer = args.peers[0] if args.peers else None
    ours = [Way(f'grootv_{args.arch}', tree_per, px=args.input_size) for tree_per in args.tree_per]
    ways = [*ours, *(Way(peer, px=args.input_size) for peer in args.peers)]
    networks = {way: build(way, args.device) for way in ways}
    record = measure.Record(
        'model', args.out, args.quick, args.device, peer=args.peer, network=ours[0].network
    )
    eager = {replace(way, dtype=dtype): model for dtype in args.dtype for way, model in networks.items()}
    for batch, mode in product(args.batch, args.modes):
        models = dict(eager)
        for way, model in eager.items() if args.compile else ():
            models[replace(way, how='torch.compile')] = torch.compile(model, dynamic=False)
        with tempfile.TemporaryDirectory() as folder:
            for kind in args.deploy if mode == 'forward' else ():
                way = replace(ours[0], how=DEPLOYED[kind])
                models[way] = deployed(kind, networks[ours[0]], args.input_size, Path(folder))
            timed(args, record, models, mode, batch)
    for batch, mode in product(args.batch, MODES[:2]) if args.profile else ():
        profile(args, record, networks[ours[0]], ours[0], batch, mode)
    if len(ours) == 2:
        size = args.input_size if args.quick else NARROW_SIZE
        narrow = [Way('grootv_narrow', tree_per, px=size) for tree_per in args.tree_per]
        models = {way: build(way, args.device) for way in narrow}
        timed(args, record, models, 'forward', 1)
        profile(args, record, models[narrow[0]], narrow[0], 1, 'forward')
    del networks, models
    for mode in args.modes:
        if mode != 'backward':
            memory(args, record, list(eager), mode)
    judge(args, record)


if __name__ == '__main__':
    main()
