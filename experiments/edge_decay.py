"""Train a small GrootV on tasks that only a scan solves, over trees and other paths, with and without edges.

    python experiments/edge_decay.py tracing --seeds 3 --out experiments/results/edge_decay/tracing.jsonl

docs/tree.md has the protocol. A finished run is kept in the work folder and not repeated: the same command
continues after an interruption, and with more --seeds adds to what is there. OUT is the record; the page
with its tables and the picture get its name.
"""

import argparse
import hashlib
import inspect
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import curves
import measure
import numpy as np
import stamps
import tables
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.scans import ScanAblation
from grootv import cli
from grootv.errors import UserError
from grootv.files import write_atomically
from grootv.ops import tree_edge_distance
from grootv.visualization.blocks import recorded
from grootv.visualization.topology import is_root

STRIDE = 4  # of the one stage
BATCH = 8
WARM_UP = 100
CHANGES = dict(  # options that change a task
    **dict.fromkeys(('size', 'enlarge', 'blocks', 'width', 'steps'), measure.positive),
    rate=measure.positive_float,
)
OTHER_TREES = {'roots', 'trees', 'projected'}  # options of arms that do not scan along the map's own tree
BIN = 20  # px, of the distance along a curve
EDGE = dict(edge_decay=True)
ARMS = {
    'tree, edge': EDGE,
    'tree': {},
    'random tree, edge': dict(path='random', **EDGE),
    'random tree': dict(path='random'),
    'raster, edge': dict(path='raster', **EDGE),
    'raster': dict(path='raster'),
    'cross scan': dict(path='cross'),
    'no scan': dict(roots='none'),
}
VARIANTS = {
    'euclidean': dict(metric='euclidean'),
    'manhattan': dict(metric='manhattan'),
    'euclidean, edge': dict(metric='euclidean', **EDGE),
    'manhattan, edge': dict(metric='manhattan', **EDGE),
    'projected, edge': dict(projected=True, **EDGE),
    'diagonals, edge': dict(path='diagonals', **EDGE),
    'diagonals': dict(path='diagonals'),
    'four trees, edge': dict(trees=4, **EDGE),
    'four trees': dict(trees=4),
    'edge from 0.1': dict(start=0.1, **EDGE),
    'edge from 0.3': dict(start=0.3, **EDGE),
    'edge from 4': dict(start=4.0, **EDGE),
    'edge alone': dict(edge_alone=True, **EDGE),
    'edge alone, diagonals': dict(path='diagonals', edge_alone=True, **EDGE),
    'edge alone, four trees': dict(trees=4, edge_alone=True, **EDGE),
    'edge alone, grid': dict(path='grid', edge_alone=True, **EDGE),
}
TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    'turned by 90°': lambda x: x.rot90(1, (-2, -1)),
    'flipped left to right': lambda x: x.flip(-1),
    'flipped upside down': lambda x: x.flip(-2),
}
BACK = dict(zip(TURNS, (lambda x: x.rot90(-1, (-2, -1)), *list(TURNS.values())[1:]), strict=True))


@dataclass(frozen=True)
class Task:
    """A task, and the network and training that it gets.

    Attributes:
        title: What it is, for the page.
        scene: Function of a side and a seed: a picture (side, side, channels) uint8, its labels (side, side)
            or one label, and for labels of pixels what else there is to know of them.
        size: Side of the training images; ``sizes`` of the test images, with their number.
        classes: Number of classes; class 1 is scored.
        dense: Whether pixels have labels, or the image has one.
        enlarge: How much the picture is enlarged before the network: a vertex has STRIDE / enlarge pixels a
            side.
    """

    title: str
    scene: Callable[..., tuple]
    size: int
    sizes: dict[int, int]
    classes: int
    dense: bool = True
    channels: int = 3
    enlarge: int = 1
    width: int = 16
    blocks: int = 3
    steps: int = 1500
    scenes: int = 6000
    rate: float = 5e-3

    @property
    def vertex(self) -> int:
        """Pixels on a side of a vertex."""
        return STRIDE // self.enlarge


TASKS = {
    'tracing': Task('Curve tracing', curves.tracing_scene, 64, {64: 1000, 128: 300, 256: 100}, classes=3),
    **{
        f'pathfinder-{size}': Task(
            f'Pathfinder, {size} px',
            curves.pathfinder_scene,
            size,
            {size: 2000},
            classes=2,
            dense=False,
            enlarge=STRIDE,
            steps=10_000,
            scenes=40_000,
        )
        for size in (32, 64)
    },
    'clicks': Task(
        'Click to segment photographs',
        stamps.click_scene,
        96,
        {48: 500, 96: 500, 192: 100},
        classes=2,
        channels=4,
        width=24,
        steps=5000,
    ),
}


