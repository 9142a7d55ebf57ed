"""Time GrootV beside networks of timm: inference, backward pass and training step, and their peak memory.

    python tools/benchmarks/benchmark_model.py --profile --out experiments/results/model_cpu.json
    python tools/benchmarks/benchmark_model.py --arch small --peers swin_small_patch4_window7_224 --batch 16
    python tools/benchmarks/benchmark_model.py configs/detection/mask-rcnn_grootv-tiny_fpn_1x_coco.py

All networks take turns in one process, on the same random images, with random weights and without drop
path. A ratio is the median of the rounds' quotients. What is timed:

========= ==============================================================================================
forward   inference in evaluation mode
backward  the backward pass of training alone
step      forward, cross-entropy, backward and AdamW (fused); where a network returns maps, their mean
          squares take the place of the cross-entropy
========= ==============================================================================================

Peak memory is that of a process of its own for each network; measuring/peak_memory.py says what counts. A
detector is its backbone, neck and dense head. Every target is printed as met or missed; the first command
measures all of them. --out writes JSON, and beside it tables and a picture (render_tables.py).
"""

import argparse
import gc
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

import render_tables
from gpu_checks.report import sentence, table
from measuring import attribution, clock, deployed, machine, models
from measuring.arguments import add_common_arguments, apply_common_arguments, limits, save
from measuring.model_targets import judge
from measuring.models import Network, Runs, Setting
from measuring.peak_memory import NotMeasured, peak_memory

from grootv import cli
from grootv.errors import UserError

PEERS = ('swin_tiny_patch4_window7_224', 'convnext_tiny', 'vit_small_patch16_224')
NARROW_SIZE = 512  # pixels: the larger the image and the fewer its channels, the more the trees weigh


@dataclass(frozen=True)
class Way:
    """A network and one way of running it."""

    network: Network
    dtype: str
    how: str = 'eager'

    def fields(self) -> dict:
        """What tells a row of the results from others."""
        name, tree_per = self.network.name, self.network.tree_per
        return dict(network=name, tree_per=tree_per, dtype=self.dtype, how=self.how)

    def others(self, peer: Network | None) -> dict[str, 'Way']:
        """What it is compared with, by the word for it."""
        found = {
            'block': replace(self, network=replace(self.network, tree_per='block')),
            'float32': replace(self, dtype='float32'),
            'eager': replace(self, how='eager'),
        }
        if peer is not None:
            found[peer.name] = replace(self, network=peer)
        return {word: way for word, way in found.items() if way != self}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    apply_common_arguments(args)
    setting = Setting(args.device, args.input_size, args.channels_last)
    ours, peers = subjects(args), [Network('timm', name) for name in args.peers]
    built = {network: usable(network, setting) for network in ours + peers}
    found = {
        'kind': 'model',
        **machine.machine(args.device),
        'bfloat16_hardware': machine.has_bfloat16(),
        **dict(
            channels_last=args.channels_last, quick=args.quick, beside=args.peers[0] if args.peers else None
        ),
        'parameters': {
            network.name: sum(p.numel() for p in model.parameters()) for network, model in built.items()
        },
        **dict(rows=[], memory=[], profiles=[], targets=[]),
    }
    for batch in args.batch:
        for mode in args.modes:
            found['rows'] += timed(args, built, setting, mode, batch)
            save(found, args.out)
    if args.arch and len(args.tree_per) == 2:
        narrow(args, found)
    if args.profile:
        for batch in args.batch:
            for mode in ('forward', 'backward'):
                found['profiles'].append(profile(built, ours[0], setting, batch, mode, args.quick))
    networks = list(built)
    del built
    gc.collect()
    for mode in args.modes:
        if mode != 'backward':
            found['memory'] += memory(args, networks, setting, mode)
            save(found, args.out)
    print('\ntargets')
    found['targets'] = [asdict(figure) for figure in judge(found).figures]
    save(found, args.out)
    if args.out:
        print('wrote', args.out, *render_tables.write(args.out))


