"""Convert LabelMe's JSON files to a COCO file for detection and instance segmentation.

    python tools/dataset_converters/labelme.py annotations images train.json --classes classes.txt

Polygons and circles become masks, those of one label and group a single object, and so do painted masks;
rectangles become boxes. Points and lines are left out. See docs/data.md.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import base64
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util

sys.path.insert(0, str(Path(__file__).resolve().parent))

import annotations
from annotations import Content, Fault, Thing

from grootv import cli

CORNERS = 36  # of a circle
MOST = 1e9  # coordinate


def circle(x: float, y: float, edge_x: float, edge_y: float) -> list[float]:
    """Points of a circle, from its centre and a point of its edge."""
    radius = math.hypot(edge_x - x, edge_y - y)
    turns = [2 * math.pi * corner / CORNERS for corner in range(CORNERS)]
    return [value for turn in turns for value in (x + radius * math.cos(turn), y + radius * math.sin(turn))]


def outline(shape: dict, number: int) -> tuple[str, list[float]]:
    """Kind of a shape and the coordinates of its points."""
    kind = str(shape.get('shape_type') or 'polygon')
    try:
        points = [float(value) for x, y in shape['points'] for value in (x, y)]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise Fault(f'has in shape {number} no points [x, y]') from None
    least = dict(polygon=6, rectangle=4, circle=4, mask=4)
    if not all(abs(value) < MOST for value in points) or len(points) < least.get(kind, 0):
        raise Fault(
            f'has in shape {number} {len(points) // 2} points of a {kind:.40}, or one that is no pixel'
        )
    return kind, circle(*points[:4]) if kind == 'circle' else points


def painted(shape: dict, points: list[float], size: tuple[int, int], number: int) -> dict:
    """Run lengths of a mask, which is a picture of the box between two points."""
    wide, high = (int(points[place + 2]) - int(points[place]) + 1 for place in (0, 1))
    left, top = map(int, points[:2])
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape['mask'], validate=True))) as image:
            inside = 0 <= left <= size[0] - wide and 0 <= top <= size[1] - high
            if image.size != (wide, high) or not inside:  # before its pixels are decoded
                raise ValueError
            mask = np.zeros((size[1], size[0]), dtype=np.uint8, order='F')
            mask[top : top + high, left : left + wide] = np.asarray(image.convert('L')) > 0
    except Exception:  # each decoder has its own exceptions
        raise Fault(f'has in shape {number} a mask that is no picture of its box') from None
    runs = mask_util.encode(mask)
    return dict(size=list(runs['size']), counts=runs['counts'].decode())


def read(content: bytes, size: tuple[int, int], names: Sequence[str]) -> Content:
    file = annotations.parse_json(content)
    if not isinstance(file, dict) or not isinstance(file.get('shapes'), list):
        raise Fault('is no file of LabelMe: it has no list of shapes')
    things: dict[Any, Thing] = {}
    left_out = []
    for number, shape in enumerate(file['shapes'], 1):
        label = shape.get('label') if isinstance(shape, dict) else None
        if not isinstance(label, str) or not label:
            raise Fault(f'has no label in shape {number}')
        kind, points = outline(shape, number)
        group = shape.get('group_id')
        key = (label, group) if isinstance(group, int | str) else number
        if kind == 'rectangle':
            things[number] = Thing(label, annotations.around([points]))
        elif kind == 'mask':
            x0, y0, x1, y1 = annotations.around([points])
            runs = painted(shape, points, size, number)
            things[number] = Thing(label, (x0, y0, x1 + 1, y1 + 1), runs=runs)
        elif kind in ('polygon', 'circle'):
            polygons = [*(things[key].polygons if key in things else []), points]
            things[key] = Thing(label, annotations.around(polygons), polygons)
        else:
            left_out.append(f'shapes of the kind {kind}')
    sides = file.get('imageWidth'), file.get('imageHeight')
    if not all(side is None or isinstance(side, int) for side in sides):
        raise Fault(f'gives its image the size {sides[0]!r:.20} x {sides[1]!r:.20}')
    return Content([*things.values()], None if None in sides else sides, left_out)


FORMAT = annotations.Format('.json', read)


def main() -> None:
    annotations.main(__doc__, FORMAT)


if __name__ == '__main__':
    cli.run(main)
