"""What a data set holds, for the table that a run begins with."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from grootv.errors import first


@dataclass
class Summary:
    """Counts of a data set.

    Attributes:
        unit: Thing that is counted by class.
        counts: Number of them by class, in the order of the classes.
        left_out: Files that are no items, by the reason.
        found: Where a class has no count, what the labels hold instead.
    """

    unit: str
    counts: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    found: str = ''


def files_below(folder: str) -> set[str]:
    """Normalised paths of the files below a folder, without hidden ones; empty for an address."""
    found = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith('.')]
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
