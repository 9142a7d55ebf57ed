"""The detection configs by name, and a miniature of their data."""

import json
from functools import cache
from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image

from .parts import ROOT

FOLDER = ROOT / 'configs/detection'
CONFIGS = {path.stem: path for path in sorted(FOLDER.glob('*.py'))}
DINO = 'dino-4scale_grootv-tiny_8xb2-12e_coco'
ONE_OF_EACH = [
    'mask-rcnn_grootv-tiny_fpn_ms-3x_coco',
    'cascade-mask-rcnn_grootv-tiny_fpn_1x_coco',
    'retinanet_grootv-tiny_fpn_1x_coco',
    DINO,
]
BOXES_ONLY = ONE_OF_EACH[2:]
LANDSCAPE, PORTRAIT = (96, 60), (45, 90)  # width, height


@cache
def load(name: str) -> Config:
    return Config.fromfile(CONFIGS[name])


def polygon(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def write_coco(root: Path) -> None:
    """COCO's folders with four pictures each: two wide, one high, one wide without an object."""
    from mmdet.datasets import CocoDataset

    (root / 'annotations').mkdir()
    noise = np.random.default_rng(0)
    names = CocoDataset.METAINFO['classes']
    for side in ('train2017', 'val2017'):
        (root / side).mkdir()
        images, annotations = [], []
        for number, (width, height) in enumerate((LANDSCAPE, LANDSCAPE, PORTRAIT, LANDSCAPE), 1):
            pixels = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / side / f'{number}.png')
            images.append(dict(id=number, file_name=f'{number}.png', width=width, height=height))
            for label in range(3 if number < 4 else 0):
                box = [5 + 4 * label, 6, 20 + label, 30]
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=number,
                        category_id=1 + 10 * label,
                        bbox=box,
                        area=box[2] * box[3],
                        segmentation=polygon(*box),
                        iscrowd=0,
                    )
                )
        content = dict(
            images=images,
            annotations=annotations,
            categories=[dict(id=index, name=name) for index, name in enumerate(names, 1)],
        )
        (root / f'annotations/instances_{side}.json').write_text(json.dumps(content))
