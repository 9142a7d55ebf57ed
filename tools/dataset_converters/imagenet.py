"""Unpack the official archives of ImageNet-1K (ILSVRC2012), or check a folder of it.

    python tools/dataset_converters/imagenet.py SRC data/imagenet [--check] [--meta]
    python tools/dataset_converters/imagenet.py data/imagenet --check

SRC holds ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz as downloaded. OUT
becomes OUT/{train,val}/WNID/*.JPEG; the WordNet ids in their order are the classes 0 to 999. A second call
continues after an interruption. See docs/data.md.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
import re
import sys
import tarfile
from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import count
from pathlib import Path

import mat4py
from rich.progress import track
from timm.data.imagenet_info import ImageNetInfo
from torchvision.datasets.imagenet import ARCHIVE_META

sys.path.insert(0, str(Path(__file__).resolve().parent))

import archives
from archives import Archive, Part

from grootv import cli
from grootv.errors import UserError
from grootv.files import write_atomically

PAGE = 'https://image-net.org/challenges/LSVRC/2012/2012-downloads.php'
TRAIN, VAL, DEVKIT = (
    Archive(name, PAGE, md5) for name, md5 in (ARCHIVE_META[key] for key in ('train', 'val', 'devkit'))
)
WNIDS = tuple(ImageNetInfo('imagenet-1k').label_names())
NAMED = 5  # how many of the missing things a sentence names


def train_places(paths: list[Path]) -> Callable[[str], str | None]:
    """The classes, each a tar in the tar."""
    return lambda name: name if re.fullmatch(r'n\d{8}\.tar', name) else None


def val_places(paths: list[Path]) -> Callable[[str], str | None]:
    """The images of a flat tar, in one folder a class."""
    names = (f'ILSVRC2012_val_{number:08d}.JPEG' for number in count(1))
    return {name: f'{wnid}/{name}' for wnid, name in zip(validation_wnids(paths[1]), names, strict=False)}.get


def validation_wnids(devkit: Path) -> list[str]:
    """WordNet ids of the validation images, in the order of their numbers."""
    folder = DEVKIT.name.removesuffix('.tar.gz') + '/data/'
    with tarfile.open(devkit, 'r:gz') as archive:
        meta = mat4py.loadmat(BytesIO(archive.extractfile(folder + 'meta.mat').read()))['synsets']
        truth = archive.extractfile(folder + 'ILSVRC2012_validation_ground_truth.txt').read()
    wnids = dict(zip(meta['ILSVRC2012_ID'], meta['WNID'], strict=True))
    return [wnids[int(line)] for line in truth.split()]


PARTS = [
    Part('val', (VAL, DEVKIT), r'n\d{8}/ILSVRC2012_val_\d{8}\.JPEG', 50_000, val_places),
    Part('train', (TRAIN,), r'(n\d{8})/\1_\d+\.JPEG', 1_281_167, train_places),
]


def check(out: Path) -> None:
    """Report missing classes, missing or empty images, and folders of no class, by a UserError."""
    faults = [f'{out / part.path} {fault}' for part in PARTS for fault in find_faults(out, part)]
    if faults:
        raise UserError('; '.join(faults) + f': move it away and unpack the archives of {PAGE} again')
    print(f'{out} is complete: {archives.describe(PARTS)}')


def find_faults(out: Path, part: Part) -> list[str]:
    """What is wrong with a part, in half sentences."""
    place, listed, faults = out / part.path, meta_file(out, part), []
    if not place.is_dir():
        return ['does not exist']

    def report(verb: str, names: Sequence[str], what: str) -> None:
        if names:
            more = ', ...' if len(names) > NAMED else ''
            faults.append(f'{verb} {len(names):,} {what} ({", ".join(names[:NAMED])}{more})')

    if listed.is_file():  # mmpretrain reads it, and takes no class from a folder's name
        images = [line.rpartition(' ')[0] for line in listed.read_text().splitlines()]
    else:
        folders = {path.name for path in place.glob('*') if path.is_dir()}
        images = list_images(place, sorted(folders))
        filled = {name.split('/')[0] for name in images}
        report('lacks', sorted(set(WNIDS) - filled), f'of {len(WNIDS):,} classes')
        report('has', sorted(folders - set(WNIDS)), 'folders of no class')
    if part.path == 'val':
        expected = {f'ILSVRC2012_val_{number:08d}.JPEG' for number in range(1, part.count + 1)}
        report('lacks', sorted(expected - {Path(name).name for name in images}), 'images')
    if len(images) != part.count:
        faults.append(f'has {len(images):,} images instead of {part.count:,}')
    shown = track(images, f'checking {part.path}', transient=True, disable=not sys.stdout.isatty())
    empty = [name for name in shown if not ((place / name).is_file() and (place / name).stat().st_size)]
    report('has', empty, 'missing or empty images')
    return faults


def list_images(place: Path, folders: Sequence[str]) -> list[str]:
    """Paths below ``place``, ordered as mmpretrain orders them."""
    return [f'{name}/{image.name}' for name in folders for image in sorted((place / name).glob('*.JPEG'))]


def meta_file(out: Path, part: Part) -> Path:
    return out / 'meta' / f'{part.path}.txt'


def write_meta(out: Path) -> None:
    """Write mmpretrain's lists, an image and its class a line, where there are none."""
    for part in PARTS:
        path = meta_file(out, part)
        if not path.is_file():
            with write_atomically(path) as draft, draft.open('w') as file:
                for label, wnid in enumerate(WNIDS):
                    images = list_images(out / part.path, [wnid])
                    file.writelines(f'{name} {label}\n' for name in images)
        print(f'{path}: {part.count:,} lines')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('src', type=Path, nargs='?', help='folder of the three tar archives')
    parser.add_argument('out', type=Path, help='folder to create, for example data/imagenet')
    parser.add_argument('--check', action='store_true', help='look for what is missing in OUT')
    parser.add_argument('--meta', action='store_true', help='write OUT/meta/{train,val}.txt as well')
    args = parser.parse_args()
    if args.src is None and not args.check:
        parser.error('give SRC OUT, or OUT --check')
    with archives.stoppable():
        if args.src is not None:
            archives.prepare('imagenet', PARTS, args.src, args.out)
        if args.check:
            check(args.out)
        if args.meta:
            write_meta(args.out)


if __name__ == '__main__':
    cli.run(main)
