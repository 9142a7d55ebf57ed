"""Train a detector or a segmentor on scenes of handwritten digits.

``make demo-detection`` runs it for Mask R-CNN, ``make demo-segmentation`` for UPerNet.
The backbone starts from the classifier of ``make demo``, which is trained first if it is missing.
``--short`` goes through the same steps with too little training to score.
"""

import argparse
from dataclasses import dataclass

import train_digits
from steps import Run, step, summary

DATA = 'data/digit_scenes'
IMAGE = f'{DATA}/images/validation/00001.jpg'  # is drawn with its tree


@dataclass
class Task:
    """A demo: its config, the metrics it reports, and what --short changes."""

    config: str
    metrics: dict[str, str]
    short: tuple[str, ...]


SHORT = (
    'val_dataloader.dataset.indices=20',
    'test_dataloader.dataset.indices=20',
    'default_hooks.logger.interval=5',
)
TASKS = {
    'detection': Task(
        'configs/demo/mask-rcnn_grootv-pico_fpn_digit-scenes.py',
        {'coco/bbox_mAP_50': 'box AP at IoU 0.5', 'coco/segm_mAP_50': 'mask AP at IoU 0.5'},
        ('train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=320', *SHORT),
    ),
    'segmentation': Task(
        'configs/demo/grootv-pico_upernet_digit-scenes.py',
        {'mIoU': 'mIoU, %'},
        ('train_cfg.max_iters=40', 'train_cfg.val_interval=40', *SHORT),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('task', choices=TASKS)
    parser.add_argument('--short', action='store_true', help='train for a minute only, to see that it works')
    args = parser.parse_args()
    task = TASKS[args.task]

    step('Data', 'tools/dataset_converters/digit_scenes.py', DATA)
    train_digits.train()
    folder = f'work_dirs/short-{args.task}' if args.short else None
    run = Run(task.config, folder, task.short if args.short else ())
    run.train()
    loss = run.check_loss()
    shown = run.work_dir / 'pictures'
    metrics = run.test('--show-dir', shown)
    curves, sheet = run.curves(*task.metrics), run.work_dir / 'predictions.png'
    collect = ('tools/analysis_tools/contact_sheet.py', shown, '--columns', 3, '--count', 12)
    header = ('--header', 'annotated', 'predicted')
    run.make('Predictions', sheet, *collect, *header, '--scale', 1.5, '--out', sheet)
    tree = run.tree(IMAGE)
    summary(
        log=run.log(),
        checkpoint=run.checkpoint,
        curves=curves,
        predictions=f'{sheet} (annotation left, prediction right; all in {shown})',
        tree=tree,
        loss=loss,
        **{label: f'{metrics[name]:.3f}' for name, label in task.metrics.items()},
    )


if __name__ == '__main__':
    main()
