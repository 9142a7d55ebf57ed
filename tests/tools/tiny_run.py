"""Runs of the tools that take seconds: a tiny GrootV on ten classes of images, or on scenes of digits."""

import importlib.util
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
from PIL import Image

from grootv import cli

ROOT = Path(__file__).resolve().parents[2]
CLASSES = '0123456789'


def write_images(folder: Path, train: int = 2, val: int = 1, size: int = 32) -> Path:
    """An ImageNet-style folder with ``train`` and ``val`` images of every class."""
    noise = np.random.default_rng(0)
    for side, count in (('train', train), ('val', val)):
        for label, name in enumerate(CLASSES):
            for index in range(count):
                pixels = noise.integers(0, 60, (size, size, 3)) + 15 * label
                path = folder / side / name / f'{name}{index}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def write(folder: Path, base: str, data: Path, batch_size: int, settings: str) -> Path:
    """A config that shrinks the model of another one and points it to ``data``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'tiny.py'
    path.write_text(f"""
_base_ = '{ROOT}/configs/{base}'
backbone = dict(arch=dict(_delete_=True, embed_dims=8, depths=[1, 1, 1, 1]))
dataset = dict(data_root='{data}')
train_dataloader = dict(batch_size={batch_size}, num_workers=0, dataset=dataset)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dataset)
test_dataloader = val_dataloader
default_hooks = dict(logger=dict(interval=1))
{settings}""")
    return path


def write_config(folder: Path, data: Path, base: str = 'demo/grootv-pico_digits.py') -> Path:
    """A classifier: two epochs of three iterations."""
    settings = f"""
dataset.update(metainfo=dict(classes=tuple('{CLASSES}')))
train_dataloader.update(drop_last=False)
model = dict(backbone=backbone, head=dict(num_classes=10, in_channels=64))
data_preprocessor = dict(num_classes=10)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-2, by_epoch=True, begin=1,
         convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=2)
"""
    return write(folder, base, data, 8, settings)


def write_scenes(folder: Path, training: int = 8, validation: int = 3) -> Path:
    """Scenes of digits for detection and segmentation."""
    counts = dict(training=training, validation=validation)
    load_tool('dataset_converters/digit_scenes.py').export(folder, counts, seed=0)
    return folder


def write_detection(folder: Path, scenes: Path) -> Path:
    """The Mask R-CNN of the demo: two epochs of four iterations."""
    settings = f"""
roi = dict(out_channels=16)
model = dict(
    backbone=dict(init_cfg=None, **backbone),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=roi,
        bbox_head=dict(in_channels=16, fc_out_channels=32),
        mask_roi_extractor=roi,
        mask_head=dict(num_convs=1, in_channels=16, conv_out_channels=16),
    ),
    test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=20)),
)
val_evaluator = dict(ann_file='{scenes}/annotations/validation.json')
test_evaluator = val_evaluator
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=5),
    dict(type='MultiStepLR', by_epoch=True, milestones=[2], gamma=0.1),
]
train_cfg = dict(max_epochs=2)
"""
    return write(folder, 'demo/mask-rcnn_grootv-pico_fpn_digit-scenes.py', scenes, 2, settings)


def write_segmentation(folder: Path, scenes: Path) -> Path:
    """The UPerNet of the demo: eight iterations."""
    settings = """
model = dict(
    backbone=dict(init_cfg=None, **backbone),
    decode_head=dict(in_channels=[8, 16, 32, 64], channels=16),
    auxiliary_head=dict(in_channels=32, channels=8),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=5),
    dict(type='PolyLR', power=1.0, by_epoch=False, begin=5, end=10),
]
default_hooks.update(checkpoint=dict(interval=4))
train_cfg = dict(max_iters=8, val_interval=4)
"""
    return write(folder, 'demo/grootv-pico_upernet_digit-scenes.py', scenes, 2, settings)


WRITERS = {
    'classification': lambda folder: write_config(folder, write_images(folder / 'images')),
    'detection': lambda folder: write_detection(folder, write_scenes(folder / 'scenes')),
    'segmentation': lambda folder: write_segmentation(folder, write_scenes(folder / 'scenes')),
}


@dataclass
class TinyRun:
    """A finished training.

    Attributes:
        config: Its config; the data are in the same folder.
        work_dir: What it left.
        checkpoint: The last one.
    """

    config: Path
    work_dir: Path
    checkpoint: Path


def train_tiny(folder: Path, task: str) -> TinyRun:
    """Train the tiny model of a task, a key of ``WRITERS``, below ``folder``."""
    config, work_dir = WRITERS[task](folder), folder / 'run'
    assert run_tool('train.py', config, '--work-dir', work_dir) == 0
    return TinyRun(config, work_dir, Path((work_dir / 'last_checkpoint').read_text()))


def scalars(work_dir: Path) -> list[dict]:
    """Log records of the last start."""
    path = sorted(work_dir.glob('*/vis_data/scalars.json'))[-1]
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(work_dir: Path) -> dict[int, float]:
    """Loss by iteration in the last start."""
    return {record['step']: record['loss'] for record in scalars(work_dir) if 'loss' in record}


def metrics(work_dir: Path) -> dict[str, float]:
    """Those of the last validation in the last start."""
    others = ('data_time', 'time', 'step')
    return {name: value for name, value in scalars(work_dir)[-1].items() if name not in others}


def starting_from(path: object) -> tuple[str, ...]:
    """Options of a run whose backbone starts from a file."""
    values = dict(type='Pretrained', checkpoint=path, prefix='backbone.')
    return tuple(f'model.backbone.init_cfg.{name}={value}' for name, value in values.items())


class Call:
    """Unpickling it calls a function."""

    def __init__(self, function: Callable, *arguments: object):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def load_tool(name: str) -> ModuleType:
    """A script below tools/ as a module."""
    spec = importlib.util.spec_from_file_location(Path(name).stem + '_tool', ROOT / 'tools' / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_tool(name: str, *args: object, options: tuple[str, ...] = ()) -> int:
    """Run a script in this process as the command line would; its exit status."""
    unique = f'experiment_name=x{uuid.uuid4().hex}'  # MMEngine keeps loggers by name and second
    takes_options = name in ('train.py', 'test.py')
    extra = ['--cfg-options', unique, *options] if takes_options else []
    with (
        # MMEngine formats a config whenever it writes one, which takes half of such a short run.
        patch('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True)),
        patch('sys.argv', [name, *map(str, args), *extra]),
    ):
        try:
            cli.run(load_tool(name).main)
        except SystemExit as stop:
            return stop.code or 0
    return 0
