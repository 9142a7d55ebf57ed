"""Miniatures of the official archives of ImageNet-1K, COCO 2017 and ADE20K, a few images each.

:func:`imagenet`, :func:`coco` and :func:`ade20k` write the archives into a folder and return the files that
a converter makes of them; a :class:`DataSet` runs the converter.
"""

import hashlib
import io
import json
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from grootv import cli
from tests.tools.tiny_run import load_tool

TOOLS = {name: load_tool(f'dataset_converters/{name}.py') for name in ('imagenet', 'coco', 'ade20k')}
OFFICIAL = {name: tool.PARTS for name, tool in TOOLS.items()}
archives = sys.modules['archives']  # what the tools share

WNIDS = ('n01440764', 'n01443537', 'n02119789')
SYNSETS = (*reversed(WNIDS), 'n02084071', 'n00015388')  # by ILSVRC2012_ID; the last two have children
TRUTH = (1, 3, 3, 2)
COUNTS = {
    'imagenet': {'train': 6, 'val': 4},
    'coco': {'train2017': 3, 'val2017': 2}
    | {f'annotations/instances_{side}2017.json': 1 for side in ('train', 'val')},
    'ade20k': {
        f'{kind}/{side}': count
        for kind in ('images', 'annotations')
        for side, count in (('training', 3), ('validation', 2))
    },
}


def image(name: str) -> bytes:
    """An image file that no other name has."""
    noise = np.random.default_rng(list(name.encode()))
    pixels = noise.integers(0, 151, (8, 8) if name.endswith('png') else (8, 8, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'PNG' if name.endswith('png') else 'JPEG')
    return buffer.getvalue()


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, 'w') as archive:
        for folder in sorted({str(Path(name).parent) + '/' for name in files}):
            archive.writestr(folder, b'')
        for name, content in files.items():
            packed = zipfile.ZIP_DEFLATED if name.endswith('json') else zipfile.ZIP_STORED
            archive.writestr(name, content, compress_type=packed)


def tar(files: dict[str, bytes], mode: str = 'w') -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def meta_mat() -> bytes:
    """The table of classes in the devkit, with the fields that come first in the official one."""
    fields = ('ILSVRC2012_ID', 'WNID', 'words', 'gloss', 'num_children', 'children')
    synsets = np.empty((len(SYNSETS), 1), [(field, object) for field in fields])
    for index, wnid in enumerate(SYNSETS):
        children = [[1.0, 2.0], [3.0]][index - 3] if index > 2 else np.zeros((0, 0))
        synsets[index, 0] = (index + 1, wnid, f'{wnid}, thing', 'a thing', float(np.size(children)), children)
    buffer = io.BytesIO()
    savemat(buffer, {'synsets': synsets}, do_compression=True)
    return buffer.getvalue()


def imagenet(src: Path) -> dict[str, bytes]:
    names = {
        wnid: [f'{wnid}_{10 * number}.JPEG' for number in range(1, count + 1)]
        for wnid, count in zip(WNIDS, (3, 2, 1), strict=True)
    }
    classes = {f'{wnid}.tar': tar({name: image(name) for name in names[wnid]}) for wnid in WNIDS}
    (src / 'ILSVRC2012_img_train.tar').write_bytes(tar(classes))
    val = [f'ILSVRC2012_val_{number:08d}.JPEG' for number in range(1, 5)]
    (src / 'ILSVRC2012_img_val.tar').write_bytes(tar({name: image(name) for name in reversed(val)}))
    folder = 'ILSVRC2012_devkit_t12/data/'
    truth = ''.join(f'{label}\n' for label in TRUTH).encode()
    devkit = {folder + 'meta.mat': meta_mat(), folder + 'ILSVRC2012_validation_ground_truth.txt': truth}
    (src / 'ILSVRC2012_devkit_t12.tar.gz').write_bytes(tar(devkit, 'w:gz'))
    files = {f'train/{wnid}/{name}': image(name) for wnid in WNIDS for name in names[wnid]}
    return files | {
        f'val/{SYNSETS[label - 1]}/{name}': image(name) for label, name in zip(TRUTH, val, strict=True)
    }


def coco(src: Path) -> dict[str, bytes]:
    files, annotations = {}, {}
    box = dict(bbox=[1, 1, 4, 5], area=20, iscrowd=0, segmentation=[[1, 1, 5, 1, 5, 6, 1, 6]])
    for side, count in (('train', 3), ('val', 2)):
        pictures = {name: image(name) for name in (f'{side}2017/{7 + i:012d}.jpg' for i in range(count))}
        write_zip(src / f'{side}2017.zip', pictures)
        files |= pictures
        content = dict(
            images=[
                dict(id=index, file_name=Path(name).name, width=8, height=8)
                for index, name in enumerate(pictures)
            ],
            annotations=[dict(box, id=index, image_id=index, category_id=3) for index in range(count)],
            categories=[dict(id=1, name='person'), dict(id=3, name='car')],
        )
        for kind in ('captions', 'instances', 'person_keypoints'):
            annotations[f'annotations/{kind}_{side}2017.json'] = json.dumps(content).encode()
    write_zip(src / 'annotations_trainval2017.zip', annotations)
    return files | {name: content for name, content in annotations.items() if 'instances' in name}


