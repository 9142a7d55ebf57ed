"""Unpack the official archive of ADE20K for scene parsing: 150 classes, ADEChallengeData2016.

    python tools/dataset_converters/ade20k.py SRC data/ade

SRC holds ADEChallengeData2016.zip as downloaded. OUT becomes OUT/{images,annotations}/{training,validation},
without the folder ADEChallengeData2016 in between. Its publisher states no checksum: every file is checked
against the CRC-32 in the zip. A second call continues after an interruption. See docs/data.md.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import archives

from grootv import cli

ARCHIVE = archives.Archive('ADEChallengeData2016.zip', 'http://sceneparsing.csail.mit.edu')


def part(path: str, files: str, count: int) -> archives.Part:
    places = archives.below(f'ADEChallengeData2016/{path}', files)
    return archives.Part(path, (ARCHIVE,), files, count, places)


PARTS = [
    part('images/validation', r'ADE_val_\d{8}\.jpg', 2_000),
    part('images/training', r'ADE_train_\d{8}\.jpg', 20_210),
    part('annotations/validation', r'ADE_val_\d{8}\.png', 2_000),
    part('annotations/training', r'ADE_train_\d{8}\.png', 20_210),
]


def main() -> None:
    archives.main(__doc__, 'ade20k', PARTS)


if __name__ == '__main__':
    cli.run(main)