def subjects(args: argparse.Namespace) -> list[Network]:
    kind, source = ('arch', args.arch) if args.arch else ('config', args.config)
    return [Network(kind, source, tree_per) for tree_per in args.tree_per or [None]]


def usable(network: Network, setting: Setting) -> nn.Module:
    """The network, once it has seen an image of the given size."""
    model = models.build(network, setting)
    if network.kind != 'timm':
        return model
    try:
        Runs(model.eval(), setting, 1, 'float32').forward(0)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f'--peers {network.source}: it takes no images of {setting.size} px ({sentence(error)})'
        ) from error
    return model


def ways_of(args: argparse.Namespace, networks) -> list[Way]:
    hows = ('eager', *['torch.compile'] * args.compile)
    return [Way(network, dtype, how) for how in hows for dtype in args.dtype for network in networks]


def timed(args, built: dict[Network, nn.Module], setting: Setting, mode: str, batch: int) -> list[dict]:
    """One row of results for every network and way of running it, all of them in turn."""
    torch.compiler.reset()  # or, after some sizes and types, new ones would run without being compiled
    runs, calls, prepare = {}, {}, {}
    models_of = {}
    for way in ways_of(args, built):
        model = built[way.network]
        models_of[way] = torch.compile(model, dynamic=False) if way.how == 'torch.compile' else model
    if mode == 'forward':
        models_of |= deployed_ways(args, built, setting)
    for way, model in models_of.items():
        runs[way] = Runs(model, setting, batch, way.dtype)
        calls[way], before = runs[way].call(mode)
        if before is not None:
            prepare[way] = before
    sets = dict(sets=Runs.sets, warm_ups=Runs.sets)
    samples = clock.take_turns(calls, setting.device, **limits(args, 300), **sets, prepare=prepare)
    rows = []
    for way, seconds in samples.items():
        median = clock.medians({way: seconds})[way]
        peer = Network('timm', args.peers[0]) if args.peers else None
        others = {word: other for word, other in way.others(peer).items() if other in samples}
        rows.append(
            {
                **way.fields(),
                **dict(mode=mode, batch=batch, input_size=setting.size, rounds=len(seconds)),
                **dict(median_s=median, p95_s=clock.percentile95(seconds), images_per_s=batch / median),
                'finite': runs[way].finite(),
                'beside': {word: clock.beside(seconds, samples[other]) for word, other in others.items()},
            }
        )
        runs[way].release()
    show(rows)
    return rows


def deployed_ways(args, built: dict[Network, nn.Module], setting: Setting) -> dict[Way, nn.Module]:
    """The first network in float32 as the deployment tools write it."""
    first, found = next(iter(built)), {}
    for kind in args.deploy:
        with tempfile.TemporaryDirectory() as folder:
            model = deployed.deployed(kind, built[first], setting.size, Path(folder))
        found[Way(first, 'float32', deployed.KINDS[kind])] = model
    return found


def narrow(args: argparse.Namespace, found: dict) -> None:
    """Tree per block beside tree per stage where the trees take much of the time."""
    setting = Setting(args.device, args.input_size if args.quick else NARROW_SIZE, args.channels_last)
    networks = [Network('arch', 'narrow', tree_per) for tree_per in args.tree_per]
    built = {network: models.build(network, setting) for network in networks}
    alone = argparse.Namespace(**vars(args) | dict(peers=[], dtype=['float32'], compile=False, deploy=[]))
    found['rows'] += timed(alone, built, setting, 'forward', 1)
    found['profiles'].append(
        profile(built, Network('arch', 'narrow', 'block'), setting, 1, 'forward', args.quick)
    )


