"""Paste scikit-learn's handwritten digits into scenes with boxes, polygon masks and a label map.

python tools/dataset_converters/digit_scenes.py data/digit_scenes

A scene is 128x128 pixels: a textured background with strokes and rings that mean nothing, and three to
five digits in chalk on dark paper, cut out, 32 to 64 pixels high, turned by up to 15 degrees, one over the
other; at least four fifths of each can be seen. The digits of the validation scenes are the validation
digits of digits.py, so no digit is on both sides. OUT holds one set of images in two formats:

=====================================  ===============================================================
images/{training,validation}/N.jpg     the scenes
annotations/{training,validation}.json COCO: the box, the polygons and the area of what can be seen of
                                       each digit; categories 1 to 10 are the digits 0 to 9
annotations/{training,validation}/N.png ADE20K: 0 unlabelled (unused), 1 background, 2 to 11 the digits
                                       0 to 9
=====================================  ===============================================================

The scenes depend on --seed alone.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from rich.progress import track
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).resolve().parent))

from digits import split

from grootv import cli
from grootv.errors import UserError
from grootv.files import write_atomically

SIZE = 128
COUNTS = {'training': 1600, 'validation': 200}
SIDES = {'training': 'train', 'validation': 'val'}
DIGITS_PER_SCENE = (3, 5)
HEIGHTS = (32, 64)
MAX_TURN = 15  # degrees
MIN_VISIBLE = 0.8  # share of a digit that later ones leave to be seen
PAPER, CHALK = (0, 90), (150, 255)  # grey levels of each colour
BACKGROUND = 1  # label of the background; digit d has BACKGROUND + 1 + d
OVERSAMPLING = 2


@dataclass
class Sticker:
    """A digit in its place.

    Attributes:
        digit: 0 to 9.
        colour: Its colours over the whole scene, (SIZE, SIZE, 3), used where the mask is.
        mask: The pixels of its silhouette that can be seen, (SIZE, SIZE), bool.
        pixels: Number of pixels of the whole silhouette.
    """

    digit: int
    colour: np.ndarray
    mask: np.ndarray
    pixels: int


def texture(noise: np.random.Generator) -> np.ndarray:
    """A background, (SIZE, SIZE, 3) float32 in 0 to 255: smooth noise of several sizes, strokes and rings."""
    picture = np.zeros((SIZE, SIZE, 3), np.float32) + noise.uniform(60, 195, 3).astype(np.float32)
    for cells, strength in ((2, 35), (6, 20), (20, 10), (64, 6)):
        grey = noise.normal(0, strength, (cells, cells, 1))
        tint = noise.normal(0, strength / 2, (cells, cells, 3))
        picture += cv2.resize((grey + tint).astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    picture = np.ascontiguousarray(picture.clip(0, 255))
    for _ in range(noise.integers(2, 6)):
        colour = tuple(noise.uniform(0, 255, 3))
        start, end = (tuple(int(x) for x in noise.integers(0, SIZE, 2)) for _ in range(2))
        width = int(noise.integers(1, 5))
        if noise.random() < 0.6:
            cv2.line(picture, start, end, colour, width, cv2.LINE_AA)
        else:
            cv2.circle(picture, start, int(noise.integers(4, 24)), colour, width, cv2.LINE_AA)
    return picture


def cut_out(digit: int, image: np.ndarray, noise: np.random.Generator) -> Sticker:
    """A digit of 8x8 levels (0 to 16), scaled, turned, coloured and placed at random."""
    height = noise.uniform(*HEIGHTS)
    width = height * noise.uniform(0.75, 1.0)
    turn = np.deg2rad(noise.uniform(-MAX_TURN, MAX_TURN))
    centre = np.array([noise.uniform(0.45 * side, SIZE - 0.45 * side) for side in (width, height)])
    side = int(1.6 * height)  # of a window that holds the turned digit
    corner = np.rint(centre - side / 2).astype(int)
    scale = np.diag([width, height]) / 8
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    linear = rotation @ scale * OVERSAMPLING
    shift = (centre - corner) * OVERSAMPLING - linear @ [3.5, 3.5]
    fine = cv2.warpAffine(
        image.astype(np.float32) / 16,
        np.column_stack([linear, shift]),
        (side * OVERSAMPLING, side * OVERSAMPLING),
        flags=cv2.INTER_CUBIC,
    )

    margin = 2 * round(0.05 * height * OVERSAMPLING) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (margin, margin))
    dilated = cv2.dilate((fine > 0.4).astype(np.uint8), disc)
    outlines, _ = cv2.findContours(dilated, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = max(outlines, key=cv2.contourArea)
    silhouette = cv2.drawContours(np.zeros_like(fine), [largest], -1, 1.0, cv2.FILLED)
    ink, mask = (
        in_scene(cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA), corner)
        for part in (fine, silhouette)
    )
    mask = mask > 0.5

    paper, chalk = (noise.uniform(*levels, 3).astype(np.float32) for levels in (PAPER, CHALK))
    cover = ((ink - 0.3) / 0.3).clip(0, 1)[..., None]
    return Sticker(digit, paper + cover * (chalk - paper), mask, int(mask.sum()))


def in_scene(window: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """A square window, which may reach out of the scene, at its place in (SIZE, SIZE)."""
    shift = np.column_stack([np.eye(2), corner])
    return cv2.warpAffine(window, shift, (SIZE, SIZE), flags=cv2.INTER_NEAREST)


def polygons(mask: np.ndarray) -> list[list[float]]:
    """Outlines of a mask as COCO writes them: x and y in turn; a pixel's corners are at whole numbers."""
    fine = mask.astype(np.uint8).repeat(OVERSAMPLING, axis=0).repeat(OVERSAMPLING, axis=1)
    outlines, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    simple = [cv2.approxPolyDP(outline, 0.4 * OVERSAMPLING, closed=True)[:, 0] for outline in outlines]
    return [((points + 0.5) / OVERSAMPLING).round(2).ravel().tolist() for points in simple if len(points) > 2]


