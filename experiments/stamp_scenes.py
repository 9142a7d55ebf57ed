"""Write scenes of cut-out photographs with boxes, masks and a label map, to train detectors and segmentors.

    python experiments/stamp_scenes.py data/stamp_scenes

A scene is 128x128 pixels: three to five stamps over each other on a photograph, see stamps.py. The folders
are those of tools/dataset_converters/digit_scenes.py: COCO's annotations with masks as run lengths, and label
maps as in ADE20K, 0 unlabelled (unused), 1 background, 2 and 3 the classes.
"""

import argparse
import json
import sys
from pathlib import Path

import measure
import numpy as np
import stamps
from PIL import Image
from pycocotools import mask as mask_util
from rich.progress import track

sys.path.append(str(measure.ROOT / 'tools/dataset_converters'))

from annotations import Thing, coco

from grootv import cli
from grootv.errors import UserError
from grootv.files import write_atomically

SIZE = 128
COUNTS = {'training': 1600, 'validation': 400}
SIDES = {'training': 'train', 'validation': 'test'}
CLASSES = ('animal', 'thing')
LEAST_PIXELS = 64  # of an object that counts; less of it is labelled as what it is, but no object to find
BACKGROUND = 1  # label


def scene(side: str, number: int) -> tuple[np.ndarray, np.ndarray, list[Thing]]:
    """A picture (SIZE, SIZE, 3) uint8, its label map (SIZE, SIZE) uint8, and its objects."""
    rng = np.random.default_rng([list(SIDES).index(side), SIZE, number])
    picture, objects, kinds = stamps.scene(SIZE, SIDES[side], rng)
    labels, things = np.full((SIZE, SIZE), BACKGROUND, np.uint8), []
    for index, kind in enumerate(kinds, 1):
        mask = objects == index
        place = kind != 'animals'
        labels[mask] = BACKGROUND + 1 + place
        if mask.sum() >= LEAST_PIXELS:
            (ys, xs), runs = mask.nonzero(), mask_util.encode(np.asfortranarray(mask))
            box = tuple(float(value) for value in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
            things.append(Thing(CLASSES[place], box, runs=dict(runs, counts=runs['counts'].decode())))
    noisy = picture + rng.normal(0, stamps.NOISE, picture.shape)
    return noisy.clip(0, 255).astype(np.uint8), labels, things


def write(out: Path, counts: dict[str, int]) -> None:
    """Write the scenes of both sides below ``out``."""
    for side, count in counts.items():
        for kind in ('images', 'annotations'):
            (out / kind / side).mkdir(parents=True)
        records = []
        for number in track(range(1, count + 1), side):
            picture, labels, things = scene(side, number)
            Image.fromarray(picture).save(out / f'images/{side}/{number:05d}.jpg', quality=95)
            Image.fromarray(labels).save(out / f'annotations/{side}/{number:05d}.png')
            records.append((f'{number:05d}.jpg', (SIZE, SIZE), things))
        (out / f'annotations/{side}.json').write_text(json.dumps(coco(records, CLASSES)))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path, help='folder to create, for example data/stamp_scenes')
    for side, count in COUNTS.items():
        parser.add_argument(
            f'--{side}', type=measure.positive, default=count, help=f'scenes for {side}; default {count}'
        )
    args = parser.parse_args(argv)
    if args.out.exists():
        raise UserError(f'{args.out} exists: remove it, or give another folder')
    counts = {side: getattr(args, side) for side in COUNTS}
    with write_atomically(args.out.absolute()) as draft:
        write(draft, counts)
    print(f'{args.out}: {counts["training"]} scenes to train, {counts["validation"]} to validate')


if __name__ == '__main__':
    cli.run(main)
