"""Unpack the official archives of COCO 2017 for object detection and instance segmentation.

    python tools/dataset_converters/coco.py SRC data/coco

SRC holds train2017.zip, val2017.zip and annotations_trainval2017.zip as downloaded. OUT becomes
OUT/{train2017,val2017}/*.jpg and OUT/annotations/instances_{train,val}2017.json. COCO states no
checksums of the archives: every file is checked against the CRC-32 in its zip. A second call continues after
an interruption. See docs/data.md.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import archives

from grootv import cli


def part(path: str, archive: str, files: str, count: int) -> archives.Part:
    official = archives.Archive(f'{archive}2017.zip', 'https://cocodataset.org/#download')
    return archives.Part(path, (official,), files, count, archives.below(path, files))


PARTS = [
    part('val2017', 'val', r'\d{12}\.jpg', 5_000),
    part('train2017', 'train', r'\d{12}\.jpg', 118_287),
    part('annotations/instances_val2017.json', 'annotations_trainval', '', 1),
    part('annotations/instances_train2017.json', 'annotations_trainval', '', 1),
]


def main() -> None:
    archives.main(__doc__, 'coco', PARTS)


if __name__ == '__main__':
    cli.run(main)
