"""Convert masks of colours to label maps of class numbers for segmentation.

    python tools/dataset_converters/colour_masks.py masks/train labels/train --colours colours.txt

A line of the colours is a name and three numbers from 0 to 255, in either order, separated by blanks or
commas; the first class gets number 0. The name "none" stands for pixels that count for nothing, 255. A
second call continues after an interruption. See docs/data.md.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parent))

from annotations import by_stem, read_text

from grootv import cli
from grootv.datasets.images import IMAGE_SUFFIXES, has_deep_pixels, unreadable
from grootv.datasets.summary import aligned
from grootv.errors import UserError, first
from grootv.files import write_named

NONE = 255


def read_colours(path: Path) -> dict[str, tuple[int, int, int]]:
    """Colours by the names of the classes, in their order."""
    colours: dict[str, tuple[int, int, int]] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = [word for word in re.split(r'[\s,;]+', line.strip()) if word]
        if not words or (number == 1 and [word.lower() for word in words][-3:] == ['r', 'g', 'b']):
            continue
        if len(words) > 3 and all(word.isdecimal() for word in words[:4]):
            raise UserError(
                f'--colours {path}, line {number}: {line!r:.60} begins with more than the three numbers of a '
                'colour: leave out the number of the class, or put the name first'
            )
        first_three = all(word.isdecimal() for word in words[:3])
        rgb, name = (words[:3], words[3:]) if first_three else (words[-3:], words[:-3])
        if len(rgb) < 3 or not name or not all(word.isdecimal() and int(word) < 256 for word in rgb):
            raise UserError(
                f'--colours {path}, line {number}: a name and three numbers from 0 to 255 are needed, got '
                f'{line!r:.60}'
            )
        red, green, blue = map(int, rgb)
        if ' '.join(name) in colours or (red, green, blue) in colours.values():
            raise UserError(
                f'--colours {path}, line {number}: {line!r:.60} repeats a name or a colour, remove one'
            )
        colours[' '.join(name)] = red, green, blue
    classes = len(colours.keys() - {'none'})
    if not 0 < classes <= NONE:
        raise UserError(f'--colours {path} names {classes} classes, and 1 to {NONE} are possible')
    return colours


def numbers_of(colours: dict[str, tuple[int, int, int]]) -> np.ndarray:
    """Label of every colour, at red * 65536 + green * 256 + blue; 256 where there is none."""
    labels = np.full(1 << 24, 256, dtype=np.uint16)
    for number, name in enumerate(name for name in colours if name != 'none'):
        labels[code(colours[name])] = number
    if 'none' in colours:
        labels[code(colours['none'])] = NONE
    return labels


def code(rgb: tuple[int, int, int]) -> int:
    return rgb[0] << 16 | rgb[1] << 8 | rgb[2]


def read_labels(path: Path, labels: np.ndarray, others_as_none: bool) -> np.ndarray:
    """The label map of a mask, and 256 for colours without a name unless they are to be none."""
    try:
        with Image.open(path) as image:
            if has_deep_pixels(image):
                raise ValueError('its pixels have more than eight bits, which are no colours')
            pixels = np.asarray(image.convert('RGB'), dtype=np.uint32)
    except Exception as error:  # each decoder has its own exceptions
        raise unreadable(str(path), error) from None
    codes = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    found = labels[codes]
    unnamed = found == 256
    if unnamed.any() and not others_as_none:
        values, counts = np.unique(codes[unnamed], return_counts=True)
        most = int(values[counts.argmax()])
        raise UserError(
            f'mask {path} has {unnamed.sum()} pixels of {len(values)} colours that --colours does not name, '
            f'most of them {most >> 16} {most >> 8 & 255} {most & 255}: name it, or add --others-as-none'
        )
    return found


def convert(src: Path, out: Path, table: Path, others_as_none: bool = False) -> None:
    """Write the label maps to a hidden folder, which gets its name when all are there.

    Raises:
        UserError: If OUT exists, a mask cannot be read, or a colour has no name.
    """
    if out.exists():
        raise UserError(f'{out} exists: remove it, or give another folder')
    colours, masks = read_colours(table), by_stem(src, IMAGE_SUFFIXES)
    if not masks:
        raise UserError(f'{src} holds no image: check the folder')
    labels, draft = numbers_of(colours), out.with_name(f'.{out.name}.partial')
    made, settings = draft / '.settings.json', json.dumps([str(src.resolve()), colours, others_as_none])
    if draft.exists() and (not made.is_file() or made.read_text() != settings):
        shutil.rmtree(draft)  # of other colours
    draft.mkdir(parents=True, exist_ok=True)
    made.write_text(settings)
    counts, other = np.zeros(257, dtype=np.int64), []
    for name, path in track([*masks.items()], 'masks', transient=True, disable=not sys.stdout.isatty()):
        found, target = read_labels(path, labels, others_as_none), draft / f'{name}.png'
        counts += np.bincount(found.ravel(), minlength=257)
        if (found == 256).any():
            other.append(name)
        if not target.is_file() or target.stat().st_mtime_ns != path.stat().st_mtime_ns:
            with write_named(target) as file:
                Image.fromarray(np.minimum(found, NONE).astype(np.uint8)).save(file)
            os.utime(target, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    for stale in by_stem(draft, ('.png',)).items():
        if stale[0] not in masks:  # of a mask that was there at an earlier call
            stale[1].unlink()
    made.unlink()
    draft.replace(out)
    classes = [name for name in colours if name != 'none']
    shares = 100 * counts / max(1, counts.sum())
    rows = [['number', 'class', '% of pixels']]
    rows += [[str(number), name, f'{shares[number]:.3g}'] for number, name in enumerate(classes)]
    rows += [[str(NONE), 'none', f'{shares[NONE] + shares[256]:.3g}']]
    print('\n'.join(aligned(rows)))
    empty = [name for name, count in zip(classes, counts, strict=False) if not count]
    if empty:
        print(f'no pixel of {first(empty)}')
    if other:
        print(
            f'left out as none, colours without a name: {counts[256]} pixels of {len(other)} masks '
            f'({first(other)})'
        )
    print(f'{out}: {len(masks)} label maps, {len(classes)} classes')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('src', type=Path, help='folder of the masks')
    parser.add_argument('out', type=Path, help='folder to create')
    parser.add_argument('--colours', type=Path, required=True, help='text of the classes and their colours')
    parser.add_argument(
        '--others-as-none', action='store_true', help='colours without a name count for nothing'
    )
    args = parser.parse_args()
    with cli.stoppable(lambda: '; the same command continues from here'):
        convert(args.src, args.out, args.colours, args.others_as_none)


if __name__ == '__main__':
    cli.run(main)
