"""What the converters of annotations to COCO's format share: pair, read, check, report, write.

A converter reads one file of annotations an image. Files and images belong together by their paths without
ending. Nothing is written before all is read, and files from others run no code: XML without a document type,
YAML and JSON as data, sizes bounded.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from pycocotools import mask as mask_util
from rich.progress import track

from grootv import cli
from grootv.datasets.images import IMAGE_SUFFIXES, unreadable, upright_size
from grootv.datasets.summary import aligned
from grootv.errors import UserError, first
from grootv.files import write_atomically

MOST_BYTES = 1 << 28  # of a file of annotations; LabelMe's may hold the image


@dataclass
class Thing:
    """An annotated object in pixels.

    Attributes:
        name: Class.
        box: Left, top, right and bottom.
        polygons: Points x, y, ... of each part; empty for a mere box.
        runs: A painted mask as COCO's run lengths, in place of polygons.
        crowd: Whether it counts for nothing, neither found nor missed.
    """

    name: str
    box: tuple[float, float, float, float]
    polygons: list[list[float]] = field(default_factory=list)
    crowd: bool = False
    runs: dict[str, Any] | None = None


@dataclass
class Content:
    """What a file of annotations holds.

    Attributes:
        things: The objects.
        size: Width and height of the image as the file has them.
        left_out: Reasons why others are left out.
    """

    things: list[Thing]
    size: tuple[int, int] | None = None
    left_out: list[str] = field(default_factory=list)


class Fault(Exception):
    """What is wrong with a file, to follow its name."""


@dataclass
class Format:
    """A format of annotations.

    Attributes:
        suffix: End of its files.
        read: The content of a file; gets its bytes, the image's width and height, and the classes.
        background: Whether an image without a file is one without objects, and not left out.
        needs_classes: Whether its files number the classes.
    """

    suffix: str
    read: Callable[[bytes, tuple[int, int], Sequence[str]], Content]
    background: bool = False
    needs_classes: bool = False


def main(doc: str, form: Format) -> None:
    """The command line of a converter."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument('src', type=Path, help=f'folder of the annotations, *{form.suffix}')
    parser.add_argument('images', type=Path, help='folder of the images, with the same subfolders')
    parser.add_argument('out', type=Path, help='file to write, for example train.json')
    parser.add_argument(
        '--classes',
        type=Path,
        required=form.needs_classes,
        help='names in their order: a text of a name a line, the data.yaml of YOLO, or a COCO file, such as '
        'that of the training; default: all that are found, in the order of the alphabet',
    )
    parser.add_argument('--list', type=Path, help='text of the images to take, a path without ending a line')
    args = parser.parse_args()
    with cli.stoppable():
        convert(form, args.src, args.images, args.out, args.classes, args.list)


def convert(
    form: Format, src: Path, images: Path, out: Path, classes: Path | None = None, listed: Path | None = None
) -> None:
    """Write a COCO file, and print what it holds and what was left out.

    Raises:
        UserError: If a file is wrong, or nothing is left; OUT is not written then.
    """
    if out.exists():
        raise UserError(f'{out} exists: remove it, or give another file')
    names = read_classes(classes) if classes else []
    left_out: dict[str, list[str]] = {}
    pairs = pair(form, src, images, listed, left_out)
    records, found = [], []
    shown = track(sorted(pairs.items()), 'annotations', transient=True, disable=not sys.stdout.isatty())
    for stem, (image, file) in shown:
        size = size_of(image)
        content = read_file(form, file, size, names) if file else Content([])
        if content.size is not None and content.size != size:
            raise UserError(
                f'image {image} is {size[0]} x {size[1]} pixels upright, and {file} gives it '
                f'{content.size[0]} x {content.size[1]}: fix the file, or put the annotated image there'
            )
        for reason in content.left_out:
            left_out.setdefault(reason, []).append(stem)
        kept = []
        for thing in content.things:
            box = clipped(thing, size)
            if names and thing.name not in names:
                left_out.setdefault(f'of the class {thing.name}', []).append(stem)
            elif box is None:
                left_out.setdefault('outside the image or smaller than a pixel', []).append(stem)
            else:
                kept.append(box)
        records.append((image.relative_to(images).as_posix(), size, kept))
        found += kept
    if not found:
        raise UserError(
            f'{src} holds no object for the images of {images}: check both folders'
            + (f', {classes}' if classes else '')
        )
    names = names or sorted({thing.name for thing in found})
    with write_atomically(out) as draft:
        draft.write_text(json.dumps(coco(records, names)))
    print('\n'.join(report(records, names, left_out)))
    print(f'{out}: {len(records)} images, {len(found)} annotations, {len(names)} classes')


