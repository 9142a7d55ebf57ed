"""What the converters of official archives share: find, verify, unpack, count, go on after an interruption.

A data set consists of parts. Each one is unpacked beside its place, file by file, and moved there once it is
whole: a part that is there is complete, and the files of an interrupted one are not written again.
"""

import errno
import hashlib
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from grootv.errors import UserError

CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class Archive:
    """An official file.

    Attributes:
        name: Its name, as offered.
        page: Where it is offered.
        md5: The checksum that its publisher states, if any. A zip has one of its own for every file.
    """

    name: str
    page: str
    md5: str | None = None


@dataclass(frozen=True)
class Entry:
    """A file in an archive: its path, its size in bytes and what opens it."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


class Bar:
    """The progress of one part, in bytes."""

    def __init__(self, progress: Progress, title: str):
        self.progress = progress
        self.task = progress.add_task(title, total=None)

    def expect(self, size: int) -> None:
        self.progress.update(self.task, total=size)

    def advance(self, size: int) -> None:
        self.progress.advance(self.task, size)

    @property
    def remaining(self) -> int:
        return next(int(task.remaining or 0) for task in self.progress.tasks if task.id == self.task)


@dataclass(frozen=True)
class Part:
    """A folder of the data set, or a single file.

    Attributes:
        path: Its place below OUT.
        archives: What it is made from.
        files: Regular expression of the files' paths below ``path``; empty if ``path`` is itself a file.
        count: Number of files.
        unpack: Called with the part, the paths of the archives, the place to write to and the bar.
    """

    path: str
    archives: tuple[Archive, ...]
    files: str
    count: int
    unpack: Callable[['Part', list[Path], Path, Bar], None]


class UnsafeEntry(Exception):
    """An archive holds a path that leads out of the folder, or something that is no plain file."""


def prepare(name: str, parts: Sequence[Part], src: Path, out: Path) -> None:
    """Unpack the parts that are not there yet, and print what there is.

    Args:
        name: Of the data set; ``OUT/.NAME.partial`` is where unfinished parts wait.
        parts: All of them.
        src: Folder of the archives.
        out: Folder of the data set.

    Raises:
        UserError: If an archive is missing, damaged or unsafe, a part of OUT holds anything else, or the
            disk is full. What has been unpacked stays.
    """
    todo = [part for part in parts if not is_complete(out, part)]
    work = out / f'.{name}.partial'
    if todo:
        paths = find(src, [archive for part in todo for archive in part.archives])
        work.mkdir(parents=True, exist_ok=True)
        console = Console()
        columns = (TextColumn('{task.description}'), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
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
    """Whether a part is there.

    Raises:
        UserError: If its place holds anything but the whole part or nothing.
    """
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
    """Count the files of a part; hidden ones are passed over.

    Returns:
        Number of files that ``files`` matches, and the first other one.
    """
    if path.is_file():
        return 1, None
    pattern = re.compile(files)
    count, foreign = 0, None
    for folder, folders, names in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        prefix = '' if folder == str(path) else os.path.relpath(folder, path) + '/'
        for name in names:
            if pattern.fullmatch(prefix + name):
                count += 1
            elif not name.startswith('.'):
                foreign = foreign or prefix + name
    return count, foreign


def find(src: Path, archives: Iterable[Archive]) -> dict[Archive, Path]:
    """Paths of archives.

    Raises:
        UserError: If one is missing; the sentence says where it is offered.
    """
    paths = {archive: src / archive.name for archive in archives}
    missing = [archive for archive, path in paths.items() if not path.is_file()]
    if missing:
        names = ' and no '.join(archive.name for archive in missing)
        raise UserError(f'{src} has no {names}: download what is missing from {missing[0].page}')
    return paths


def verify(archive: Archive, path: Path, note: Path, progress: Progress) -> None:
    """Compare an archive with its published checksum.

    Args:
        archive: What it should be; without a checksum nothing is done.
        path: The file.
        note: Written if they agree, so that an interrupted run does not read the whole archive again.
        progress: Shows a bar.

    Raises:
        UserError: If they disagree.
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
    archive, draft, place = part.archives[0], work / part.path, out / part.path
    bar = Bar(progress, part.path)
    try:
        with readable(archive, paths[0]):
            part.unpack(part, paths, draft, bar)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f'the disk of {out} is full and {part.path} needs {decimal(bar.remaining)} more: '
            'free some space, the same command then goes on from here'
        ) from error
    count, _ = survey(draft, part.files)
    if count != part.count:
        raise UserError(
            f'{paths[0]} holds {count:,} files for {part.path} where the data set has {part.count:,}: '
            f'download it again from {archive.page}'
        )
    os.sync()  # its files reach the disk before its name does: a power cut leaves no empty ones
    place.parent.mkdir(parents=True, exist_ok=True)
    draft.replace(place)


