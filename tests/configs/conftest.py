"""COCO and ADE20K with a few pictures of noise."""

import json
from pathlib import Path

import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from PIL import Image

from .parts import LANDSCAPE, PORTRAIT


def write_picture(path: Path, size: tuple[int, int], noise: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope='session')
def coco(tmp_path_factory) -> Path:
    """COCO's folders with four pictures each: two wide, one high, one wide without an object."""
    root = tmp_path_factory.mktemp('coco')
    (root / 'annotations').mkdir()
    noise = np.random.default_rng(0)
    for side in ('train2017', 'val2017'):
        images, annotations = [], []
        for number, (width, height) in enumerate((LANDSCAPE, LANDSCAPE, PORTRAIT, LANDSCAPE), 1):
            write_picture(root / side / f'{number}.png', (width, height), noise)
            images.append(dict(id=number, file_name=f'{number}.png', width=width, height=height))
            for label in range(3 if number < 4 else 0):
                x, y, w, h = box = [5 + 4 * label, 6, 20 + label, 30]
                entry = dict(id=len(annotations) + 1, image_id=number, category_id=1 + 10 * label, iscrowd=0)
                outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                annotations.append(dict(entry, bbox=box, area=w * h, segmentation=outline))
        names = CocoDataset.METAINFO['classes']
        categories = [dict(id=index, name=name) for index, name in enumerate(names, 1)]
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / f'annotations/instances_{side}.json').write_text(json.dumps(content))
    return root


@pytest.fixture(scope='session')
def ade(tmp_path_factory) -> Path:
    """ADE20K's folders: a wide picture, a high one, and a wide one without a label."""
    root, noise = tmp_path_factory.mktemp('ade'), np.random.default_rng(0)
    for side in ('training', 'validation'):
        for number, (width, height) in enumerate((LANDSCAPE, PORTRAIT, LANDSCAPE)):
            write_picture(root / f'images/{side}/{number}.jpg', (width, height), noise)
            labels = np.zeros((height, width), np.uint8)
            if number < 2:
                labels[height // 4 :, : width // 2] = 1
                labels[height // 4 :, width // 2 :] = 150
            path = root / f'annotations/{side}/{number}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(path)
    return root
