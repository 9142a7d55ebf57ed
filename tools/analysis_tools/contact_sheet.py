"""Put the first pictures of a folder on one sheet.

    python tools/test.py CONFIG CHECKPOINT --show-dir pictures
    python tools/analysis_tools/contact_sheet.py pictures --out sheet.png

The pictures that ``--show-dir`` leaves show the annotation on the left and the prediction on the right.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from grootv import cli
from grootv.errors import UserError
from grootv.files import write_named

ENDINGS = {'.png', '.jpg', '.jpeg'}
GAP = 6


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


def sheet(paths: list[Path], columns: int, scale: float) -> Image.Image:
    """Pictures row by row on white, each centred in a cell of the largest one's size."""
    images = []
    for path in paths:
        try:
            image = Image.open(path).convert('RGB')
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(
                f'picture {path} cannot be read ({error}): remove it, or make it again'
            ) from error
        size = tuple(round(scale * side) for side in image.size)
        images.append(image.resize(size, Image.Resampling.LANCZOS))
    width, height = (max(image.size[side] for image in images) + GAP for side in (0, 1))
    rows = -(-len(images) // columns)
    page = Image.new('RGB', (width * min(columns, len(images)) + GAP, height * rows + GAP), 'white')
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        x = GAP + column * width + (width - GAP - image.width) // 2
        y = GAP + row * height + (height - GAP - image.height) // 2
        page.paste(image, (x, y))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path, help='folder of pictures, searched with its subfolders')
    parser.add_argument('--out', type=cli.picture, required=True, help='picture to write')
    parser.add_argument('--count', type=int, default=8, help='number of pictures')
    parser.add_argument('--columns', type=int, default=2, help='pictures in a row')
    parser.add_argument('--scale', type=float, default=1.0, help='enlargement of each picture')
    args = parser.parse_args()
    if min(args.count, args.columns) < 1 or args.scale <= 0:
        raise UserError(
            f'contact_sheet: --count, --columns and --scale must be positive, '
            f'got {args.count}, {args.columns}, {args.scale}'
        )
    page = sheet(pictures(args.folder, args.count), args.columns, args.scale)
    with write_named(args.out) as draft:
        page.save(draft)
    print(f'sheet: {args.out}')


if __name__ == '__main__':
    cli.run(main)
