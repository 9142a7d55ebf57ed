"""Train the demos' networks with other metrics, paths, roots and trees, over several seeds.

    python tools/dataset_converters/digits.py data/digits
    python experiments/ablation.py digits --out experiments/results/ablation/ablation.jsonl
    python experiments/stamp_scenes.py data/stamp_scenes
    python experiments/ablation.py detection --out experiments/results/ablation/detection.jsonl

Each run is a training of experiments/ablation_TASK.py by tools/train.py: a classifier of digits, Mask R-CNN
or UPerNet on scenes of photographs. A finished one is not repeated and an interrupted one continues, so the
same command continues after an interruption, and with more --seeds adds to what is there. OUT is the record;
the page with its table and the picture get its name.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

import measure
import numpy as np
import tables

from grootv import cli
from grootv.errors import UserError

ROOT = measure.ROOT
EARLY = 5  # evaluations after which the table gives the scores of a longer training as well
# What differs from GrootV.
DIGITS = {
    'cosine tree, all roots': {},
    'euclidean': dict(metric='euclidean'),
    'manhattan': dict(metric='manhattan'),
    'one tree a stage': dict(tree_per='stage'),
    'first root only': dict(roots='first'),
    'last root only': dict(roots='last'),
    'random tree': dict(path='random'),
    'raster path': dict(path='raster'),
    'raster scan, last root only': dict(path='raster', roots='last'),
    'no scan': dict(roots='none'),
}
PAPER = {
    'cosine tree, all roots': 83.4,
    'euclidean': 83.2,
    'manhattan': 82.9,
    'one tree a stage': 83.4,
    'first root only': 82.9,
    'last root only': 83.0,
    'raster scan, last root only': 82.6,
}
PHOTOGRAPHS = {
    'tree, edge': dict(edge_decay=True),
    'tree': {},
    'four trees': dict(trees=4),
    'random tree': dict(path='random'),
    'raster': dict(path='raster'),
    'cross scan': dict(path='cross'),
    'no scan': dict(roots='none'),
}


@dataclass(frozen=True)
class Task:
    """What is trained, and how it is scored.

    Attributes:
        data: Folder of the data, and the command that makes it.
        measured: What a score is.
        metrics: Names in the log by those in the table, all in % there.
        variants: Options of the backbone by name.
        quick: Options of tools/train.py for --quick.
        paper: The paper's top-1 on ImageNet-1K, of some variants.
    """

    data: tuple[str, str]
    measured: str
    metrics: Mapping[str, str]
    variants: Mapping[str, dict]
    quick: tuple[str, ...]
    paper: Mapping[str, float] = field(default_factory=dict)


SCENES = 'data/stamp_scenes', 'python experiments/stamp_scenes.py data/stamp_scenes'
FEW = tuple(f'{side}_dataloader.dataset.indices=16' for side in ('train', 'val'))
TASKS = {
    'digits': Task(
        ('data/digits', 'python tools/dataset_converters/digits.py data/digits'),
        'Top-1 accuracy in % on the 359 held-out digits; one digit is 0.28 %',
        {'top-1': 'accuracy/top1'},
        DIGITS,
        (
            'train_cfg.max_epochs=3',
            'param_scheduler.1.begin=1',
            'param_scheduler.0.end=1',
            f'train_dataloader.dataset.indices={list(range(0, 1437, 5))}'.replace(' ', ''),
        ),
        PAPER,
    ),
    'detection': Task(
        SCENES,
        "COCO's average precision in % on scenes of held-out photographs",
        {'box AP': 'coco/bbox_mAP', 'mask AP': 'coco/segm_mAP', 'mask AP at IoU 0.5': 'coco/segm_mAP_50'},
        PHOTOGRAPHS,
        ('train_cfg.max_epochs=1', *FEW),
    ),
    'segmentation': Task(
        SCENES,
        'Mean IoU and pixel accuracy in % on scenes of held-out photographs',
        {'mIoU': 'mIoU', 'pixel accuracy': 'aAcc'},
        PHOTOGRAPHS,
        ('train_cfg.max_iters=2', 'train_cfg.val_interval=2', *FEW),
    ),
}


def train(name: str, variant: str, seed: int, work_dir: Path, quick: bool) -> None:
    """Train one variant with one seed, unless that is done."""
    if (work_dir / 'done').exists():
        return
    task = TASKS[name]
    backbone = [f'model.backbone.{key}={value}' for key, value in task.variants[variant].items()]
    options = [f'randomness.seed={seed}', *backbone, *(task.quick if quick else ())]
    config = f'experiments/ablation_{name}.py'
    command = [sys.executable, 'tools/train.py', config, '--work-dir', str(work_dir), '--resume']
    command += ['--cfg-options', *options]
    work_dir.mkdir(parents=True, exist_ok=True)
    log, environment = work_dir / 'output.txt', os.environ | dict(PYTHONWARNINGS='ignore')
    with log.open('w') as output:
        result = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    if result.returncode:
        last = log.read_text().strip().splitlines()[-1:] or ['it printed nothing']
        raise UserError(f'the training of {variant!r}, seed {seed}, failed, see {log}: {last[0]}')
    (work_dir / 'done').touch()


def scores(work_dir: Path, key: str) -> list[float]:
    """A metric in % after each evaluation, from the logs of all starts; the last word on a step counts."""
    found = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        records = [json.loads(line) for line in path.read_text().splitlines() if line]
        found |= {record['step']: record[key] for record in records if key in record}
    scale = 100 if key.startswith('coco/') else 1
    return [round(scale * found[step], 3) for step in sorted(found)]


def by_variant(rows: tables.Rows, metric: str) -> dict[str, np.ndarray]:
    """Scores (seeds, evaluations) of each variant."""
    names = dict.fromkeys(row['variant'] for row in rows)
    return {name: np.array([r['scores'][metric] for r in rows if r['variant'] == name]) for name in names}


def spread(values: np.ndarray) -> str:
    return f'{mean(values):.1f}' + (f' ± {stdev(values):.1f}' if len(values) > 1 else '')


def page(rows: tables.Rows) -> list[str]:
    task, seeds = TASKS[rows[0]['task']], len({row['seed'] for row in rows})
    said = f'{task.measured}. Mean and standard deviation over {seeds} seed' + 's' * (seeds > 1)
    shown: dict[str, dict] = {row['variant']: {'': row['variant']} for row in rows}
    for metric in task.metrics:
        for name, curves in by_variant(rows, metric).items():
            last, count = curves[:, -1].tolist(), curves.shape[1]
            if count >= 2 * EARLY:
                shown[name][f'{metric} after {EARLY} of {count} epochs'] = spread(
                    curves[:, EARLY - 1].tolist()
                )
            shown[name][metric] = spread(last)
            shown[name][f'{metric}, lowest, highest'] = f'{min(last):.1f}, {max(last):.1f}'
    if task.paper:
        for name, line in shown.items():
            line['paper, ImageNet-1K'] = task.paper.get(name)
    return ['', f'{said}.', *tables.table(list(shown.values()))]


def draw(rows: tables.Rows) -> tables.plt.Figure:
    """The first metric of every run after the last evaluation, and of every variant over the training."""
    metric = next(iter(TASKS[rows[0]['task']].metrics))
    figure, (left, right) = tables.plt.subplots(1, 2, figsize=(11, 4.8), layout='constrained')
    found = by_variant(rows, metric)
    evaluations = len(rows[0]['scores'][metric])
    errors = evaluations >= 2 * EARLY  # a longer training, whose scores end close to 100
    for line, (name, curves) in enumerate(found.items()):
        lines = line + np.linspace(-0.2, 0.2, len(curves))  # equal scores side by side
        left.plot(curves[:, -1], lines, 'o', alpha=0.5)
        left.plot(curves[:, -1].mean(), line, 'k|', markersize=22)
        over_time = 100 - curves.mean(0) if errors else curves.mean(0)
        right.plot(np.arange(1, evaluations + 1), over_time, '.-', label=name)
    left.set_yticks(range(len(found)), found)
    left.invert_yaxis()
    left.set(xlabel=f'{metric} after the last evaluation, %', title='every run, and the mean')
    right.set(xlabel='evaluation', ylabel=f'mean {metric}, %', title='over the training')
    right.xaxis.get_major_locator().set_params(integer=True)
    if errors:
        right.set(ylabel=f'100 - mean {metric}, %', yscale='log')
    right.legend(fontsize=8)
    return figure


LAYOUT = 'Ablation', page, draw


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('task', choices=TASKS)
    add('--seeds', type=measure.positive, default=3, help='number of seeds, from 0; default 3')
    add('--variants', nargs='+', choices=DIGITS | PHOTOGRAPHS, metavar='NAME', help="default: the task's")
    add('--quick', action='store_true', help='a few steps on a part of the data')
    add('--work-dir', type=Path, help='folder of the runs; default work_dirs/ablation[-quick]')
    add('--out', type=Path, help='record, a file that ends in .jsonl; default: with the runs')
    args = parser.parse_args(argv)
    task = TASKS[args.task]
    variants = args.variants or list(task.variants)
    for name in variants:
        if name not in task.variants:
            raise UserError(f'{name!r} is no variant of {args.task}: choose from {", ".join(task.variants)}')
    if not (ROOT / task.data[0]).is_dir():
        raise UserError(f'{task.data[0]} does not exist: run {task.data[1]}')
    folder = (args.work_dir or ROOT / f'work_dirs/ablation{"-quick" * args.quick}').absolute()
    path = measure.record_path(parser, args.out or folder / f'{args.task}.jsonl')
    record = measure.Record('ablation', path, args.quick)
    todo = [(variant, seed) for seed in range(args.seeds) for variant in variants]
    for number, (variant, seed) in enumerate(todo, 1):
        place = folder / args.task / variant.replace(', ', '_').replace(' ', '-') / f'seed-{seed}'
        print(f'[{number}/{len(todo)}] {variant}, seed {seed}', flush=True)
        train(args.task, variant, seed, place, args.quick)
        found = {name: scores(place, key) for name, key in task.metrics.items()}
        record.add(task=args.task, variant=variant, seed=seed, scores=found)
    print('ablation:', *tables.write(path))


if __name__ == '__main__':
    cli.run(main)
