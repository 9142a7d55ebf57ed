"""COCO and ADE20K with a few pictures of noise, and configs that read them."""

import copy
import json
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

LANDSCAPE, PORTRAIT = (96, 60), (45, 90)  # width, height


def write_picture(path: Path, size: tuple[int, int], noise: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)


def write_coco(root: Path) -> None:
    """COCO's folders with four pictures each: two wide, one high, one wide without an object."""
    from mmdet.datasets import CocoDataset

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


def write_ade(root: Path) -> None:
    """ADE20K's folders: a wide picture, a high one, and a wide one without a label."""
    noise = np.random.default_rng(0)
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


def on(folder: Path, config: Config) -> Config:
    """A copy of the config with its data in the folder, read by this process."""
    config = copy.deepcopy(config)
    for side in ('train', 'val', 'test'):
        loader = config[f'{side}_dataloader']
        evaluator = config.get(f'{side}_evaluator', {})
        if 'ann_file' in evaluator:
            evaluator.ann_file = evaluator.ann_file.replace(loader.dataset.data_root, f'{folder}/')
        loader.dataset.data_root = str(folder)
        loader.update(num_workers=0, persistent_workers=False)
    init_default_scope(config.default_scope)
    return config


def samples(folder: Path, config: Config, side: str) -> list[dict]:
    """What the pipeline of a data set makes of its pictures, at full size."""
    dataset = DATASETS.build(on(folder, config)[f'{side}_dataloader'].dataset)
    return [dataset[index] for index in range(len(dataset))]