class Network(nn.Module):
    """One stage of GrootV, and a linear layer from a vertex to the classes of its pixels, or of the image."""

    def __init__(self, task: Task, **arm):
        super().__init__()
        self.task = task
        arch = dict(embed_dims=task.width, depths=[task.blocks, 1, 1, 1])
        self.backbone = ScanAblation(arch=arch, in_channels=task.channels, out_indices=(0,), **arm)
        self.backbone.stages = self.backbone.stages[:1]
        self.backbone.stages[0].downsample = None
        pixels = task.vertex**2 if task.dense else 1
        self.head = nn.Conv2d(task.width, task.classes * pixels, 1)

    def forward(self, picture: Tensor) -> Tensor:
        """Pictures (B, C, H, W) uint8 -> logits (B, classes, H, W), or (B, classes)."""
        x = picture.float() / 127.5 - 1
        if self.task.enlarge > 1:
            x = F.interpolate(x, scale_factor=self.task.enlarge)
        logits = self.head(self.backbone(x)[0])
        return F.pixel_shuffle(logits, self.task.vertex) if self.task.dense else logits.mean((2, 3))


def digest(task: Task) -> str:
    """Of all that a run's result depends on but the network, so that no other settings' files are read."""
    settings = repr((replace(task, scene=task.scene.__qualname__), BATCH, WARM_UP))
    source = Path(inspect.getfile(task.scene)).read_bytes()
    return hashlib.sha256(source + settings.encode()).hexdigest()[:8]


def data(name: str, size: int, count: int, side: str, folder: Path) -> list[Tensor]:
    """Pictures (N, C, H, W), labels, and what else the scenes have, made once and kept in files."""
    path = folder / f'{side}-{size}.pt'
    if not path.exists():
        print(f'{name}: makes {count} scenes of {size} px to {side}', flush=True)
        first = ('test', 'train').index(side)
        found = [TASKS[name].scene(size, (first, size, number)) for number in range(count)]
        pictures, *others = (torch.from_numpy(np.array(part)) for part in zip(*found, strict=True))
        with write_atomically(path) as draft:
            torch.save([pictures.permute(0, 3, 1, 2).contiguous(), *others], draft)
    return torch.load(path, mmap=True)


def train(
    network: nn.Module,
    inputs: Sequence[Tensor],
    labels: Tensor,
    steps: int,
    seed: int,
    name: str,
    rate: float = Task.rate,
) -> None:
    """Train a network, whose arguments are ``inputs``, to give each item's or pixel's class."""
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.01)
    cosine = lambda step: min((step + 1) / WARM_UP, 0.5 * (1 + np.cos(np.pi * step / steps)))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine)
    order = torch.Generator().manual_seed(seed)
    network.train()
    for step in range(steps):
        chosen = torch.randint(len(labels), (BATCH,), generator=order)
        loss = F.cross_entropy(network(*(x[chosen] for x in inputs)), labels[chosen].long())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 250 == 0:
            print(f'{name}: step {step + 1} of {steps}, loss {loss.item():.3f}', flush=True)