def profile(built, network: Network, setting: Setting, batch: int, mode: str, quick: bool) -> dict:
    """Seconds of the parts of a network, in float32."""
    calls = 1 if quick else attribution.CALLS
    shares = attribution.time_shares(
        Runs(built[network], setting, batch, 'float32'), mode == 'backward', calls
    )
    whole = shares['seconds']
    print(
        f'\n{network.name}, {mode}, batch {batch}, {setting.size} px: {whole * 1e3:.2f} ms under the profiler'
    )
    parts = sorted(shares['parts'].items(), key=lambda part: -part[1])
    rows = [(part, f'{each * 1e3:.2f}', f'{100 * each / whole:.1f}') for part, each in parts if each]
    print(table(rows, ('part', 'ms', '%')), flush=True)
    return dict(network=network.name, batch=batch, input_size=setting.size, **shares)


def memory(args: argparse.Namespace, networks: list[Network], setting: Setting, mode: str) -> list[dict]:
    """The greatest batch's peak memory of every network and type; a compiler's own would count, so eager."""
    batch, measured = max(args.batch), {}
    for way in [way for way in ways_of(args, networks) if way.how == 'eager']:
        what = dict(network=asdict(way.network), batch=batch, dtype=way.dtype, mode=mode)
        what['setting'] = dict(size=setting.size, channels_last=setting.channels_last)
        try:
            measured[way] = peak_memory('network', setting.device, torch.get_num_threads(), **what), None
        except NotMeasured as reason:
            measured[way] = None, str(reason)
    peer, rows = Network('timm', args.peers[0]) if args.peers else None, []
    for way, (size, reason) in measured.items():
        others = {word: measured.get(other, (None, ''))[0] for word, other in way.others(peer).items()}
        beside = {word: size / other for word, other in others.items() if size is not None and other}
        common = dict(mode=mode, batch=batch, input_size=setting.size)
        rows.append({**way.fields(), **common, 'bytes': size, 'not_measured': reason, 'beside': beside})
    show(rows)
    return rows


def show(rows: list[dict]) -> None:
    print(f'\n{rows[0]["mode"]}, batch {rows[0]["batch"]}, {rows[0]["input_size"]} px')
    print(table(*render_tables.model_table(rows)), flush=True)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', nargs='?', help='config file')
    parser.add_argument(
        '--arch', choices=models.ARCHS, help='a classifier by name; tiny, if there is no config'
    )
    parser.add_argument(
        '--peers', nargs='*', help="timm's names; the first is what the others are divided by"
    )
    parser.add_argument('--modes', nargs='+', choices=models.MODES, default=models.MODES)
    parser.add_argument('--batch', nargs='+', type=cli.positive, default=[1, 8])
    parser.add_argument('--input-size', type=cli.positive, default=224, help='height and width in pixels')
    parser.add_argument(
        '--dtype', nargs='+', choices=models.DTYPES, default=models.DTYPES, help='bfloat16 by autocast'
    )
    parser.add_argument(
        '--tree-per', nargs='+', choices=('block', 'stage'), help='default: both; of a config, as it says'
    )
    parser.add_argument('--compile', action='store_true', help='every network also under torch.compile')
    parser.add_argument(
        '--deploy',
        nargs='+',
        choices=deployed.KINDS,
        default=[],
        help='inference of the first network also as tools/deployment/ writes it, on the CPU',
    )
    parser.add_argument(
        '--channels-last', action='store_true', help='images and weights in that memory format'
    )
    parser.add_argument('--profile', action='store_true', help='where the time of the first network goes')
    add_common_arguments(parser, rounds=20, budget=60)
    args = parser.parse_args(argv)
    if args.config and args.arch:
        raise UserError('give either a config or --arch, not both')
    if args.deploy and (args.config or args.device != 'cpu'):
        raise UserError('--deploy takes --arch, on the CPU: tools/deployment/ exports the model of a config')
    args.arch = None if args.config else args.arch or 'tiny'
    args.tree_per = args.tree_per or (['block', 'stage'] if args.arch else None)
    args.peers = list(PEERS if args.arch else ()) if args.peers is None else args.peers
    return args


if __name__ == '__main__':
    cli.run(main)
