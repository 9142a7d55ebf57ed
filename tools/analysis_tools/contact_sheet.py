"""Put the first pictures of a folder on one sheet.

    python tools/test.py CONFIG CHECKPOINT --show-dir pictures
    python tools/analysis_tools/contact_sheet.py pictures --header annotated predicted --out sheet.png

The pictures of detection and segmentation that ``--show-dir`` leaves show the annotation on the left and the
prediction on the right.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from grootv import cli
from grootv.errors import UserError
from grootv.files import write_named
from grootv.visualization.sheet import sheet

ENDINGS = {'.png', '.jpg', '.jpeg'}


def pictures(folder: Path, count: int) -> list[Path]:
    """The first ``count`` pictures below a folder, ordered by name.

    Raises:
        UserError: If there are none.
    """
    if not folder.is_dir():
        raise UserError(f'folder {folder} does not exist: give the one of --show-dir')
    found = sorted(path for path in folder.rglob('*') if path.suffix.lower() in ENDINGS)
    if not found:
        raise UserError(f'folder {folder} holds no {" or ".join(sorted(ENDINGS))} picture')
    return found[:count]


def read(path: Path, scale: float) -> Image.Image:
    """A picture, enlarged."""
    try:
        image = Image.open(path).convert('RGB')
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f'picture {path} cannot be read ({error}): remove it, or make it again') from error
    size = tuple(max(1, round(scale * side)) for side in image.size)
    return image.resize(size, Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path, help='folder of pictures, searched with its subfolders')
    parser.add_argument('--out', type=cli.picture, required=True, help='picture to write')
    parser.add_argument('--count', type=int, default=8, help='number of pictures')
    parser.add_argument('--columns', type=int, default=2, help='pictures in a row')
    parser.add_argument('--scale', type=float, default=1.0, help='enlargement of each picture')
    parser.add_argument(
        '--header', nargs='+', default=(), help='texts above equal parts of a picture, from the left'
    )
    args = parser.parse_args()
    if min(args.count, args.columns) < 1 or args.scale <= 0:
        raise UserError(
            f'contact_sheet: --count, --columns and --scale must be positive, '
            f'got {args.count}, {args.columns}, {args.scale}'
        )
    shown = [
        (str(path.relative_to(args.folder)), read(path, args.scale))
        for path in pictures(args.folder, args.count)
    ]
    page = sheet(f'{args.folder}, {len(shown)} pictures', shown, args.columns, args.header)
    with write_named(args.out) as draft:
        page.save(draft)
    print(f'sheet: {args.out}')


if __name__ == '__main__':
    cli.run(main)
