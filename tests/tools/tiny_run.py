"""A run of the tools that takes a second: a 32-pixel folder of ten classes and a tiny GrootV."""

import importlib.util
import sys
import uuid
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from grootv.utils import cli

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


def write_config(folder: Path, data: Path, base: str = 'demo/grootv-pico_digits.py') -> Path:
    """A config that shrinks the model of another one and points it to ``data``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'tiny.py'
    path.write_text(f"""
_base_ = '{ROOT}/configs/{base}'
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=8, depths=[1, 1, 1, 1])),
    head=dict(num_classes=10, in_channels=64),
)
data_preprocessor = dict(num_classes=10)
dataset = dict(data_root='{data}', metainfo=dict(classes=tuple('{CLASSES}')))
train_dataloader = dict(batch_size=8, num_workers=0, dataset=dataset)
val_dataloader = dict(batch_size=8, num_workers=0, persistent_workers=False, dataset=dataset)
test_dataloader = val_dataloader
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-2, by_epoch=True, begin=1,
         convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=1))
train_cfg = dict(max_epochs=2)
""")
    return path


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
    saved, sys.argv = sys.argv, [name, *map(str, args), *extra]
    try:
        cli.run(load_tool(name).main)
    except SystemExit as stop:
        return stop.code or 0
    finally:
        sys.argv = saved
    return 0