@torch.no_grad()
def predict(network: Network, pictures: Tensor, turn: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """Classes (N, H, W) uint8, or (N,)."""
    network.eval()
    batches = pictures.split(max(1, 2**18 // pictures[0, 0].numel()))
    return torch.cat([network(turn(batch)).argmax(1).byte() for batch in batches])


def score(task: Task, predicted: Tensor, labels: Tensor) -> float:
    """IoU of class 1 over all pixels, or accuracy."""
    if not task.dense:
        return (predicted == labels).double().mean().item()
    found, wanted = predicted == 1, labels == 1
    return ((found & wanted).sum() / (found | wanted).sum().clamp(min=1)).item()


def recall_by_distance(predicted: Tensor, labels: Tensor, distance: Tensor) -> list[float]:
    """Recall of class 1 in steps of :data:`BIN` px from the mark, as far as there are 200 pixels."""
    bins = distance[labels == 1].long() // BIN
    total = bins.bincount()
    right = bins[predicted[labels == 1] == 1].bincount(minlength=len(total))
    enough = int((total >= 200).long().cumprod(0).sum())
    return (right / total)[:enough].tolist()


@torch.no_grad()
def edges(network: Network, pictures: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Mean distance of edges inside and between objects, and share of those inside, of every block's tree.

    A vertex belongs to class 1 if one of its pixels does, or else to class 2. Edges of the background are
    left out.
    """
    found = dict(inside=[], between=[], share_inside=[])
    cells = F.pixel_unshuffle(labels.unsqueeze(1), network.task.vertex)
    owner = torch.where((cells == 1).any(1), 1, 2 * (cells == 2).any(1)).flatten(1)
    with recorded(network.eval().backbone) as trees:
        network(pictures)
    for block in trees.values():
        distance = tree_edge_distance(block.vertices, block.tree, block.metric)
        above = owner.gather(1, block.tree.parent.long())
        inside, between = (owner == above) & (owner > 0) & ~is_root(block.tree), owner != above
        found['inside'].append(distance[inside].mean().item())
        found['between'].append(distance[between].mean().item())
        found['share_inside'].append((inside.sum() / (inside | between).sum()).item())
    return found


def run(name: str, arm: str, seed: int, folder: Path, options: dict, task: Task, commit: str) -> dict:
    """Train one arm with one seed and test it; the result is kept in a file."""
    source = Path(inspect.getfile(ScanAblation)).read_bytes()
    settings = hashlib.sha256(source + repr(options).encode()).hexdigest()[:8]
    path = folder / f'{arm.replace(", ", "_").replace(" ", "-")}-{seed}-{settings}.json'
    if path.exists():
        return json.loads(path.read_text())
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    network, start = Network(task, **options), time.monotonic()
    pictures, labels, *_ = data(name, task.size, task.scenes, 'train', folder)
    train(network, [pictures], labels, task.steps, seed, f'{arm}, seed {seed}', task.rate)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    row = dict(arm=arm, seed=seed, trained_at=commit, parameters=parameters)
    row |= dict(train_s=time.monotonic() - start, scores={}, precision={}, turned={}, agree={}, recall={})
    for size, count in task.sizes.items():
        pictures, labels, *more = data(name, size, count, 'test', folder)
        found = predict(network, pictures)
        row['scores'][str(size)] = score(task, found, labels)
        if task.dense:
            row['precision'][str(size)] = (labels[found == 1] == 1).double().mean().item()
        if more:
            row['recall'][str(size)] = recall_by_distance(found, labels, more[0])
        if size == task.size:
            if (
                task.dense
                and not options.keys() & OTHER_TREES
                and options.get('path') not in ('cross', 'grid')
            ):
                row['edges'] = edges(network, pictures[:64], labels[:64])
            for turn, function in TURNS.items():
                other = predict(network, pictures, function)
                other = BACK[turn](other) if task.dense else other
                row['turned'][turn] = score(task, other, labels)
                marked = labels == 1 if task.dense else labels >= 0
                row['agree'][turn] = (other == found)[marked].double().mean().item()
    with write_atomically(path) as draft:
        draft.write_text(json.dumps(row))
    return row


def spread(values: Sequence[float]) -> str:
    return f'{mean(values):.3f}' + (f' ± {stdev(values):.3f}' if len(values) > 1 else '')


def by_arm(rows: tables.Rows) -> dict[str, tables.Rows]:
    return {arm: [row for row in rows if row['arm'] == arm] for arm in dict.fromkeys(r['arm'] for r in rows)}


def page(rows: tables.Rows) -> list[str]:
    task, some = TASKS[rows[0]['task']], by_arm(rows)
    measured = 'IoU of class 1' if task.dense else 'accuracy'
    seeds = ' to '.join(map(str, sorted({len(own) for own in some.values()})))
    over = 'one seed' if seeds == '1' else f'mean and standard deviation over {seeds} seeds'
    lines = ['', f'{measured}, {over}.']
    commits = sorted({row.get('trained_at', 'not recorded') for row in rows})
    lines += ['', f'Commits of the trainings: {", ".join(commits)}.']
    shown, turned = [], []
    for arm, own in some.items():
        sizes = {f'{size} px': spread([r['scores'][size] for r in own]) for size in own[0]['scores']}
        precision = [row.get('precision', {}) for row in own]
        sizes |= {f'precision, {size} px': spread([p[size] for p in precision]) for size in precision[0]}
        cost = dict(parameters=own[0]['parameters'], s=round(mean(r['train_s'] for r in own)))
        shown.append({'': arm, **sizes, **cost})
        turned.append({'': arm} | {turn: spread([r['turned'][turn] for r in own]) for turn in TURNS})
        turned[-1] |= {f'{turn}, agreement': spread([r['agree'][turn] for r in own]) for turn in TURNS}
    lines += [*tables.table(shown), '', '## The same images turned', *tables.table(turned)]
    met = {arm: [row['edges'] for row in own if 'edges' in row] for arm, own in some.items()}
    if any(met.values()):
        lines += [
            '',
            '## Edges inside objects and across their borders, block by block',
        ]
        lines += tables.table([{'': arm, **means(found)} for arm, found in met.items() if found])
    return lines


def means(found: list[dict[str, list[float]]]) -> dict[str, str]:
    """Of all seeds, the values of the blocks in a row."""
    names = dict(inside='mean distance inside', between='across', share_inside='share of the edges inside')
    return {
        name: ', '.join(f'{value:.3f}' for value in np.mean([one[key] for one in found], axis=0))
        for key, name in names.items()
    }


def draw(rows: tables.Rows) -> tables.plt.Figure:
    """Every run's score, and recall by distance at two sizes where it was measured."""
    task, some = TASKS[rows[0]['task']], by_arm(rows)
    size = rows[0]['size']
    sizes = [key for key in (str(size), str(2 * size)) if key in rows[0]['recall']]
    shape = dict(figsize=(5.5 * (1 + len(sizes)) + 1.5, 4.6), layout='constrained', squeeze=False)
    figure, ((left, *others),) = tables.plt.subplots(1, 1 + len(sizes), **shape)
    colours = dict(zip(some, tables.plt.get_cmap('tab20').colors, strict=False))
    for line, (arm, own) in enumerate(some.items()):
        values = [row['scores'][str(size)] for row in own]
        left.plot(values, [line] * len(values), 'o', alpha=0.6, color=colours[arm])
        left.plot(mean(values), line, 'k|', markersize=20)
    left.set_yticks(range(len(some)), some)
    left.invert_yaxis()
    left.set(xlabel='IoU' if task.dense else 'accuracy', title=f'{task.title}, {size} px')
    for axes, key in zip(others, sizes, strict=True):
        for arm, own in some.items():
            shortest = min(len(row['recall'][key]) for row in own)
            recall = np.mean([row['recall'][key][:shortest] for row in own], axis=0)
            axes.plot(BIN * (np.arange(shortest) + 0.5), recall, label=arm, color=colours[arm])
        axes.set(
            xlabel='px from the mark, along the curve', ylabel='recall', ylim=(0, 1.02), title=f'{key} px'
        )
        axes.grid(alpha=0.3)
    if others:
        figure.legend(*others[-1].get_legend_handles_labels(), loc='outside right upper', fontsize=8)
    return figure


LAYOUT = 'Decays with the edge', page, draw


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('task', choices=TASKS)
    add('--seeds', type=measure.positive, default=3, help='number of seeds, from 0; default 3')
    add('--arms', nargs='+', choices=ARMS | VARIANTS, default=list(ARMS), metavar='ARM')
    add('--jobs', type=measure.positive, default=1, help='runs at a time, of one thread each')
    for name, kind in CHANGES.items():
        add(f'--{name}', type=kind, help="default: the task's")
    add('--quick', action='store_true', help='a few steps on a few scenes')
    add('--work-dir', type=Path, help='folder of scenes and runs; default work_dirs/edge_decay')
    add('--out', type=Path, help='record; default: with the runs')
    args = parser.parse_args(argv)
    changed = {name: vars(args)[name] for name in CHANGES if vars(args)[name]}
    task = replace(TASKS[args.task], **changed)
    if STRIDE % task.enlarge:
        raise UserError(f'--enlarge must divide {STRIDE}, the stride of the network, got {task.enlarge}')
    if args.size:
        task = replace(task, sizes={args.size: task.sizes[TASKS[args.task].size]})
    if args.quick:
        task = replace(task, steps=3, scenes=20, sizes=dict.fromkeys(task.sizes, 2))
    runs_dir = (args.work_dir or measure.ROOT / 'work_dirs/edge_decay').absolute()
    work_dir = runs_dir / f'{args.task}-{digest(task)}'
    path = measure.record_path(parser, args.out or work_dir / f'{args.task}.jsonl')
    record = measure.Record('edge_decay', path, args.quick, **changed)
    data(args.task, task.size, task.scenes, 'train', work_dir)  # before several processes would make them
    for size, count in task.sizes.items():
        data(args.task, size, count, 'test', work_dir)
    todo = [(arm, seed) for seed in range(args.seeds) for arm in args.arms]
    commit = measure.commit()  # of the code that this process has loaded
    runs = [(args.task, arm, seed, work_dir, (ARMS | VARIANTS)[arm], task, commit) for arm, seed in todo]
    for row in measure.in_processes(args.jobs, run, runs):
        record.add(task=args.task, size=task.size, **row)
    print('edge_decay:', *tables.write(path))


if __name__ == '__main__':
    cli.run(main)
