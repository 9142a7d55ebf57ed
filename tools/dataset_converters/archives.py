"""What the converters of official archives share: find, verify, unpack, count, resume.

A data set consists of parts. Each is unpacked in a hidden folder, file by file, and moved to its place once
it is whole: a part that is present is complete, and the files of an unfinished one are not written again.
"""

import argparse
import errno
import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from rich.filesize import decimal
from rich.progress import DownloadColumn, Progress

from grootv import cli
from grootv.errors import UserError

CHUNK = 1 << 20  # bytes
# What Python's readers raise for damaged or encrypted archives.
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error)
DAMAGED += (EOFError, RuntimeError, ValueError, OverflowError)


@dataclass(frozen=True)
class Archive:
    """An official file, the page that offers it, and its published MD5; a zip has a CRC-32 of every file."""

    name: str
    page: str
    md5: str | None = None


class Entry(NamedTuple):
    """A file in an archive: its path, its size in bytes, and what opens it."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


@dataclass(frozen=True)
class Part:
    """A folder of the data set, or a single file.

    Attributes:
        path: Its place below OUT.
        archives: What it is made from; the first one holds its files.
        files: Regular expression of the files' paths below ``path``; empty if ``path`` is itself a file.
        count: Number of files.
        places: Maps the paths of the archives to a function that maps a path in the first archive to one
            below ``path``, or to None. A tar becomes a folder of its name.
    """

    path: str
    archives: tuple[Archive, ...]
    files: str
    count: int
    places: Callable[[list[Path]], Callable[[str], str | None]]


class UnsafeEntry(Exception):
    """An archive holds a path that leads out of the folder, or something that is no plain file."""


def main(doc: str, name: str, parts: Sequence[Part]) -> None:
    """The command line of a converter that unpacks SRC to OUT."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument('src', type=Path, help='folder of the archives, as downloaded')
    parser.add_argument('out', type=Path, help='folder to create, for example data/coco')
    args = parser.parse_args()
    with stoppable():
        prepare(name, parts, args.src, args.out)


def stoppable() -> AbstractContextManager[None]:
    return cli.stoppable(lambda: '; the same command continues from here')


def prepare(name: str, parts: Sequence[Part], src: Path, out: Path) -> None:
    """Unpack the parts that are missing from ``src`` to ``out``, and print what there is.

    Raises:
        UserError: If an archive is missing, damaged or unsafe, a part of OUT holds anything else, or the
            disk is full. What has been unpacked stays in ``OUT/.NAME.partial``.
    """
    todo = [part for part in parts if not is_complete(out, part)]
    work = out / f'.{name}.partial'
    if todo:
        paths = find(src, [archive for part in todo for archive in part.archives])
        work.mkdir(parents=True, exist_ok=True)
        columns = (*Progress.get_default_columns(), DownloadColumn())
        with Progress(*columns, disable=not sys.stdout.isatty()) as progress:
            for archive, path in paths.items():
                verify(archive, path, work / f'{archive.name}.verified', progress)
            for part in todo:
                build(part, [paths[archive] for archive in part.archives], out, work, progress)
                print(f'{out / part.path}: {part.count:,} files', flush=True)
    else:
        print(f'{out} is complete ({describe(parts)}): nothing to do')
    shutil.rmtree(work, ignore_errors=True)


def describe(parts: Iterable[Part]) -> str:
    return ', '.join(f'{part.path} {part.count:,}' for part in parts)


def is_complete(out: Path, part: Part) -> bool:
    """Whether a part is there; UserError if its place holds anything but the whole part or nothing."""
    place = out / part.path
    count, foreign = survey(place, part.files)
    if not count and place.is_dir():  # what comes here takes the place of an empty folder
        foreign = foreign or next((path.name for path in place.iterdir()), None)
    if foreign:
        raise UserError(
            f'{place} holds what is not of this data set ({foreign}): remove it, or give another folder'
        )
    if count not in (0, part.count):
        raise UserError(
            f'{place} holds {count:,} files where the data set has {part.count:,}: '
            'move it away, or give another folder'
        )
    return count == part.count


def survey(path: Path, files: str) -> tuple[int, str | None]:
    """Number of files that ``files`` matches, and the first other one; hidden ones are passed over."""
    if path.is_file():
        return 1, None
    count, foreign = 0, None
    for folder, folders, names in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        for name in names:
            relative = os.path.relpath(os.path.join(folder, name), path)
            if re.fullmatch(files, relative):
                count += 1
            elif not name.startswith('.'):
                foreign = foreign or relative
    return count, foreign


def find(src: Path, archives: Iterable[Archive]) -> dict[Archive, Path]:
    """Paths of archives; a missing one is reported with the page that offers it."""
    paths = {archive: src / archive.name for archive in archives}
    missing = [archive for archive, path in paths.items() if not path.is_file()]
    if missing:
        names = ' and no '.join(archive.name for archive in missing)
        raise UserError(f'{src} has no {names}: download what is missing from {missing[0].page}')
    return paths


