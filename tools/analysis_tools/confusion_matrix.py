"""Draw what a network takes for what, and print a table of the classes.

    python tools/analysis_tools/confusion_matrix.py CONFIG CHECKPOINT --out confusion_matrix.png
    python tools/test.py CONFIG CHECKPOINT --out predictions.pkl
    python tools/analysis_tools/confusion_matrix.py CONFIG predictions.pkl --out confusion_matrix.png

For classification, detection and segmentation.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from mmpretrain.evaluation import ConfusionMatrix

from grootv import checks, cli
from grootv.checkpoint import explain_loading, install_safe_loader
from grootv.confusion import Confusion, read_predictions
from grootv.engine import CheckpointKeysHook, progress_bar
from grootv.errors import UserError
from grootv.files import write_named

_FEW = 30  # up to so many classes the numbers fit into the cells


def evaluate(cfg: Config, checkpoint: str, thresholds: dict[str, float]) -> Confusion:
    """Run the config's test set."""
    with tempfile.TemporaryDirectory() as work_dir:
        runner = Runner(
            model=cfg.model,
            data_preprocessor=cfg.get('data_preprocessor'),
            work_dir=work_dir,
            test_dataloader=cfg.test_dataloader,
            test_cfg=cfg.test_cfg,
            test_evaluator=Evaluator([]),
            default_scope=cfg.get('default_scope', 'mmpretrain'),
            env_cfg=cfg.get('env_cfg', {}),
            load_from=checkpoint,
            log_level='WARNING',
            cfg=cfg,
        )
        explain_loading(runner)
        runner.register_hook(CheckpointKeysHook())
        confusion = Confusion(runner.test_loop.dataloader.dataset, **thresholds)
        runner.test_loop.evaluator.metrics.append(confusion)
        with progress_bar(runner):
            runner.test()
    return confusion


def count(cfg: Config, path: str, thresholds: dict[str, float]) -> Confusion:
    """Compare a file of predictions with the config's test set."""
    samples = read_predictions(path)
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    confusion = Confusion(DATASETS.build(cfg.test_dataloader.dataset), **thresholds)
    confusion.process(None, samples)
    return confusion


def draw(confusion: Confusion, title: str) -> Figure:
    """Images as numbers; boxes and pixels in percent of those of the true class."""
    counts, classes = torch.from_numpy(confusion.counts), list(confusion.classes)
    if confusion.unit != 'images':
        counts = (100 * counts / counts.sum(1, keepdim=True).clamp(min=1)).round().long()
        title += f'\n% of the {confusion.unit} of the true class'
    if confusion.unit == 'boxes':
        classes.append('background')
        title += f', scores from {confusion.score_thr}, IoU from {confusion.iou_thr}'
    few = len(classes) <= _FEW
    figure = ConfusionMatrix.plot(
        counts, include_values=few, classes=classes if few else None, cmap='Blues', show=False
    )
    figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser)
    parser.add_argument(
        'checkpoint', help='checkpoint, or predictions that test.py --out FILE.pkl has written'
    )
    parser.add_argument('--out', type=cli.picture, default=Path('confusion_matrix.png'), help='picture')
    parser.add_argument('--score-thr', type=cli.share, help='least score of a box; default 0.3')
    parser.add_argument('--iou-thr', type=cli.share, help='least overlap with the true box; default 0.5')
    args = parser.parse_args()
    cfg = cli.load_config(args.config, args.cfg_options)
    scope = cfg.get('default_scope')
    if scope not in ('mmpretrain', 'mmdet', 'mmseg') or cfg.get('test_dataloader') is None:
        raise UserError(
            f'{args.config} has no test set of images with classes, boxes or label maps: give one that has'
        )
    thresholds = dict(score_thr=args.score_thr, iou_thr=args.iou_thr)
    thresholds = {name: value for name, value in thresholds.items() if value is not None}
    if thresholds and scope != 'mmdet':
        raise UserError(
            f'--score-thr and --iou-thr are of boxes, which {args.config} has not: leave them out'
        )
    checks.check_data(cfg, ['test_dataloader'])
    cli.prepare_for_cpu(cfg)
    if args.checkpoint.endswith(('.pkl', '.pickle')):
        confusion = count(cfg, args.checkpoint, thresholds)
    else:
        checks.check_checkpoint(args.checkpoint)
        install_safe_loader(trust=args.trust_checkpoint)
        confusion = evaluate(cfg, args.checkpoint, thresholds)
    confusion.check_complete()
    figure = draw(confusion, f'{args.config}, {args.checkpoint}')
    with write_named(args.out) as draft:
        figure.savefig(draft, bbox_inches='tight', dpi=100)
    print('\n'.join(confusion.table()))
    right, total = int(confusion.counts.trace()), int(confusion.counts.sum())
    print(f'confusion matrix: {args.out} ({right} of {total} right)')


if __name__ == '__main__':
    cli.run(main)
