"""What the sections found: one list of figures, printed as it grows."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


@dataclass
class Figure:
    """One number, or the reason why there is none.

    Attributes:
        section: Section that found it.
        name: What was measured.
        value: The number; None where it was not measured.
        unit: Of ``value`` and ``limit``.
        limit: Greatest value that is good enough, None without one.
        holds: Whether the limit holds; None where nothing was judged.
        required: A check of correctness: its section fails if it does not hold.
        not_measured: Why there is no value.
        note: Cases compared, the worst case, what failed.
    """

    section: str
    name: str
    value: float | None
    unit: str
    limit: float | None = None
    holds: bool | None = None
    required: bool = False
    not_measured: str | None = None
    note: str = ''

    def line(self) -> str:
        value = (
            f'not measured: {self.not_measured}' if self.value is None else f'{self.value:.4g} {self.unit}'
        )
        limit = '' if self.limit is None else f' (limit {self.limit:g})'
        held = {None: '', True: ' ok', False: ' FAILED' if self.required else ' MISSED'}[self.holds]
        note = f'  [{self.note}]' if self.note else ''
        return f'{self.name}: {value}{limit}{held}{note}'


class Report:
    """Figures of one section. ``stream`` receives each as a line of JSON the moment it is known."""

    def __init__(self, section: str, judge: bool = True, stream: Path | None = None):
        self.section = section
        self.judge = judge
        self.stream = stream
        self.figures: list[Figure] = []

    def figure(self, name: str, value: float, unit: str, limit: float | None = None, note: str = '') -> None:
        """A measured speed or size; a missed limit is reported and fails nothing."""
        holds = None if limit is None or not self.judge else value <= limit
        self.add(Figure(self.section, name, value, unit, limit, holds, note=note))

    def check(self, name: str, value: float, unit: str, limit: float, note: str = '') -> None:
        """A matter of correctness; the section fails if ``value`` is above ``limit`` or NaN."""
        if math.isnan(value):
            self.missing(name, unit, 'the result is NaN', limit, failed=True)
            return
        self.add(Figure(self.section, name, value, unit, limit, value <= limit, required=True, note=note))

    def missing(
        self, name: str, unit: str, reason: str, limit: float | None = None, failed: bool = False
    ) -> None:
        holds = False if failed else None
        self.add(Figure(self.section, name, None, unit, limit, holds, required=failed, not_measured=reason))

    def attempt(
        self,
        name: str,
        unit: str,
        measure: Callable[[], None],
        limit: float | None = None,
        required: bool = True,
    ) -> None:
        """Run a measurement; what stops it becomes the reason why there is no figure.

        Too little memory fails nothing. Any other error fails the section, unless ``required`` is False.
        """
        try:
            measure()
        except torch.OutOfMemoryError as error:
            self.missing(name, unit, sentence(error), limit)
        except Exception as error:
            self.missing(name, unit, sentence(error), limit, failed=required)

    def add(self, figure: Figure) -> None:
        self.figures.append(figure)
        print('  ' + figure.line(), flush=True)
        if self.stream is not None:
            with self.stream.open('a') as file:
                file.write(json.dumps(asdict(figure)) + '\n')

    def failures(self) -> list[str]:
        return [figure.line() for figure in self.figures if figure.required and figure.holds is False]


def sentence(error: BaseException) -> str:
    """Type and first line of an error."""
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0][:300]}' if lines else type(error).__name__


def table(rows: list[tuple[str, ...]], titles: tuple[str, ...]) -> str:
    """Left-aligned columns of text."""
    rows = [titles, tuple('-' * len(title) for title in titles), *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return '\n'.join(line.rstrip() for line in cells)
