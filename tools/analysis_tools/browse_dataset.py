"""Show images of a data set as the network gets them, after augmentation, with their annotations.

    python tools/analysis_tools/browse_dataset.py CONFIG --out sheet.png
    python tools/analysis_tools/browse_dataset.py CONFIG --split val --count 24 --out sheet.png

The images are evenly spread over the data set; another ``--seed`` draws other augmentations. MixUp, CutMix
and normalisation come later, in the data preprocessor.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
import os
from collections import Counter
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from mmengine.runner import set_random_seed
from PIL import Image
from rich.progress import track

from grootv import checks, cli
from grootv.datasets.summary import data_root, spread
from grootv.errors import UserError
from grootv.files import write_named
from grootv.visualization.sheet import sheet

SIDE = 320  # longer side of a picture on the sheet


def build_visualizer(cfg: Config, classes: Any) -> Any:
    """The config's visualizer, which draws and writes nothing."""
    visualizer = VISUALIZERS.build({**cfg.visualizer, 'vis_backends': None, 'name': 'browse_dataset'})
    visualizer.dataset_meta = classes
    return visualizer


def pixels(inputs: torch.Tensor) -> np.ndarray:
    """The RGB image of a packed item, (H, W, 3); one that is normalised already is spread over the range."""
    image = inputs.permute(1, 2, 0).numpy()
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        image = ((image - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
    image = image.repeat(3, axis=2) if image.shape[2] == 1 else image
    return np.ascontiguousarray(image[..., ::-1])


def draw(visualizer: Any, item: dict) -> np.ndarray:
    """The image of an item with its annotations, by the visualizer of its library."""
    image, sample = pixels(item['inputs']), item['data_samples']
    if hasattr(visualizer, 'visualize_cls'):
        return visualizer.visualize_cls(image, sample, resize=SIDE, draw_pred=False)
    if 'gt_instances' in sample:
        boxes = sample.gt_instances.get('bboxes')
        if boxes is not None:
            sample.gt_instances.bboxes = getattr(boxes, 'tensor', boxes)
    visualizer.add_datasample('', image, sample, draw_pred=False)
    return visualizer.get_image()


def annotations(sample: Any, classes: tuple[str, ...]) -> str:
    """What an item is annotated with, in a line."""
    if 'gt_label' in sample:
        return ', '.join(classes[label] for label in sample.gt_label.tolist())
    if 'gt_instances' in sample:
        counts = Counter(classes[label] for label in sample.gt_instances.labels.tolist())
        texts = [f'{count} x {name}' if count > 1 else name for name, count in sorted(counts.items())]
        return ', '.join(texts) or 'no boxes'
    if 'gt_sem_seg' in sample:
        labels = sample.gt_sem_seg.data.unique().tolist()
        return ', '.join(classes[label] if label < len(classes) else f'none ({label})' for label in labels)
    return 'no annotations'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser, checkpoint=False)
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='train', help='which data')
    parser.add_argument('--out', type=cli.picture, required=True, help='picture to write')
    parser.add_argument('--count', type=cli.positive, default=12, help='number of images')
    parser.add_argument('--columns', type=cli.positive, default=4, help='images in a row')
    parser.add_argument('--seed', type=int, default=0, help='of the augmentations')
    args = parser.parse_args()
    cfg = cli.load_config(args.config, args.cfg_options)
    name = f'{args.split}_dataloader'
    if cfg.get(name) is None or not cfg.get('visualizer') or cfg.get('default_scope') == 'mmengine':
        raise UserError(f'{args.config} has no images in a {name}: give the config of a task with images')
    checks.check_data(cfg, [name])
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    dataset = DATASETS.build(cfg[name].dataset)
    set_random_seed(args.seed)
    visualizer = build_visualizer(cfg, dataset.metainfo)
    root = data_root(cfg[name].dataset)
    classes, shown = tuple(map(str, dataset.metainfo.get('classes') or ())), []
    for index in track(spread(len(dataset), args.count), 'images', transient=True):
        item = dataset[index]
        text = annotations(item['data_samples'], classes)
        image = Image.fromarray(draw(visualizer, item))
        scale = SIDE / max(image.size)
        size = tuple(max(1, round(scale * side)) for side in image.size)
        height, width = item['inputs'].shape[1:]
        lines = f'{os.path.relpath(item["data_samples"].img_path, root)}\n{width} x {height}: {text}'
        shown.append((lines, image.resize(size, Image.Resampling.LANCZOS)))
    title = f'{args.config}, {args.split}: {len(shown)} of {len(dataset)} images, seed {args.seed}'
    page = sheet(title, shown, args.columns)
    with write_named(args.out) as draft:
        page.save(draft)
    print(f'sheet: {args.out} ({len(shown)} of {len(dataset)} images)')


if __name__ == '__main__':
    cli.run(main)
