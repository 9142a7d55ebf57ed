"""What a data set holds, for the table that a run begins with."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from grootv.errors import first


@dataclass
class Summary:
    """Counts of a data set.

    Attributes:
        unit: Thing that is counted by class.
        counts: Number of them by class, in the order of the classes.
        left_out: Files that are no items, by the reason.
        found: Where a class has no count, what the labels hold instead.
        total: All things, where they are shown as a share of it.
        facts: Further numbers by their name.
    """

    unit: str
    counts: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    found: str = ''
    total: int = 0
    facts: dict[str, int] = field(default_factory=dict)


def merged(summaries: Sequence[Summary]) -> Summary:
    """The summary of several data sets that are read as one."""
    result = Summary(summaries[0].unit)
    for each in summaries:
        for name, count in each.counts.items():
            result.counts[name] = result.counts.get(name, 0) + count
        for reason, files in each.left_out.items():
            result.left_out.setdefault(reason, []).extend(files)
        result.total += each.total
        for name, number in each.facts.items():
            result.facts[name] = result.facts.get(name, 0) + number
    absent = not all(result.counts.values())
    result.found = next((each.found for each in summaries if each.found), '') if absent else ''
    return result


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def files_below(folder: str) -> set[str]:
    """Normalised paths of the files below a folder, without hidden ones; empty for an address."""
    found, seen = set(), set()
    for place, folders, names in os.walk(folder, followlinks=True):
        identity = os.stat(place).st_dev, os.stat(place).st_ino
        folders[:] = [] if identity in seen else [name for name in folders if name[0] != '.']
        seen.add(identity)  # a link may lead back
        found.update(os.path.normpath(os.path.join(place, name)) for name in names if name[0] != '.')
    return found


def by_suffix(files: Iterable[str]) -> dict[str, list[str]]:
    """Files grouped by their suffix, in the order of their names."""
    found = defaultdict(list)
    for file in sorted(files):
        found[os.path.splitext(file)[1].lower() or 'no suffix'].append(file)
    return dict(found)


def others_below(folder: str, items: Iterable[str]) -> dict[str, list[str]]:
    """Files below a folder that are not among the items, by their suffix."""
    return by_suffix(files_below(folder) - {os.path.normpath(item) for item in items})


def data_root(dataset: Any) -> str:
    """The common folder of the data of a data set's config and of those that it wraps."""
    return os.path.commonpath([os.path.abspath(root) for root in _roots(dataset)] or ['/'])


def _roots(dataset: Any) -> Iterator[str]:
    if isinstance(dataset, dict):
        if dataset.get('data_root'):
            yield dataset['data_root']
        for name in ('dataset', 'datasets'):
            yield from _roots(dataset.get(name))
    elif isinstance(dataset, list | tuple):
        for part in dataset:
            yield from _roots(part)


def spread(count: int, most: int = 1000) -> range:
    """At most so many positions in a list, evenly spread."""
    return range(0, count, -(-count // most) or 1)


def difference(names: Sequence[str], others: Sequence[str]) -> tuple[int, str, str]:
    """The first position at which two lists of names differ, and what each has from there on, in words."""
    place = next(i for i in range(len(names) + 1) if names[i : i + 1] != others[i : i + 1])
    return place, first(names[place:]) or 'none', first(others[place:]) or 'none'


def numbered(count: int, start: int = 0) -> str:
    """How many classes there are and their numbers, in words."""
    if count == 1:
        return f'the one class has the number {start}'
    return f'{count} classes are numbered {start} to {start + count - 1}'


def content_key(index: Any) -> tuple[int, int, int]:
    """What tells the images and boxes of one COCO file from those of another; of its index by pycocotools."""
    keys = ('file_name', 'width', 'height')
    images = sorted((str(identity), *(image[key] for key in keys)) for identity, image in index.imgs.items())
    boxes = sorted((str(box['image_id']), *box['bbox']) for box in index.anns.values())
    return len(images), len(boxes), hash((tuple(images), tuple(boxes)))
