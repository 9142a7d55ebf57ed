"""Train the digits demo with other distances, paths, roots and trees per stage, over several seeds.

    python tools/dataset_converters/digits.py data/digits
    python tools/ablation/run.py --out experiments/results/ablation

Each run is a training of tools/ablation/digits.py by tools/train.py. A finished one is not repeated and an
interrupted one goes on, so the same command continues after an interruption, and with more --seeds adds
to what is there. OUT gets ablation.json, README.md with the table, and ablation.png.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from grootv import cli
from grootv.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = 'tools/ablation/digits.py'
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
    """Train one variant with one seed unless its result is there, and write the result."""
    result = work_dir / 'result.json'
    if result.exists():
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
    content = dict(accuracy=accuracies(work_dir))
    draft = result.with_suffix('.tmp')
    draft.write_text(json.dumps(content) + '\n')
    draft.replace(result)


def accuracies(work_dir: Path) -> list[float]:
    """Top-1 accuracy in % after each epoch, from the logs of all starts; the last word on an epoch counts."""
    found = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        records = [json.loads(line) for line in path.read_text().splitlines() if line]
        found |= {record['step']: record['accuracy/top1'] for record in records if 'accuracy/top1' in record}
    return [round(found[epoch], 3) for epoch in sorted(found)]


def figures(runs: list[dict]) -> dict[str, object]:
    """What the table shows of one variant."""
    last, early = (
        [run['accuracy'][at] for run in runs] for at in (-1, min(EARLY, len(runs[0]['accuracy'])) - 1)
    )
    return dict(
        mean=round(float(np.mean(last)), 2),
        std=round(float(np.std(last, ddof=1)), 2) if len(last) > 1 else None,
        lowest=round(min(last), 2),
        highest=round(max(last), 2),
        early_mean=round(float(np.mean(early)), 2),
        early_std=round(float(np.std(early, ddof=1)), 2) if len(early) > 1 else None,
    )


def table(results: dict[str, list[dict]], command: str) -> str:
    """The page with the table, as Markdown."""
    runs = next(iter(results.values()))
    early, epochs = min(EARLY, len(runs[0]['accuracy'])), len(runs[0]['accuracy'])
    lines = [
        '# Ablation on the digits demo',
        '',
        f'Top-1 accuracy in % on the 359 held-out digits, mean and standard deviation over {len(runs)} seed'
        f'{"s" * (len(runs) > 1)}; one digit is 0.28 %. Made by',
        '',
        f'```shell\n{command}\n```',
        '',
        f'| | after epoch {early} | after epoch {epochs} | lowest, highest | paper, ImageNet-1K |',
        '|---|---|---|---|---|',
    ]
    for variant, found in results.items():
        one, paper = figures(found), VARIANTS[variant][1]
        cells = [
            variant,
            spread(one['early_mean'], one['early_std']),
            spread(one['mean'], one['std']),
            f'{one["lowest"]:.1f}, {one["highest"]:.1f}',
            paper or '',
        ]
        lines.append(f'| {" | ".join(map(str, cells))} |')
    lines += ['', '![](ablation.png)', '', 'Every figure: [ablation.json](ablation.json).', '']
    return '\n'.join(lines)


def spread(mean: float, std: float | None) -> str:
    return f'{mean:.1f}' if std is None else f'{mean:.1f} ± {std:.1f}'


def draw(results: dict[str, list[dict]]) -> Figure:
    """Accuracy of every run after the last epoch, and of every variant over the epochs."""
    figure = Figure(figsize=(11, 4.8), layout='constrained')
    left, right = figure.subplots(1, 2)
    names = list(results)
    for row, (name, runs) in enumerate(results.items()):
        curves = np.array([run['accuracy'] for run in runs])
        colour = f'C{row}'
        rows = row + np.linspace(-0.2, 0.2, len(curves))  # equal accuracies side by side
        left.plot(curves[:, -1], rows, 'o', color=colour, alpha=0.5, markersize=6)
        left.plot(curves[:, -1].mean(), row, '|', color=colour, markersize=22, markeredgewidth=2.5)
        epochs = np.arange(1, curves.shape[1] + 1)
        right.plot(epochs, 100 - curves.mean(0), color=colour, label=name, linewidth=1.5)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set(xlabel='top-1 accuracy after the last epoch, %', title='every run, and the mean')
    right.set(xlabel='epoch', ylabel='mean top-1 error, %', title='error over the training', yscale='log')
    right.xaxis.get_major_locator().set_params(integer=True)
    right.yaxis.set_major_formatter('{x:g}')
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3, which='both')
    return figure


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
    todo = [(variant, seed) for seed in range(args.seeds) for variant in args.variants]
    results: dict[str, list[dict]] = {variant: [] for variant in args.variants}
    for number, (variant, seed) in enumerate(todo, 1):
        folder = work_dir / variant.replace(', ', '_').replace(' ', '-') / f'seed-{seed}'
        print(f'[{number}/{len(todo)}] {variant}, seed {seed}', end=' ', flush=True)
        train(variant, seed, folder, args.quick)
        results[variant].append(json.loads((folder / 'result.json').read_text()))
        print(f'{results[variant][-1]["accuracy"][-1]:.1f} %', flush=True)

    out = args.out or work_dir
    out.mkdir(parents=True, exist_ok=True)
    content = {
        variant: dict(**VARIANTS[variant][0], paper=VARIANTS[variant][1], **figures(runs), runs=runs)
        for variant, runs in results.items()
    }
    options = ' --quick' * args.quick + (f' --out {args.out}' if args.out else '')
    command = f'python tools/ablation/run.py --seeds {args.seeds}{options}'
    (out / 'ablation.json').write_text(json.dumps(content, indent=1) + '\n')
    (out / 'README.md').write_text(table(results, command))
    draw(results).savefig(out / 'ablation.png', dpi=110)
    print(f'ablation: {out}')


if __name__ == '__main__':
    cli.run(main)