def verify(archive: Archive, path: Path, note: Path, progress: Progress) -> None:
    """Compare an archive with its published checksum, if there is one; UserError if they disagree.

    ``note`` is written if they agree, so that an interrupted run does not read the whole archive again.
    """
    status = path.stat()
    state = f'{archive.md5} {status.st_size} {status.st_mtime_ns}'
    if archive.md5 is None or (note.is_file() and note.read_text() == state):
        return
    md5 = hashlib.md5(usedforsecurity=False)
    with progress.open(path, 'rb', description=f'checking {archive.name}') as file:
        while chunk := file.read(CHUNK):
            md5.update(chunk)
    if md5.hexdigest() != archive.md5:
        raise UserError(
            f'{path} is damaged: its MD5 is {md5.hexdigest()} and the published one {archive.md5}, '
            f'download it again from {archive.page}'
        )
    note.write_text(state)


def build(part: Part, paths: list[Path], out: Path, work: Path, progress: Progress) -> None:
    """Unpack a part below ``work`` and move it to its place below ``out``."""
    path, draft, place = paths[0], work / part.path, out / part.path
    again = f'download it again from {part.archives[0].page}'
    task = progress.add_task(part.path, total=None)
    try:
        to_place = part.places(paths)
        with zipfile.ZipFile(path) if path.suffix == '.zip' else tarfile.open(path, 'r:') as archive:
            found = [(entry, to_place(entry.name)) for entry in entries(archive)]
            found = [entry._replace(name=name) for entry, name in found if name is not None]
            progress.update(task, total=sum(entry.size for entry in found))
            write(found, draft, lambda entry: progress.advance(task, entry.size))
    except DAMAGED as error:
        raise UserError(f'{path} is damaged ({" ".join(str(error).split())}): {again}') from error
    except UnsafeEntry as error:
        raise UserError(
            f'{path} is not the official archive: {error} in it leads out of the folder or is no plain '
            f'file, {again}'
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f'the disk of {out} is full and {part.path} needs {decimal(int(progress.tasks[-1].remaining))} '
            'more: free some space, the same command then continues from here'
        ) from error
    count, _ = survey(draft, part.files)
    if count != part.count:
        raise UserError(
            f'{path} holds {count:,} files for {part.path} where the data set has {part.count:,}: {again}'
        )
    os.sync()  # its files reach the disk before its name does: a power cut leaves no empty ones
    place.parent.mkdir(parents=True, exist_ok=True)
    draft.replace(place)


def below(source: str, files: str) -> Callable[[list[Path]], Callable[[str], str | None]]:
    """The places of what an archive holds at and below the path ``source``."""
    wanted = re.compile(f'{re.escape(source)}/({files})' if files else f'{re.escape(source)}()')

    def place(name: str) -> str | None:
        match = wanted.fullmatch(name)
        return match and match[1]

    return lambda paths: place


def entries(archive: zipfile.ZipFile | tarfile.TarFile) -> list[Entry]:
    """The files of an archive.

    Raises:
        UnsafeEntry: If a path leads elsewhere, or is a link or a device. tarfile's own filter, which Python
            3.10.0 to 3.11.3 do not have, would rename absolute paths.
    """
    found = []
    is_zip = isinstance(archive, zipfile.ZipFile)
    for member in archive.infolist() if is_zip else archive:
        if is_zip:
            name, size, opener = member.filename, member.file_size, partial(archive.open, member)
            plain, folder = not stat.S_ISLNK(member.external_attr >> 16), member.is_dir()
        else:
            name, size, opener = member.name, member.size, partial(archive.extractfile, member)
            plain, folder = member.isreg() or member.isdir(), member.isdir()
        path = PurePosixPath(name)
        if not plain or path.is_absolute() or '..' in path.parts:
            raise UnsafeEntry(name)
        if not folder:
            found.append(Entry(str(path), size, opener))
    return found


def write(found: Iterable[Entry], place: Path, done: Callable[[Entry], None] = lambda entry: None) -> None:
    """Write files below ``place``, each under its name once it is whole; those that are whole stay.

    A tar is written as a folder; an entry without a name is ``place`` itself. ``done`` gets each entry.
    """
    for entry in found:
        path = place / entry.name.removesuffix('.tar')
        if not is_whole(path, entry.size):
            draft = path.with_name(f'.{path.name}.draft')
            draft.parent.mkdir(parents=True, exist_ok=True)
            with entry.open() as source:
                if entry.name.endswith('.tar'):
                    with tarfile.open(fileobj=source, mode='r:') as archive:
                        write(entries(archive), draft)
                else:
                    with draft.open('wb') as target:
                        shutil.copyfileobj(source, target, CHUNK)
            if path.is_dir():
                shutil.rmtree(path)
            draft.replace(path)
        done(entry)


def is_whole(path: Path, size: int) -> bool:
    """Whether a file, or every file of a folder, has reached the disk: a power cut leaves empty ones."""
    if path.is_dir():
        return all(file.stat().st_size for file in path.iterdir())
    return path.is_file() and path.stat().st_size == size