def pair(
    form: Format, src: Path, images: Path, listed: Path | None, left_out: dict[str, list[str]]
) -> dict[str, tuple[Path, Path | None]]:
    """Image and file of annotations by their common path without ending."""
    pictures, files = by_stem(images, IMAGE_SUFFIXES), by_stem(src, (form.suffix,))
    if listed is not None:
        wanted = [line.strip() for line in read_text(listed).splitlines() if line.strip()]
        absent = [name for name in wanted if name not in pictures]
        if absent:
            raise UserError(
                f'--list {listed} names images that {images} does not have ({first(absent)}): list paths '
                'without ending, one a line'
            )
        pictures = {name: pictures[name] for name in wanted}
        files = {name: file for name, file in files.items() if name in pictures}
    if not pictures:
        raise UserError(f'{images} holds no image: check the folder')
    alone, bare = sorted(files.keys() - pictures.keys()), sorted(pictures.keys() - files.keys())
    alone = [name for name in alone if name != 'classes']  # of YOLO
    if alone:
        left_out['annotations without an image'] = alone
    if bare:
        key = 'images without annotations' + (', which are background' if form.background else '')
        left_out[key] = bare
    return {
        name: (path, files.get(name)) for name, path in pictures.items() if name in files or form.background
    }


def by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files below a folder by their paths without ending; hidden ones are passed over."""
    if not folder.is_dir():
        raise UserError(f'folder {folder} does not exist: check the path')
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob('*')):
        relative = path.relative_to(folder)
        if path.suffix.lower() in suffixes and not any(part[0] == '.' for part in relative.parts):
            name = relative.with_suffix('').as_posix()
            if name in found:
                raise UserError(
                    f'{folder} has two files for {name}, {found[name].name} and {path.name}: remove one'
                )
            found[name] = path
    return found


def read_file(form: Format, path: Path, size: tuple[int, int], names: Sequence[str]) -> Content:
    try:
        return form.read(read_bytes(path), size, names)
    except Fault as error:
        raise UserError(f'annotation file {path} {error}: fix the file, or remove it') from error


def read_bytes(path: Path) -> bytes:
    try:
        with path.open('rb') as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f'file {path} cannot be read ({error.strerror}): check the path') from error
    if len(content) > MOST_BYTES:
        raise UserError(f'file {path} has more than {MOST_BYTES >> 20} MiB: give one of annotations')
    return content


def read_text(path: Path) -> str:
    try:
        return decoded(read_bytes(path))
    except Fault as error:
        raise UserError(f'file {path} {error}: save it as UTF-8') from error


def decoded(content: bytes) -> str:
    try:
        return content.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise Fault(f'is no text in UTF-8 (byte {error.start})') from error


def parse_json(content: bytes) -> Any:
    try:
        return json.loads(decoded(content))
    except (ValueError, RecursionError) as error:
        raise Fault(f'is cut short or no JSON ({" ".join(str(error).split()):.80})') from error


def read_classes(path: Path) -> list[str]:
    """Names of classes from a text, YOLO's data.yaml, or a COCO file."""
    text = read_text(path)
    if path.suffix.lower() in ('.yaml', '.yml', '.json'):
        try:
            content = parse_json(text.encode()) if path.suffix.lower() == '.json' else yaml.safe_load(text)
        except (Fault, yaml.YAMLError, RecursionError, ValueError) as error:
            raise UserError(
                f'--classes {path} does not parse ({" ".join(str(error).split()):.100})'
            ) from error
        if isinstance(content, Mapping) and 'kpt_shape' in content:
            raise UserError(
                f'--classes {path} is of key points, which are no polygons: give one of boxes or masks'
            )
        names = content.get('names') if isinstance(content, Mapping) else content
        if isinstance(content, Mapping) and isinstance(content.get('categories'), list):
            names = [each.get('name') for each in content['categories'] if isinstance(each, Mapping)]
        if isinstance(names, Mapping):
            names = [names[key] for key in range(len(names))] if [*names] == [*range(len(names))] else None
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(n, str | int) and str(n) for n in names)
    ):
        raise UserError(
            f'--classes {path} has no list of names: give a text of a name a line, a data.yaml with names '
            'numbered from 0, or a COCO file'
        )
    truths = [name for name in names if isinstance(name, bool)]
    if truths:
        raise UserError(
            f'--classes {path} holds {first(truths)} in place of a name, as YAML reads yes, no, on and off: '
            'put these names into quotes'
        )
    names = [str(name) for name in names]
    double = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if double:
        raise UserError(f'--classes {path} names {first(double)} twice: remove one')
    return names