def in_one_piece(mask: np.ndarray) -> bool:
    """Whether a mask is connected and has no hole, which polygons cannot express."""
    pieces, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return len(pieces) == 1


def arrange(digits: list[tuple[int, np.ndarray]], noise: np.random.Generator) -> list[Sticker]:
    """Place digits one over the other, each in one piece and at least MIN_VISIBLE of it in sight."""
    placed: list[Sticker] = []
    for digit, image in digits:
        for _ in range(50):
            new = cut_out(digit, image, noise)
            left = [sticker.mask & ~new.mask for sticker in placed]
            seen = [
                in_one_piece(mask) and mask.sum() >= MIN_VISIBLE * sticker.pixels
                for sticker, mask in zip(placed, left, strict=True)
            ]
            if in_one_piece(new.mask) and all(seen):
                for sticker, mask in zip(placed, left, strict=True):
                    sticker.mask = mask
                placed.append(new)
                break
    return placed


def compose(stickers: list[Sticker], noise: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The picture, (SIZE, SIZE, 3) uint8, and its label map, (SIZE, SIZE) uint8."""
    picture = texture(noise)
    labels = np.full((SIZE, SIZE), BACKGROUND, np.uint8)
    for sticker in stickers:
        picture[sticker.mask] = sticker.colour[sticker.mask]
        labels[sticker.mask] = BACKGROUND + 1 + sticker.digit
    picture = cv2.GaussianBlur(picture, (0, 0), 0.6) + noise.normal(0, 4, picture.shape)
    return picture.clip(0, 255).astype(np.uint8), labels


def scenes(side: str, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, list[Sticker]]]:
    """``count`` pictures of one side, their label maps and stickers; every digit is used equally often."""
    data = load_digits()
    own = split(data.images, data.target)[SIDES[side]]
    stream = np.random.default_rng([seed, list(COUNTS).index(side)])
    deck: list[int] = []
    for noise in stream.spawn(count):
        wanted = int(noise.integers(DIGITS_PER_SCENE[0], DIGITS_PER_SCENE[1] + 1))
        while len(deck) < wanted:
            deck += stream.permutation(own).tolist()
        hand, deck = deck[:wanted], deck[wanted:]
        stickers = arrange([(int(data.target[i]), data.images[i]) for i in hand], noise)
        yield *compose(stickers, noise), stickers


def annotation(sticker: Sticker, image_id: int, number: int) -> dict:
    """The entry of COCO's list of annotations."""
    return dict(
        id=number,
        image_id=image_id,
        category_id=sticker.digit + 1,
        bbox=list(cv2.boundingRect(sticker.mask.astype(np.uint8))),
        area=int(sticker.mask.sum()),
        segmentation=polygons(sticker.mask),
        iscrowd=0,
    )


def write(out: Path, counts: dict[str, int], seed: int) -> None:
    """Write the scenes of both sides below ``out``."""
    categories = [dict(id=digit + 1, name=str(digit), supercategory='digit') for digit in range(10)]
    for side, count in counts.items():
        for kind in ('images', 'annotations'):
            (out / kind / side).mkdir(parents=True)
        images, annotations = [], []
        all_scenes = scenes(side, count, seed)
        for number, (picture, labels, stickers) in enumerate(track(all_scenes, side, total=count), 1):
            name = f'{number:05d}'
            Image.fromarray(picture).save(out / 'images' / side / f'{name}.jpg', quality=95)
            Image.fromarray(labels).save(out / 'annotations' / side / f'{name}.png')
            images.append(dict(id=number, file_name=f'{name}.jpg', height=SIZE, width=SIZE))
            for sticker in stickers:
                annotations.append(annotation(sticker, number, len(annotations) + 1))
        content = dict(images=images, annotations=annotations, categories=categories)
        (out / 'annotations' / f'{side}.json').write_text(json.dumps(content))


def export(out: Path, counts: dict[str, int], seed: int) -> None:
    """Write the data set, or find it there.

    Raises:
        UserError: If ``out`` holds something else, or scenes of other counts or another seed.
    """
    recipe = json.dumps(dict(counts=counts, seed=seed, script=Path(__file__).name))
    stamp = out / 'recipe.json'
    if stamp.is_file() and stamp.read_text() == recipe:
        return
    if out.is_dir() and any(out.iterdir()):
        raise UserError(
            f'{out} is not empty and does not hold these scenes: remove it, or give another folder'
        )
    with write_atomically(out) as draft:
        write(draft, counts, seed)
        (draft / stamp.name).write_text(recipe)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path, help='folder to create, for example data/digit_scenes')
    parser.add_argument('--seed', type=int, default=0, help='another seed makes other scenes')
    for side, count in COUNTS.items():
        parser.add_argument(f'--{side}', type=int, default=count, help=f'scenes for {side}; default {count}')
    args = parser.parse_args()
    counts = {side: getattr(args, side) for side in COUNTS}
    if min(counts.values()) < 1 or args.seed < 0:
        raise UserError(
            f'digit_scenes: counts must be 1 or more and the seed 0 or more, got {counts}, {args.seed}'
        )
    export(args.out.absolute(), counts, args.seed)
    print(f'{args.out}: {counts["training"]} scenes to train, {counts["validation"]} to validate')


if __name__ == '__main__':
    cli.run(main)
