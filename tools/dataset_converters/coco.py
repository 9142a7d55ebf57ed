"""Unpack the official archives of COCO 2017 for object detection and instance segmentation.

    python tools/dataset_converters/coco.py SRC data/coco

SRC holds train2017.zip, val2017.zip and annotations_trainval2017.zip as downloaded. OUT becomes
OUT/{train2017,val2017}/*.jpg and OUT/annotations/instances_{train,val}2017.json. COCO states no
checksums of the archives: every file is checked against the CRC-32 in its zip. A second call goes on after
an interruption. See docs/data.md.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from archives import Archive, Part, prepare, unpack_zip

from grootv import cli

PAGE = 'https://cocodataset.org/#download'
TRAIN = Archive('train2017.zip', PAGE)
VAL = Archive('val2017.zip', PAGE)
ANNOTATIONS = Archive('annotations_trainval2017.zip', PAGE)


def part(path: str, archive: Archive, files: str, count: int) -> Part:
    return Part(path, (archive,), files, count, partial(unpack_zip, path))


PARTS = [
    part('val2017', VAL, r'\d{12}\.jpg', 5_000),
    part('train2017', TRAIN, r'\d{12}\.jpg', 118_287),
    part('annotations/instances_val2017.json', ANNOTATIONS, '', 1),
    part('annotations/instances_train2017.json', ANNOTATIONS, '', 1),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('src', type=Path, help='folder of the three zip archives')
    parser.add_argument('out', type=Path, help='folder to create, for example data/coco')
    args = parser.parse_args()
    with cli.stoppable(lambda: '; the same command goes on from here'):
        prepare('coco', PARTS, args.src, args.out)


if __name__ == '__main__':
    cli.run(main)