def ade20k(src: Path) -> dict[str, bytes]:
    names = [
        f'{kind}/{side}/ADE_{short}_{index:08d}.{suffix}'
        for side, short, count in (('training', 'train', 3), ('validation', 'val', 2))
        for index in range(1, count + 1)
        for kind, suffix in (('annotations', 'png'), ('images', 'jpg'))
    ]
    files = {name: image(name) for name in names}
    others = {'objectInfo150.txt': b'Idx Ratio', 'sceneCategories.txt': b'ADE_train_00000001 bathroom'}
    write_zip(
        src / 'ADEChallengeData2016.zip',
        {f'ADEChallengeData2016/{name}': content for name, content in (files | others).items()},
    )
    return files


@dataclass
class DataSet:
    """A miniature: its converter, its archives, the folder to create and the files expected there."""

    name: str
    src: Path
    out: Path
    files: dict[str, bytes]
    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture

    @classmethod
    def make(cls, name: str, folder: Path, patch: pytest.MonkeyPatch, capture) -> 'DataSet':
        src = folder / 'src'
        src.mkdir()
        files = {'imagenet': imagenet, 'coco': coco, 'ade20k': ade20k}[name](src)
        data = cls(name, src, folder / 'data' / name, files, patch, capture)
        data.accept()
        patch.setattr(TOOLS['imagenet'], 'WNIDS', WNIDS)
        patch.setattr(os, 'sync', lambda: None)
        return data

    @property
    def tool(self) -> ModuleType:
        return TOOLS[self.name]

    def run(self, *args: object) -> int:
        """The exit status of a call, by default to convert everything."""
        args = (f'{self.name}.py', *(args or (self.src, self.out)))
        self.patch.setattr(sys, 'argv', [str(arg) for arg in args])
        try:
            cli.run(self.tool.main)
        except SystemExit as stop:
            return stop.code
        return 0

    def refusal(self, *args: object) -> str:
        """The one line on stderr of a call that fails."""
        self.capture.readouterr()
        assert self.run(*args) == 1
        (line,) = self.capture.readouterr().err.splitlines()
        return line

    def interrupt(self, at: int, fail: Callable[[], None]) -> int:
        """The exit status of a call that fails half way in the file number ``at``."""
        with self.patch.context() as patch:
            Copies(patch, at, fail)
            return self.run()

    def resume(self) -> int:
        """Number of files that a call writes which completes the data set."""
        copies = Copies(self.patch)
        assert self.run() == 0
        assert self.written() == self.files
        return copies.count

    def written(self) -> dict[str, bytes]:
        files = (path for path in self.out.rglob('*') if path.is_file())
        return {str(path.relative_to(self.out)): path.read_bytes() for path in files}

    def damage(self, name: str, how: str) -> Path:
        """Cut an archive in two, or change a byte of the last image in it."""
        path = self.src / name
        content = bytearray(path.read_bytes())
        if how == 'cut':
            del content[len(content) // 2 :]
        else:
            content[content.rindex(b'\xff\xd9') - 5] ^= 1  # before the end of a JPEG
        path.write_bytes(content)
        return path

    def accept(self) -> None:
        """Take counts and checksums from the miniature."""
        parts = []
        for part in OFFICIAL[self.name]:
            own = tuple(
                replace(
                    archive,
                    md5=archive.md5 and hashlib.md5((self.src / archive.name).read_bytes()).hexdigest(),
                )
                for archive in part.archives
            )
            parts.append(replace(part, count=COUNTS[self.name][part.path], archives=own))
        self.patch.setattr(self.tool, 'PARTS', parts)


class Copies:
    """Replaces the copying of a file's content: counts, and fails at a given file half way."""

    def __init__(self, monkeypatch, at: int | None = None, fail: Callable[[], None] = lambda: None):
        self.count, self.at, self.fail = 0, at, fail
        self.copy = archives.shutil.copyfileobj
        monkeypatch.setattr(archives.shutil, 'copyfileobj', self)

    def __call__(self, source, target, length=0) -> None:
        self.count += 1
        if self.count == self.at:
            target.write(source.read(100))
            target.flush()
            self.fail()
        self.copy(source, target, length)
