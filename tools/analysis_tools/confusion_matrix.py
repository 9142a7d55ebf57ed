"""Evaluate a classifier and draw its confusion matrix.

python tools/analysis_tools/confusion_matrix.py CONFIG CHECKPOINT --out confusion_matrix.png
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.evaluation import ConfusionMatrix
from torch import Tensor

from grootv import checks, cli
from grootv.checkpoint import explain_loading, install_safe_loader
from grootv.engine import CheckpointKeysHook
from grootv.errors import UserError
from grootv.files import write_named
from grootv.registry import class_name

_FEW = 30  # up to so many classes the numbers fit into the cells


def evaluate(cfg: Config, checkpoint: str) -> tuple[Tensor, list[str]]:
    """Run the config's test set.

    Returns:
        Counts by true and predicted class, shape (K, K), and the classes' names.
    """
    with tempfile.TemporaryDirectory() as work_dir:
        runner = Runner(
            model=cfg.model,
            data_preprocessor=cfg.get('data_preprocessor'),
            work_dir=work_dir,
            test_dataloader=cfg.test_dataloader,
            test_cfg=cfg.test_cfg,
            test_evaluator=dict(type='ConfusionMatrix'),
            default_scope=cfg.get('default_scope', 'mmpretrain'),
            env_cfg=cfg.get('env_cfg', {}),
            load_from=checkpoint,
            log_level='WARNING',
            cfg=cfg,
        )
        explain_loading(runner)
        runner.register_hook(CheckpointKeysHook())
        classes = runner.test_dataloader.dataset.metainfo.get('classes')
        counts = runner.test()['confusion_matrix/result']
    return counts, [str(name) for name in classes or range(len(counts))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', type=cli.picture, default=Path('confusion_matrix.png'), help='picture')
    args = parser.parse_args()
    cfg = cli.load_config(args.config, args.cfg_options)
    name = class_name(cfg.get('model', {}).get('type'))
    if not name.endswith('Classifier') or cfg.get('test_dataloader') is None:
        raise UserError(f'{args.config} builds {name}: give the config of a classifier with a test set')
    checks.check_checkpoint(args.checkpoint)
    checks.check_data(cfg, ['test_dataloader'])
    cli.prepare_for_cpu(cfg)
    install_safe_loader(trust=args.trust_checkpoint)
    counts, classes = evaluate(cfg, args.checkpoint)
    few = len(classes) <= _FEW
    figure = ConfusionMatrix.plot(
        counts, include_values=few, classes=classes if few else None, cmap='Blues', show=False
    )
    with write_named(args.out) as draft:
        figure.savefig(draft, bbox_inches='tight', dpi=100)
    right, total = int(counts.trace()), int(counts.sum())
    print(f'confusion matrix: {args.out} ({right} of {total} right)')


if __name__ == '__main__':
    cli.run(main)
