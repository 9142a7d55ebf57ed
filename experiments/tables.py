"""Make the page and the picture of every record: tables in Markdown, and a plot, next to the record.

    python experiments/tables.py
    python experiments/tables.py experiments/results/model_cpu.jsonl

Nothing in them is written by hand: measure again, or run this again.
"""

import argparse
import importlib
from functools import partial
from itertools import groupby
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import measure
from benchmark_scaling import exponent
from matplotlib import pyplot as plt
from tabulate import tabulate

Rows = list[dict]
TITLES = dict(name='', value='measured', target='at most', note='', peer_ms='peer, ms')
TITLES |= dict(distinct_weights='distinct weights', differs_from_equal_weights="share unlike equal weights'")


def write(path: Path) -> tuple[Path, Path]:
    """Write PATH.md and PATH.png for the record PATH.jsonl; the only record of a folder has README.md."""
    about, rows = measure.read(path)
    page_of(path).write_text(text(path))
    figure = layout(about['kind'])[2](rows)
    figure.savefig(path.with_suffix('.png'), dpi=110)
    plt.close(figure)
    return page_of(path), path.with_suffix('.png')


def page_of(record: Path) -> Path:
    return record.with_name('README.md') if record.stem == record.parent.name else record.with_suffix('.md')


def text(path: Path) -> str:
    """The page of a record."""
    about, rows = measure.read(path)
    title, page, _ = layout(about['kind'])
    more = [about['peer']] if 'peer' in about else []
    lines = [*heading(title, about, path.name), *targets(rows), *page(rows, *more)]
    return '\n'.join([*lines, '', f'![]({path.stem}.png)', ''])


def heading(title: str, about: dict, source: str) -> list[str]:
    """Where a record comes from, as far as it was recorded."""
    shown = {key: value for key, value in about.items() if key not in ('kind', 'command', 'quick')}
    if isinstance(shown['versions'], dict):
        shown['versions'] = ', '.join(f'{name} {number}' for name, number in shown['versions'].items())
    return [
        f'# {title}',
        '',
        f'Made from [{source}]({source}) by `python experiments/tables.py`. Measured by',
        '',
        f'```shell\n{about["command"]}\n```',
        '',
        *(f'- {key}: {value}' for key, value in shown.items()),
        *(['', '**A quick run: its figures mean nothing.**'] if about['quick'] else []),
    ]


def cell(value) -> str:
    if isinstance(value, float):
        return f'{value:.0f}' if abs(value) >= 1000 else f'{value:.4g}'
    return '' if value is None else str(value)


def table(rows: Rows) -> list[str]:
    """A table in Markdown of the rows' values, one column for each key."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    words = [any(isinstance(row.get(key), str) for row in rows) for key in keys]
    cells = [[cell(row.get(key)) for key in keys] for row in rows]
    align = ['left' if word else 'right' for word in words]
    titles = [TITLES.get(key, key) for key in keys]
    return ['', tabulate(cells, titles, 'pipe', disable_numparse=True, colalign=align)]


def groups(rows: Rows, *keys: str) -> list[tuple[str, Rows]]:
    """Neighbouring rows with the same values of some keys, and those values in words."""

    def words(row: dict) -> str:
        return ', '.join(f'{key} {row[key]}' if isinstance(row[key], int) else row[key] for key in keys)

    return [(name, list(some)) for name, some in groupby(rows, words)]


def targets(rows: Rows) -> list[str]:
    judged = [dict(row) for row in rows if 'verdict' in row]
    for row in judged:
        if row['verdict'] == 'missed':
            row['verdict'] += f' by {100 * (row["value"] / row["target"] - 1):.0f} %'
    return ['', '## Targets', *table(judged)] if judged else []


def bars(xlabel: str, panels: dict[str, dict[str, float]]) -> plt.Figure:
    """Horizontal bars of the values by name, one panel for each title."""
    sizes = [2 + len(values) for values in panels.values()]
    shape = dict(figsize=(9, 0.3 * sum(sizes) + 1), height_ratios=sizes, squeeze=False)
    figure, grid = plt.subplots(len(panels), layout='constrained', **shape)
    for axes, (title, values) in zip(grid.flat, panels.items(), strict=True):
        axes.barh(list(values), list(values.values()), color='tab:green')
        axes.set(xlabel=xlabel, title=title)
        axes.invert_yaxis()
    return figure


def draw_ops(rows: Rows) -> plt.Figure:
    names = [f'{i} {row["name"].strip()}, {row["threads"]} threads' for i, row in enumerate(rows)]
    values = dict(zip(names, [row['value'] for row in rows], strict=True))
    return bars('', {"time over the peer's": values})


TIME = """\
Medians of calls that take turns; in brackets the median of the rounds' ratios to the first peer."""
MEMORY = """\
Of a process of its own: weights, gradients, optimizer, activations and scratch memory, but neither Python nor
libraries nor freed memory that the C library keeps; in brackets the ratio to the first peer."""


def label(row: dict) -> str:
    per = f', tree per {row["tree_per"]}' if row['tree_per'] else ''
    how = '' if row['how'] == 'eager' else f', {row["how"]}'
    return row['network'] + per + how + ', NaN' * (row.get('finite') is False)


