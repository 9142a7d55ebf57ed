"""Convert YOLO's label files to a COCO file for detection.

    python tools/dataset_converters/yolo.py labels/train images/train train.json --classes data.yaml

A line of a label file is a class's number, the centre, width and height of a box, or the points of a polygon,
as shares of the image. An image without a label file is one without objects. See docs/data.md.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import annotations
from annotations import Content, Fault, Thing

from grootv import cli

SLACK = 0.01  # by which rounded shares may leave the image


def read(content: bytes, size: tuple[int, int], names: Sequence[str]) -> Content:
    things = []
    for number, line in enumerate(annotations.decoded(content).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            label, shares = int(words[0]), [float(word) for word in words[1:]]
        except ValueError:
            raise Fault(f'has in line {number} no numbers ({line[:60]!r})') from None
        if not 0 <= label < len(names):
            raise Fault(f'has in line {number} the class {label}, and --classes names 0 to {len(names) - 1}')
        if len(shares) != 4 and (len(shares) < 6 or len(shares) % 2):
            raise Fault(
                f'has in line {number} {len(words)} numbers, where a class and 4 of a box, or 3 or more '
                'points are needed'
            )
        if not all(-SLACK <= share <= 1 + SLACK for share in shares):
            raise Fault(
                f'has in line {number} coordinates that are no shares of the image from 0 to 1 '
                f'({line[:60]!r})'
            )
        pixels = [share * size[place % 2] for place, share in enumerate(shares)]
        if len(shares) == 4:
            x, y, width, height = pixels
            things.append(Thing(names[label], (x - width / 2, y - height / 2, x + width / 2, y + height / 2)))
        else:
            things.append(Thing(names[label], annotations.around([pixels]), [pixels]))
    return Content(things)


FORMAT = annotations.Format('.txt', read, background=True, needs_classes=True)


def main() -> None:
    annotations.main(__doc__, FORMAT)


if __name__ == '__main__':
    cli.run(main)
