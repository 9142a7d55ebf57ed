"""Train the digits demo with other distances, paths, roots and trees per stage, over several seeds.

    python tools/dataset_converters/digits.py data/digits
    python experiments/ablation.py --out experiments/results/ablation

Each run is a training of experiments/ablation_digits.py by tools/train.py. A finished one is not repeated and
an interrupted one continues, so the same command continues after an interruption, and with more --seeds adds
to what is there. OUT gets ablation.jsonl, README.md with the table, and ablation.png.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import measure
import numpy as np
import tables

from grootv import cli
from grootv.errors import UserError

ROOT = measure.ROOT
CONFIG = 'experiments/ablation_digits.py'
EARLY = 5  # epochs after which the table gives the accuracy as well
QUICK = (
    'train_cfg.max_epochs=3',
    'param_scheduler.1.begin=1',
    'param_scheduler.0.end=1',
    f'train_dataloader.dataset.indices={list(range(0, 1437, 5))}'.replace(' ', ''),
)
# What differs from GrootV, and the paper's top-1 on ImageNet-1K for it.
VARIANTS = {
    'cosine tree, all roots': ({}, 83.4),
    'euclidean': (dict(metric='euclidean'), 83.2),
    'manhattan': (dict(metric='manhattan'), 82.9),
    'one tree a stage': (dict(tree_per='stage'), 83.4),
    'first root only': (dict(roots='first'), 82.9),
    'last root only': (dict(roots='last'), 83.0),
    'random tree': (dict(path='random'), None),
    'raster path': (dict(path='raster'), None),
    'raster scan, last root only': (dict(path='raster', roots='last'), 82.6),
    'no scan': (dict(roots='none'), None),
}


def train(variant: str, seed: int, work_dir: Path, quick: bool) -> None:
    """Train one variant with one seed, unless that is done."""
    if (work_dir / 'done').exists():
        return
    backbone = [f'model.backbone.{key}={value}' for key, value in VARIANTS[variant][0].items()]
    options = [f'randomness.seed={seed}', *backbone, *(QUICK if quick else ())]
    command = [sys.executable, 'tools/train.py', CONFIG, '--work-dir', str(work_dir), '--resume']
    command += ['--cfg-options', *options]
    work_dir.mkdir(parents=True, exist_ok=True)
    log, environment = work_dir / 'output.txt', os.environ | dict(PYTHONWARNINGS='ignore')
    with log.open('w') as output:
        result = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    if result.returncode:
        last = log.read_text().strip().splitlines()[-1:] or ['it printed nothing']
        raise UserError(f'the training of {variant!r}, seed {seed}, failed, see {log}: {last[0]}')
    (work_dir / 'done').touch()


def accuracies(work_dir: Path) -> list[float]:
    """Top-1 accuracy in % after each epoch, from the logs of all starts; the last word on an epoch counts."""
    found = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        records = [json.loads(line) for line in path.read_text().splitlines() if line]
        found |= {record['step']: record['accuracy/top1'] for record in records if 'accuracy/top1' in record}
    return [round(found[epoch], 3) for epoch in sorted(found)]


def by_variant(rows: tables.Rows) -> dict[str, np.ndarray]:
    """Accuracies (seeds, epochs) of each variant."""
    names = dict.fromkeys(row['variant'] for row in rows)
    return {name: np.array([r['accuracy'] for r in rows if r['variant'] == name]) for name in names}


def spread(values: np.ndarray) -> str:
    return f'{mean(values):.1f}' + (f' ± {stdev(values):.1f}' if len(values) > 1 else '')


def page(rows: tables.Rows) -> list[str]:
    epochs, paper = len(rows[0]['accuracy']), {row['variant']: row['paper'] for row in rows}
    early, shown = min(EARLY, epochs), []
    for name, curves in by_variant(rows).items():
        first, last = curves[:, early - 1].tolist(), curves[:, -1].tolist()
        row = {'': name, f'after epoch {early}': spread(first), f'after epoch {epochs}': spread(last)}
        row['lowest, highest'] = f'{min(last):.1f}, {max(last):.1f}'
        shown.append(row | {'paper, ImageNet-1K': paper[name]})
    seeds = len({row['seed'] for row in rows})
    said = f'Top-1 accuracy in % on the 359 held-out digits, mean and standard deviation over {seeds} seed'
    return ['', said + 's' * (seeds > 1) + '; one digit is 0.28 %.', *tables.table(shown)]


def draw(rows: tables.Rows) -> tables.plt.Figure:
    """Accuracy of every run after the last epoch, and of every variant over the epochs."""
    figure, (left, right) = tables.plt.subplots(1, 2, figsize=(11, 4.8), layout='constrained')
    for line, (name, curves) in enumerate(by_variant(rows).items()):
        lines = line + np.linspace(-0.2, 0.2, len(curves))  # equal accuracies side by side
        left.plot(curves[:, -1], lines, 'o', alpha=0.5)
        left.plot(curves[:, -1].mean(), line, 'k|', markersize=22)
        right.plot(np.arange(1, curves.shape[1] + 1), 100 - curves.mean(0), label=name)
    left.set_yticks(range(len(by_variant(rows))), by_variant(rows))
    left.invert_yaxis()
    left.set(xlabel='top-1 accuracy after the last epoch, %', title='every run, and the mean')
    right.set(xlabel='epoch', ylabel='mean top-1 error, %', title='error over the training', yscale='log')
    right.legend(fontsize=8)
    return figure


LAYOUT = 'Ablation on the digits demo', page, draw


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--seeds', type=measure.positive, default=5, help='number of seeds, from 0; default 5')
    add('--variants', nargs='+', choices=VARIANTS, default=list(VARIANTS), metavar='NAME')
    add('--quick', action='store_true', help='three epochs on a fifth of the digits')
    add('--work-dir', type=Path, help='folder of the runs; default work_dirs/ablation[-quick]')
    add('--out', type=Path, help='folder for table and picture; default: that of the runs')
    args = parser.parse_args(argv)
    if not (ROOT / 'data/digits').is_dir():
        command = 'python tools/dataset_converters/digits.py data/digits'
        raise UserError(f'data/digits does not exist: run {command}')
    work_dir = (args.work_dir or ROOT / f'work_dirs/ablation{"-quick" * args.quick}').absolute()
    path = measure.record_path(parser, (args.out or work_dir) / 'ablation.jsonl')
    record = measure.Record('ablation', path, args.quick)
    todo = [(variant, seed) for seed in range(args.seeds) for variant in args.variants]
    for number, (variant, seed) in enumerate(todo, 1):
        folder = work_dir / variant.replace(', ', '_').replace(' ', '-') / f'seed-{seed}'
        print(f'[{number}/{len(todo)}] {variant}, seed {seed}', flush=True)
        train(variant, seed, folder, args.quick)
        record.add(variant=variant, seed=seed, paper=VARIANTS[variant][1], accuracy=accuracies(folder))
    print('ablation:', *tables.write(path))


if __name__ == '__main__':
    cli.run(main)
