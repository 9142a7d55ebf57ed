"""The segmentation configs by name, and a miniature of their data."""

from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image

from .parts import ROOT, on

FOLDER = ROOT / 'configs/segmentation'
CONFIGS = {path.stem: path for path in sorted(FOLDER.glob('*.py'))}
SIZES = ('tiny', 'small', 'base')
UPERNET = [f'grootv-{size}_upernet_8xb2-160k_ade20k-512x512' for size in SIZES]
MASK2FORMER = 'grootv-tiny_mask2former_8xb2-160k_ade20k-512x512'
FPN = 'grootv-tiny_fpn_8xb4-40k_ade20k-512x512'
ONE_OF_EACH = [UPERNET[0], MASK2FORMER, FPN]
LANDSCAPE, PORTRAIT = (96, 60), (50, 80)  # width, height
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def load(name: str) -> Config:
    return Config.fromfile(CONFIGS[name])


def write_ade(root: Path) -> None:
    """ADE20K's folders: a wide picture, a high one, and a wide one without a label."""
    noise = np.random.default_rng(0)
    for side in ('training', 'validation'):
        for number, (width, height) in enumerate((LANDSCAPE, PORTRAIT, LANDSCAPE)):
            pixels = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
            labels = np.zeros((height, width), np.uint8)
            if number < 2:
                labels[height // 4 :, : width // 2] = 1
                labels[height // 4 :, width // 2 :] = 150
            for kind, ending, array in (('images', 'jpg', pixels), ('annotations', 'png', labels)):
                path = root / kind / side / f'{number}.{ending}'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)


def samples(ade: Path, config: Config, side: str) -> list[dict]:
    """What the pipeline of a data set makes of its pictures."""
    dataset = DATASETS.build(on(ade, config)[f'{side}_dataloader'].dataset)
    return [dataset[index] for index in range(len(dataset))]
