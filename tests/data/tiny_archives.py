"""Miniatures of the official archives of ImageNet-1K, COCO 2017 and ADE20K, and calls of their converters."""

import contextlib
import hashlib
import io
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from grootv import cli
from tests.tools.tiny_run import load_tool

TOOLS = {name: load_tool(f'dataset_converters/{name}.py') for name in ('imagenet', 'coco', 'ade20k')}
OFFICIAL = {name: tool.PARTS for name, tool in TOOLS.items()}
archives = sys.modules['archives']  # what the tools share

WNIDS = ('n01440764', 'n01443537', 'n02119789')
SYNSETS = (*reversed(WNIDS), 'n02084071')  # by ILSVRC2012_ID
TRUTH = (1, 3, 3, 2)


def images(*names: str) -> dict[str, bytes]:
    """Files, each with a content of its own."""
    return {name: hashlib.sha512(name.encode()).digest() * 16 for name in names}


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, 'w') as archive:
        for folder in sorted({str(Path(name).parent) + '/' for name in files}):
            archive.writestr(folder, b'')
        for name, content in files.items():
            archive.writestr(name, content)


def tar(files: dict[str, bytes], mode: str = 'w') -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def imagenet(src: Path) -> dict[str, bytes]:
    files, classes = {}, {}
    for count, wnid in zip((3, 2, 1), WNIDS, strict=True):
        own = images(*(f'{wnid}_{10 * i}.JPEG' for i in range(1, count + 1)))
        classes[f'{wnid}.tar'] = tar(own)
        files |= {f'train/{wnid}/{name}': content for name, content in own.items()}
    (src / 'ILSVRC2012_img_train.tar').write_bytes(tar(classes))
    val = images(*(f'ILSVRC2012_val_{i:08d}.JPEG' for i in (1, 2, 3, 4)))
    (src / 'ILSVRC2012_img_val.tar').write_bytes(tar(dict(reversed(val.items()))))
    synsets = np.empty((len(SYNSETS), 1), [(name, object) for name in ('ILSVRC2012_ID', 'WNID', 'children')])
    for index, wnid in enumerate(SYNSETS):
        synsets[index, 0] = (index + 1, wnid, [[1.0, 2.0]] if index > 2 else np.zeros((0, 0)))
    savemat(meta := io.BytesIO(), {'synsets': synsets}, do_compression=True)
    folder = 'ILSVRC2012_devkit_t12/data/'
    truth = ''.join(f'{label}\n' for label in TRUTH).encode()
    devkit = {f'{folder}meta.mat': meta.getvalue(), f'{folder}ILSVRC2012_validation_ground_truth.txt': truth}
    (src / 'ILSVRC2012_devkit_t12.tar.gz').write_bytes(tar(devkit, 'w:gz'))
    return files | {
        f'val/{SYNSETS[label - 1]}/{name}': val[name] for label, name in zip(TRUTH, val, strict=True)
    }


def coco(src: Path) -> dict[str, bytes]:
    files, annotations = {}, {'annotations/captions_train2017.json': b'{}'}
    for side, count in (('train', 3), ('val', 2)):
        pictures = images(*(f'{side}2017/{7 + i:012d}.jpg' for i in range(count)))
        write_zip(src / f'{side}2017.zip', pictures)
        instances = images(f'annotations/instances_{side}2017.json')
        annotations |= instances
        files |= pictures | instances
    write_zip(src / 'annotations_trainval2017.zip', annotations)
    return files


def ade20k(src: Path) -> dict[str, bytes]:
    files = {}
    for side, short, count in (('training', 'train', 3), ('validation', 'val', 2)):
        for name in (f'{side}/ADE_{short}_{index:08d}' for index in range(1, count + 1)):
            files |= images(f'images/{name}.jpg', f'annotations/{name}.png')
    content = {f'ADEChallengeData2016/{name}': content for name, content in files.items()}
    write_zip(src / 'ADEChallengeData2016.zip', content | {'ADEChallengeData2016/objectInfo150.txt': b'Idx'})
    return files


class DataSet:
    """A miniature: its converter, its archives, the folder to create and the files expected there."""

    def __init__(self, name: str, folder: Path, patch: pytest.MonkeyPatch):
        self.name, self.tool, self.patch = name, TOOLS[name], patch
        self.src, self.out = folder / 'src', folder / 'data' / name
        self.src.mkdir()
        self.files = {'imagenet': imagenet, 'coco': coco, 'ade20k': ade20k}[name](self.src)
        self.accept()
        patch.setattr(TOOLS['imagenet'], 'WNIDS', WNIDS)
        patch.setattr(os, 'sync', lambda: None)

    def accept(self) -> None:
        """Take counts and checksums from the miniature."""
        parts = []
        for part in OFFICIAL[self.name]:
            count = sum(name == part.path or name.startswith(f'{part.path}/') for name in self.files)
            own = tuple(
                replace(one, md5=one.md5 and hashlib.md5((self.src / one.name).read_bytes()).hexdigest())
                for one in part.archives
            )
            parts.append(replace(part, count=count, archives=own))
        self.patch.setattr(self.tool, 'PARTS', parts)

    def run(self, *args: object) -> str:
        """Call the converter, by default to convert everything; what it writes to stderr."""
        argv = [f'{self.name}.py', *map(str, args or (self.src, self.out))]
        with self.patch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as error:
            patch.setattr(sys, 'argv', argv)
            with contextlib.suppress(SystemExit):
                cli.run(self.tool.main)
        return error.getvalue()

    def run_until(self, at: int, fail: Callable[[], None] = lambda: None) -> tuple[str, int]:
        """Stderr and number of files of a call that fails half way in the file number ``at``."""
        count, copy = 0, archives.shutil.copyfileobj

        def copy_or_fail(source, target, length=0) -> None:
            nonlocal count
            count += 1
            if count == at:
                target.write(source.read(100))
                target.flush()
                fail()
            copy(source, target, length)

        with self.patch.context() as patch:
            patch.setattr(archives.shutil, 'copyfileobj', copy_or_fail)
            return self.run(), count

    def resume(self) -> int:
        """Number of files that a call writes which completes the data set."""
        error, count = self.run_until(0)
        assert not error and self.written() == self.files
        return count

    def written(self) -> dict[str, bytes]:
        files = (path for path in self.out.rglob('*') if path.is_file())
        return {str(path.relative_to(self.out)): path.read_bytes() for path in files}