@contextmanager
def readable(archive: Archive, path: Path) -> Iterator[None]:
    """Tell an archive that cannot be unpacked by a UserError."""
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise UserError(
            f'{path} is damaged ({" ".join(str(error).split())}): download it again from {archive.page}'
        ) from error
    except UnsafeEntry as error:
        raise UserError(
            f'{path} is not the official archive: {error} in it leads out of the folder or is no plain '
            f'file, download it from {archive.page}'
        ) from error


def unpack_zip(source: str, part: Part, paths: list[Path], place: Path, bar: Bar) -> None:
    """Unpack what a zip archive holds at and below the path ``source``."""
    with zipfile.ZipFile(paths[0]) as archive:
        wanted = re.compile(f'{re.escape(source)}/({part.files})' if part.files else f'{re.escape(source)}()')
        found = [(entry, wanted.fullmatch(entry.name)) for entry in zip_entries(archive)]
        entries = [replace(entry, name=match[1]) for entry, match in found if match]
        bar.expect(sum(entry.size for entry in entries))
        write(entries, place, bar.advance)


def zip_entries(archive: zipfile.ZipFile) -> list[Entry]:
    """The files of a zip archive.

    Raises:
        UnsafeEntry: If one of its paths leads elsewhere.
    """
    entries = []
    for info in archive.infolist():
        name = safe_name(info.filename)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise UnsafeEntry(info.filename)
        if not info.is_dir():
            entries.append(Entry(name, info.file_size, partial(archive.open, info)))
    return entries


def tar_entries(archive: tarfile.TarFile) -> list[Entry]:
    """The files of a tar archive.

    Raises:
        UnsafeEntry: If one of its paths leads elsewhere, or is a link or a device.
    """
    entries = []
    for member in archive:
        name = safe_name(member.name)
        if member.isreg():
            entries.append(Entry(name, member.size, partial(archive.extractfile, member)))
        elif not member.isdir():
            raise UnsafeEntry(member.name)
    return entries


def safe_name(name: str) -> str:
    """A path that stays below the folder it is unpacked to, in plain form."""
    path = PurePosixPath(name)
    if path.is_absolute() or '..' in path.parts:
        raise UnsafeEntry(name)
    return str(path)


def write(entries: Iterable[Entry], place: Path, advance: Callable[[int], None]) -> None:
    """Write files below ``place``, each under its name once it is whole; those that are there stay.

    Args:
        entries: Files with their paths below ``place``; an empty path is ``place`` itself.
        place: Folder or file.
        advance: Told the size of each file.
    """
    draft = place.with_name(f'.{place.name}.draft')
    for entry in entries:
        path = place / entry.name
        if not path.is_file() or path.stat().st_size != entry.size:
            path.parent.mkdir(parents=True, exist_ok=True)
            with entry.open() as source, draft.open('wb') as target:
                shutil.copyfileobj(source, target, CHUNK)
            draft.replace(path)
        advance(entry.size)