def size_of(path: Path) -> tuple[int, int]:
    """Width and height as training reads the image."""
    try:
        with Image.open(path) as image:
            return upright_size(image)
    except Exception as error:  # each decoder has its own exceptions
        raise unreadable(str(path), error) from None


def clipped(thing: Thing, size: tuple[int, int]) -> Thing | None:
    """An object inside its image; None if less than a pixel of it is."""
    polygons = [cut(polygon, size) for polygon in thing.polygons]
    polygons = [polygon for polygon in polygons if polygon and polygon_area(polygon) > 0]
    if (thing.polygons and not polygons) or not area(thing):
        return None
    box = around(polygons) if polygons else thing.box
    x0, y0, x1, y1 = (round(min(max(value, 0), size[place % 2]), 3) for place, value in enumerate(box))
    return replace(thing, box=(x0, y0, x1, y1), polygons=polygons) if min(x1 - x0, y1 - y0) >= 1 else None


def cut(polygon: list[float], size: tuple[int, int]) -> list[float]:
    """The part of a polygon inside the image, by the method of Sutherland and Hodgman."""
    points = [*zip(polygon[::2], polygon[1::2], strict=True)]
    for axis, border, sign in ((0, 0, 1), (1, 0, 1), (0, size[0], -1), (1, size[1], -1)):
        kept = []
        for start, end in zip([*points[-1:], *points[:-1]], points, strict=True):
            before, after = (sign * (point[axis] - border) for point in (start, end))
            if before * after < 0:  # the edge crosses the border
                share = before / (before - after)
                crossing = [a + share * (b - a) for a, b in zip(start, end, strict=True)]
                crossing[axis] = border
                kept.append(tuple(crossing))
            if after >= 0:
                kept.append(end)
        points = kept
    return [round(value, 3) for point in points for value in point]


def area(thing: Thing) -> float:
    """That of the mask, of the polygons, or of the box."""
    if thing.runs:
        return float(mask_util.area(thing.runs))
    if not thing.polygons:
        x0, y0, x1, y1 = thing.box
        return (x1 - x0) * (y1 - y0)
    return sum(map(polygon_area, thing.polygons))


def polygon_area(polygon: list[float]) -> float:
    xs, ys = polygon[::2], polygon[1::2]
    pairs = zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True)
    return abs(sum(x * other_y - other_x * y for x, y, other_x, other_y in pairs)) / 2


def around(polygons: list[list[float]]) -> tuple[float, float, float, float]:
    """The box of polygons."""
    xs, ys = ([value for polygon in polygons for value in polygon[place::2]] for place in (0, 1))
    return min(xs), min(ys), max(xs), max(ys)


def coco(records: list, names: Sequence[str]) -> dict:
    """The content of a COCO file, with ids from 1."""
    numbers = {name: number for number, name in enumerate(names, 1)}
    images, annotations = [], []
    for number, (name, (width, height), things) in enumerate(records, 1):
        images.append(dict(id=number, file_name=name, width=width, height=height))
        for thing in things:
            x0, y0, x1, y1 = thing.box
            annotation: dict[str, Any] = dict(id=len(annotations) + 1, image_id=number)
            annotation |= dict(
                category_id=numbers[thing.name], bbox=[x0, y0, round(x1 - x0, 3), round(y1 - y0, 3)]
            )
            annotation |= dict(area=round(area(thing), 3), iscrowd=int(thing.crowd))
            mask = thing.runs or thing.polygons
            annotations.append(annotation | (dict(segmentation=mask) if mask else {}))
    categories = [dict(id=number, name=name) for name, number in numbers.items()]
    return dict(images=images, annotations=annotations, categories=categories)


def report(records: list, names: Sequence[str], left_out: Mapping[str, list[str]]) -> list[str]:
    """What was converted by class, and what was left out and why, in lines."""
    counts = dict.fromkeys(names, 0)
    for _, _, things in records:
        for thing in things:
            counts[thing.name] += 1
    crowds = sum(thing.crowd for _, _, things in records for thing in things)
    rows = [['class', 'annotations'], *([name, str(count)] for name, count in counts.items())]
    rows += [['difficult, which count for nothing', str(crowds)]] if crowds else []
    lines = aligned(rows)
    empty = [name for name, count in counts.items() if not count]
    lines += [f'no annotation of {first(empty)}'] if empty else []
    for reason, stems in left_out.items():
        lines.append(f'left out, {reason}: {len(stems)} ({first(dict.fromkeys(stems))})')
    return lines
