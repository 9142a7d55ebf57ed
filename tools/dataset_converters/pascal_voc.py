"""Convert Pascal VOC's XML files to a COCO file for detection.

    python tools/dataset_converters/pascal_voc.py Annotations JPEGImages train.json --list train.txt

Corners are pixels counted from 1, the last one included, as VOC defines them. Difficult objects count for
nothing, neither found nor missed. See docs/data.md.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

sys.path.insert(0, str(Path(__file__).resolve().parent))

import annotations
from annotations import Content, Fault, Thing

from grootv import cli

MARKS = {'0': False, 'false': False, 'unspecified': False, '1': True, 'true': True}  # of difficult objects


def parse(content: bytes) -> ElementTree.Element:
    """An XML document without a document type, which could define entities that expand without end."""

    def refuse(*_) -> None:
        raise Fault('has a document type, which VOC does not use')

    scan = expat.ParserCreate()
    scan.StartDoctypeDeclHandler = refuse
    try:
        scan.Parse(content, True)
        return ElementTree.fromstring(content)
    except (expat.ExpatError, ElementTree.ParseError, LookupError, ValueError) as error:
        raise Fault(f'is cut short or no XML ({error})') from error


def numbers(node: ElementTree.Element | None, names: Sequence[str], place: str) -> list[float]:
    """Children of an element as numbers."""
    try:
        found = [float(node.findtext(name, '')) for name in names]
        if not all(map(math.isfinite, found)):
            raise ValueError
        return found
    except (AttributeError, ValueError):
        raise Fault(f'has in {place} no numbers {", ".join(names)}') from None


def read(content: bytes, size: tuple[int, int], names: Sequence[str]) -> Content:
    root, things, left_out = parse(content), [], []
    for number, node in enumerate(root.iterfind('object'), 1):
        name = (node.findtext('name') or '').strip()
        if not name:
            raise Fault(f'has no name in object {number}')
        x0, y0, x1, y1 = numbers(node.find('bndbox'), ('xmin', 'ymin', 'xmax', 'ymax'), f'object {number}')
        difficult = (node.findtext('difficult') or '0').strip().lower()
        if difficult not in MARKS:
            raise Fault(f'has in object {number} difficult={difficult:.20}, which is 1 or 0')
        if x0 > x1 or y0 > y1:
            left_out.append('with corners in the wrong order')
            continue
        things.append(Thing(name, (x0 - 1, y0 - 1, x1, y1), crowd=MARKS[difficult]))
    noted = root.find('size')
    wide, high = (0, 0) if noted is None else map(int, numbers(noted, ('width', 'height'), 'size'))
    size_or_none = (wide, high) if wide and high else None  # some tools leave zeros
    return Content(things, size_or_none, left_out)


FORMAT = annotations.Format('.xml', read)


def main() -> None:
    annotations.main(__doc__, FORMAT)


if __name__ == '__main__':
    cli.run(main)