def model_page(rows: Rows, peer: str | None) -> list[str]:
    lines = []
    for title, words, key in (('Time in ms', TIME, 'ms'), ('Peak memory in MiB', MEMORY, 'mib')):
        shown = {}
        for row in rows:
            if key in row or (key == 'mib' and 'not_measured' in row):
                line = shown.setdefault(
                    (label(row), row['dtype']), dict(network=label(row), type=row['dtype'])
                )
                ratio = f' ({row[f"/ {peer}"]:.2f})' if f'/ {peer}' in row else ''
                found = cell(row[key]) + ratio if key in row else row['not_measured']
                line[f'{row["mode"]}, batch {row["batch"]}, {row["px"]} px'] = found
        lines += ['', f'## {title}', '', words, *table(list(shown.values()))] if shown else []
    profiles = [row for row in rows if 'parts_ms' in row]
    if profiles:
        lines += ['', '## Where the time goes', '', 'Per cent of one call under the profiler, in float32.']
        shown = {part: {'part': part} for row in profiles for part in row['parts_ms']}
        shown |= {name: {'part': name} for name in ('ms under the profiler', 'ms without it')}
        for row in profiles:
            title = f'{row["network"]}, {row["mode"]}, batch {row["batch"]}, {row["px"]} px'
            for part, ms in row['parts_ms'].items():
                shown[part][title] = f'{100 * ms / row["profiled_ms"]:.1f}'
            shown['ms under the profiler'][title] = cell(row['profiled_ms'])
            shown['ms without it'][title] = cell(row['plain_ms'])
        lines += table(list(shown.values()))
    return lines


def draw_model(rows: Rows) -> plt.Figure:
    timed = groups([row for row in rows if 'images_per_s' in row], 'mode', 'batch', 'px')
    panels = {
        name: {f'{label(row)}, {row["dtype"]}': row['images_per_s'] for row in some} for name, some in timed
    }
    return bars('images/s', panels)


def growth_page(rows: Rows, x: str, **quantities: str) -> list[str]:
    """A table for each mode and quantity: one line for each function, one column for each size."""
    lines = []
    for mode, some in groups([row for row in rows if x in row], 'mode'):
        for key, title in quantities.items():
            shown = []
            for name in dict.fromkeys(name for row in some for name in row[key]):
                shown.append({'': name} | {str(row[x]): row[key].get(name) for row in some})
                if x == 'side':
                    slope = exponent(some, name, key)
                    shown[-1]['exponent'] = None if slope is None else round(slope, 2)
            lines += ['', f'## {title}, {mode}', *table(shown)]
        for row in some:
            left_out = [f'{name}, {reason}' for name, reason in row.get('not_measured', {}).items()]
            lines += ['', f'Not measured at {row[x]}: {"; ".join(left_out)}.'] if left_out else []
    return lines


def draw_growth(rows: Rows, x: str, **quantities: str) -> plt.Figure:
    """One row of panels for each quantity, one column for each mode; operators alone are dotted."""
    modes = groups([row for row in rows if x in row], 'mode')
    shape = len(quantities), len(modes)
    size = 6.5 * shape[1], 4.5 * shape[0]
    figure, grid = plt.subplots(*shape, figsize=size, squeeze=False, layout='constrained')
    for column, (mode, some) in zip(grid.T, modes, strict=True):
        for axes, (key, title) in zip(column, quantities.items(), strict=True):
            for name in dict.fromkeys(name for row in some for name in row[key]):
                points = [(row[x], row[key][name]) for row in some if name in row[key]]
                style = dict(linestyle=':', linewidth=1) if ':' in name else dict(marker='.')
                axes.loglog(*zip(*points, strict=True), label=name, **style)
            axes.set(xlabel=x, ylabel=title, title=mode)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)
    return figure


SCALING = dict(x='side', ms='Time in ms', mib='Peak memory in MiB')
TOKENS = dict(x='length', us='Microseconds a token')
# By kind of record: title, what makes the page, what makes the picture.
KINDS = {
    'ops': ('The operators', lambda rows: [], draw_ops),
    'model': ('GrootV compared with other networks', model_page, draw_model),
    'scaling': (
        'Growth with the number of vertices',
        *(partial(f, **SCALING) for f in (growth_page, draw_growth)),
    ),
    'tokens': ('The tree scan over tokens', *(partial(f, **TOKENS) for f in (growth_page, draw_growth))),
}


def layout(kind: str) -> tuple:
    """Title, page and picture of a kind of record; an experiment without a benchmark's rows has its own."""
    return KINDS[kind] if kind in KINDS else importlib.import_module(kind).LAYOUT


def records() -> list[Path]:
    """All records in experiments/results."""
    return sorted((measure.ROOT / 'experiments/results').rglob('*.jsonl'))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('records', nargs='*', type=Path, help='default: all in experiments/results')
    for path in parser.parse_args(argv).records or records():
        print('wrote', *write(path))


if __name__ == '__main__':
    main()
