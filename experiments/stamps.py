"""Scenes of cut-out photographs on photographs: the stamps of Tux Paint over scikit-image's pictures.

The stamps are files of Debian's package tuxpaint-stamps-default; no installation is needed::

    apt-get download tuxpaint-stamps-default
    dpkg-deb -x tuxpaint-stamps-default_*.deb data/stamps
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import cv2
import measure
import numpy as np
import skimage.data
from PIL import Image

from grootv.errors import UserError

FOLDERS = (measure.ROOT / 'data/stamps', Path('/'))
INSIDE = 'usr/share/tuxpaint/stamps'
# A photograph has more colours, and more of them for its pixels, than a drawing.
MIN_COLOURS, MIN_COLOURS_PER_PIXEL, MAX_OPAQUE = 4000, 0.15, 0.95
BACKGROUNDS = dict(
    train=('coffee', 'rocket', 'brick', 'grass', 'hubble_deep_field', 'stereo_motorcycle', 'coins', 'retina'),
    test=('astronaut', 'chelsea', 'gravel', 'camera', 'immunohistochemistry'),
)
STAMPS_PER_SCENE = (3, 5)
SIDES = (0.3, 0.65)  # of a stamp, over that of the scene
LARGEST = 256  # px, side to which stamps are read
LEAST_VISIBLE = 0.01  # of the scene, of the object that is marked
CLICK = 2  # px, radius of the mark
NOISE = 4


class Stamp(NamedTuple):
    """A cut-out photograph.

    Attributes:
        picture: Colours and alpha, (h, w, 4) uint8.
        kind: The folder that it lies in, for example 'animals'.
    """

    picture: np.ndarray
    kind: str


@lru_cache(1)
def stamps() -> dict[str, list[Stamp]]:
    """The photographs among the stamps: every fifth series for 'test', the rest for 'train'."""
    folder = next((root / INSIDE for root in FOLDERS if (root / INSIDE).is_dir()), None)
    if folder is None:
        raise UserError(
            f'{FOLDERS[0]} does not exist: run apt-get download tuxpaint-stamps-default and '
            f'dpkg-deb -x tuxpaint-stamps-default_*.deb {FOLDERS[0]}'
        )
    series: dict[str, list[Stamp]] = {}  # several pictures of one thing, and their mirror images
    for path in sorted(folder.rglob('*.png')):
        if (picture := photograph(path)) is not None:
            stamp = Stamp(picture, path.relative_to(folder).parts[0])
            name = re.sub(r'mirror|\d+[a-z]?|_new|_old', '', path.stem.lower()).strip('_-')
            series.setdefault(name, []).append(stamp)
    test, train = list(series.values())[::5], [some for i, some in enumerate(series.values()) if i % 5]
    return dict(train=list(chain(*train)), test=list(chain(*test)))


def photograph(path: Path) -> np.ndarray | None:
    """The picture inside its opaque part, None for a drawing."""
    picture = np.array(Image.open(path).convert('RGBA'))
    opaque = picture[..., 3] > 127
    colours = picture[opaque][:, :3].astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    count, area = len(np.unique(colours)), opaque.sum()
    if opaque.mean() >= MAX_OPAQUE or count < MIN_COLOURS or count < MIN_COLOURS_PER_PIXEL * area:
        return None
    x, y, width, height = cv2.boundingRect(opaque.astype(np.uint8))
    inside = Image.fromarray(picture[y : y + height, x : x + width])
    inside.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    return np.array(inside)


@lru_cache(1)
def backgrounds() -> dict[str, list[np.ndarray]]:
    """Photographs (h, w, 3) uint8 by 'train' and 'test'."""

    def read(name: str) -> np.ndarray:
        picture = getattr(skimage.data, name)()
        picture = picture[0] if isinstance(picture, tuple) else picture
        return np.repeat(picture[..., None], 3, 2) if picture.ndim == 2 else picture[..., :3]

    return {side: [read(name) for name in names] for side, names in BACKGROUNDS.items()}


def scene(size: int, side: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A picture (size, size, 3) float32, the object of every pixel (size, size) uint8, and their kinds.

    Objects are numbered from 1, 0 is the background.
    """
    ground = backgrounds()[side][rng.integers(len(BACKGROUNDS[side]))]
    window = int(rng.uniform(0.5, 1) * min(ground.shape[:2]))
    top, left = (int(rng.integers(length - window + 1)) for length in ground.shape[:2])
    crop = ground[top : top + window, left : left + window]
    picture = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    objects, kinds = np.zeros((size, size), np.uint8), []
    for number in range(1, int(rng.integers(STAMPS_PER_SCENE[0], STAMPS_PER_SCENE[1] + 1)) + 1):
        stamp, kind = stamps()[side][rng.integers(len(stamps()[side]))]
        stamp = stamp[:, :: rng.choice((1, -1))]
        kinds.append(kind)
        scale = rng.uniform(*SIDES) * size / max(stamp.shape[:2])
        width, height = (max(1, round(scale * length)) for length in stamp.shape[1::-1])
        stamp = cv2.resize(stamp, (width, height), interpolation=cv2.INTER_AREA)
        x, y = (int(rng.integers(-length // 4, size - length * 3 // 4)) for length in (width, height))
        clip = slice(max(0, -y), size - y), slice(max(0, -x), size - x)
        place = slice(max(0, y), max(0, y + height)), slice(max(0, x), max(0, x + width))
        colour, alpha = stamp[clip][..., :3], stamp[clip][..., 3:] / np.float32(255)
        picture[place] += alpha * (colour - picture[place])
        objects[place][alpha[..., 0] > 0.5] = number
    return picture, objects, kinds


def click_scene(size: int, seed: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping objects, a pixel of one of them marked: which pixels belong to it?

    Args:
        size: Side.
        seed: Begins with 0 for a test scene, 1 for a training scene; no stamp or background is in both.

    Returns:
        The picture (size, size, 4) uint8, whose last channel holds the mark, and labels (size, size) uint8,
        1 for the marked object.
    """
    rng = np.random.default_rng(seed)
    while True:
        picture, objects, _ = scene(size, ('test', 'train')[seed[0]], rng)
        number = int(rng.integers(1, max(2, objects.max() + 1)))
        mask = (objects == number).astype(np.uint8)
        inner = np.argwhere(cv2.erode(mask, np.ones((5, 5), np.uint8), borderValue=0))
        if mask.mean() >= LEAST_VISIBLE and len(inner):
            break
    y, x = inner[rng.integers(len(inner))].tolist()
    mark = np.zeros((size, size), np.uint8)
    cv2.circle(mark, (x, y), CLICK, 255, -1)
    noisy = (picture + rng.normal(0, NOISE, picture.shape)).clip(0, 255).astype(np.uint8)
    return np.dstack([noisy, mark]), mask
