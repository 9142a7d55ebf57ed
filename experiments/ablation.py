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
from matplotlib.figure import Figure

from grootv import cli
from grootv.errors import UserError

ROOT = measure.ROOT
CONFIG = 'experiments/ablation_digits.py'
EARLY = 5  # epochs after which the table gives the accuracy as well
QUICK = (
    'train_cfg.max_epochs=3',
    'param_scheduler.1.begin=1',
    'param_scheduler.0.end=1',
    'train_dataloader.dataset.indices=[' + ','.join(map(str, range(0, 1437, 5))) + ']',
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
    done = work_dir / 'done'
    if done.exists():
        return
    backbone = [f'model.backbone.{key}={value}' for key, value in VARIANTS[variant][0].items()]
    options = [f'randomness.seed={seed}', *backbone, *(QUICK if quick else ())]
    command = [sys.executable, 'tools/train.py', CONFIG, '--work-dir', str(work_dir), '--resume']
    work_dir.mkdir(parents=True, exist_ok=True)
    with open(work_dir / 'output.txt', 'w') as output:
        environment = {**os.environ, 'PYTHONWARNINGS': 'ignore'}
        status = subprocess.run(
            [*command, '--cfg-options', *options], cwd=ROOT, env=environment, stdout=output, stderr=output
        ).returncode
    if status:
        last = (work_dir / 'output.txt').read_text().strip().splitlines()[-1:] or ['it printed nothing']
        raise UserError(
            f'the training of {variant!r}, seed {seed}, failed, see {work_dir}/output.txt: {last[0]}'
        )
    done.touch()


def accuracies(work_dir: Path) -> list[float]:
    """Top-1 accuracy in % after each epoch, from the logs of all starts; the last word on an epoch counts."""
    found = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        records = [json.loads(line) for line in path.read_text().splitlines() if line]
        found |= {record['step']: record['accuracy/top1'] for record in records if 'accuracy/top1' in record}
    return [round(found[epoch], 3) for epoch in sorted(found)]


def variants(rows: tables.Rows) -> dict[str, tables.Rows]:
    return {
        name: [row for row in rows if row['variant'] == name]
        for name in dict.fromkeys(r['variant'] for r in rows)
    }


def spread(values: list[float]) -> str:
    return f'{mean(values):.1f}' + (f' ± {stdev(values):.1f}' if len(values) > 1 else '')


def page(about: dict, rows: tables.Rows) -> list[str]:
    epochs = len(rows[0]['accuracy'])
    early, shown = min(EARLY, epochs), []
    for name, runs in variants(rows).items():
        first, last = ([run['accuracy'][at - 1] for run in runs] for at in (early, epochs))
        extremes = f'{min(last):.1f}, {max(last):.1f}'
        row = {'': name, f'after epoch {early}': spread(first), f'after epoch {epochs}': spread(last)}
        shown.append(row | {'lowest, highest': extremes, 'paper, ImageNet-1K': runs[0]['paper']})
    seeds = len(next(iter(variants(rows).values())))
    said = f'Top-1 accuracy in % on the 359 held-out digits, mean and standard deviation over {seeds} seed'
    return ['', said + 's' * (seeds > 1) + '; one digit is 0.28 %.', *tables.table(shown)]


def draw(about: dict, rows: tables.Rows) -> Figure:
    """Accuracy of every run after the last epoch, and of every variant over the epochs."""
    figure, (left, right) = tables.plt.subplots(1, 2, figsize=(11, 4.8), layout='constrained')
    for line, (name, runs) in enumerate(variants(rows).items()):
        curves, colour = np.array([run['accuracy'] for run in runs]), f'C{line}'
        lines = line + np.linspace(-0.2, 0.2, len(curves))  # equal accuracies side by side
        left.plot(curves[:, -1], lines, 'o', color=colour, alpha=0.5, markersize=6)
        left.plot(curves[:, -1].mean(), line, '|', color=colour, markersize=22, markeredgewidth=2.5)
        right.plot(np.arange(1, curves.shape[1] + 1), 100 - curves.mean(0), color=colour, label=name)
    left.set_yticks(range(len(variants(rows))), variants(rows))
    left.invert_yaxis()
    left.set(xlabel='top-1 accuracy after the last epoch, %', title='every run, and the mean')
    right.set(xlabel='epoch', ylabel='mean top-1 error, %', title='error over the training', yscale='log')
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3, which='both')
    return figure


LAYOUT = 'Ablation on the digits demo', page, draw


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, default=5, help='number of seeds, from 0; default 5')
    parser.add_argument('--variants', nargs='+', choices=VARIANTS, default=list(VARIANTS), metavar='NAME')
    parser.add_argument('--quick', action='store_true', help='three epochs on a fifth of the digits')
    parser.add_argument(
        '--work-dir', type=Path, help='folder of the runs; default work_dirs/ablation[-quick]'
    )
    parser.add_argument('--out', type=Path, help='folder for table and picture; default: that of the runs')
    args = parser.parse_args(argv)
    if args.seeds < 1:
        raise UserError(f'--seeds must be 1 or more, got {args.seeds}')
    if not (ROOT / 'data/digits').is_dir():
        raise UserError(
            'data/digits does not exist: run python tools/dataset_converters/digits.py data/digits'
        )
    work_dir = (args.work_dir or ROOT / f'work_dirs/ablation{"-quick" * args.quick}').absolute()
    path = (args.out or work_dir) / 'ablation.jsonl'
    try:
        measure.check_out(path)
    except ValueError as error:
        raise UserError(str(error)) from error
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
