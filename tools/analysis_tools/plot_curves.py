"""Draw the losses and the validation metrics of a training run.

python tools/analysis_tools/plot_curves.py work_dirs/grootv-pico_digits --out curves.png
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt

from grootv import cli
from grootv.errors import UserError
from grootv.files import write_named

_NOT_METRICS = {'step', 'time', 'data_time'}
_MAIN = ('accuracy/top1', 'coco/bbox_mAP', 'mIoU', 'perplexity')


def read_run(work_dir: Path) -> tuple[dict[int, dict], dict[int, dict]]:
    """Training and validation records by step.

    Args:
        work_dir: Folder with one ``TIMESTAMP/vis_data/scalars.json`` per start of the run. Where a
            resumed start repeats steps, its records replace the earlier ones.

    Raises:
        UserError: If nothing was logged there.
    """
    train: dict[int, dict] = {}
    val: dict[int, dict] = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        records = [json.loads(line) for line in path.read_text().splitlines() if line]
        for known, fresh in (
            (train, [record for record in records if 'loss' in record]),
            (val, [record for record in records if 'lr' not in record]),
        ):
            if fresh:
                for step in [step for step in known if step >= fresh[0]['step']]:
                    del known[step]
                known.update((record['step'], record) for record in fresh)
    if not train:
        raise UserError(
            f'{work_dir} has no training log (*/vis_data/scalars.json): give the --work-dir of a run'
        )
    return train, val


def metric_names(val: dict[int, dict], wanted: list[str] | None) -> list[str]:
    """The metrics to draw: the wanted ones, or the main one, which single classes may precede."""
    known = list(dict.fromkeys(name for record in val.values() for name in record))
    known = [name for name in known if name not in _NOT_METRICS]
    absent = [name for name in wanted or [] if name not in known]
    if absent:
        raise UserError(f'--metrics {absent[0]}: the log has {", ".join(known) or "none"}')
    return wanted or ([name for name in _MAIN if name in known] or known)[:1]


def draw(train: dict[int, dict], val: dict[int, dict], names: list[str], title: str) -> plt.Figure:
    """Losses by iteration on the left, metrics by epoch on the right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout='constrained')
    losses = dict.fromkeys(name for record in train.values() for name in record if 'loss' in name)
    losses = [name for name in losses if name != 'loss'] if len(losses) > 2 else []  # one part is the sum
    for name in ['loss', *losses]:
        points = {step: record[name] for step, record in train.items() if name in record}
        settings = dict(color='tab:red', label='sum') if name == 'loss' else dict(label=name, linewidth=0.8)
        left.plot(list(points), list(points.values()), **settings)
    if losses:
        left.legend()
    left.set(xlabel='iteration', ylabel='training loss', title='Loss')
    for name in names:
        points = {step: record[name] for step, record in val.items() if name in record}
        last = points[max(points)]
        right.plot(list(points), list(points.values()), marker='.', label=f'{name}, last {last:.2f}')
    right.xaxis.get_major_locator().set_params(integer=True)
    by_epoch = max(val, default=0) <= max(record.get('epoch', 0) for record in train.values())
    right.set(xlabel='epoch' if by_epoch else 'iteration', title='Validation')
    if names:
        right.set_ylabel(names[0])
        right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('work_dir', type=Path, help='work folder of the run')
    parser.add_argument('--metrics', nargs='+', help='default: the main one of the log')
    parser.add_argument('--out', type=cli.picture, help='picture; default WORK_DIR/curves.png')
    args = parser.parse_args()
    train, val = read_run(args.work_dir)
    figure = draw(train, val, metric_names(val, args.metrics), args.work_dir.resolve().name)
    out = args.out or args.work_dir / 'curves.png'
    with write_named(out) as draft:
        figure.savefig(draft, dpi=120)
    print(f'curves: {out}')


if __name__ == '__main__':
    cli.run(main)
