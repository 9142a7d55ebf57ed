"""Make the page and the picture of every record: tables in Markdown, and a plot, next to the record.

    python experiments/tables.py
    python experiments/tables.py experiments/results/model_cpu.jsonl

Nothing in them is written by hand: measure again, or run this again.
"""

import argparse
import importlib
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import measure
import numpy as np
from benchmark_scaling import exponent
from matplotlib import pyplot as plt
from tabulate import tabulate

Rows = list[dict]
TITLES = dict(name='', value='measured', target='at most', note='', peer_ms='peer, ms', mib='MiB')
TITLES |= dict(p95_ms='95 % below', images_per_s='images/s', not_measured='not measured')


def write(path: Path) -> tuple[Path, Path]:
    """Write PATH.md and PATH.png for the record PATH.jsonl; the only record of a folder has README.md."""
    page = page_of(path)
    page.write_text(text(path))
    about, rows = measure.read(path)
    figure = layout(about['kind'])[2](about, rows)
    figure.savefig(path.with_suffix('.png'), dpi=110)
    plt.close(figure)
    return page, path.with_suffix('.png')


def page_of(record: Path) -> Path:
    return record.with_name('README.md') if record.stem == record.parent.name else record.with_suffix('.md')


def text(path: Path) -> str:
    """The page of a record."""
    about, rows = measure.read(path)
    lines = [*heading(about, path.name), *layout(about['kind'])[1](about, rows)]
    return '\n'.join([*lines, '', f'![]({path.stem}.png)', ''])


def heading(about: dict, source: str) -> list[str]:
    where = about['processor'] if about['device'] == 'cpu' else about['device']
    threads = f'{about["threads"]} thread' + 's' * (about['threads'] > 1)
    versions = ', '.join(f'{name} {number}' for name, number in about['versions'].items())
    return [
        f'# {layout(about["kind"])[0]}',
        '',
        f'Made from [{source}]({source}) by `python experiments/tables.py`. Measured on {where}, {threads},',
        f'commit {about["commit"]}, {about["date"][:10]}, {versions}, by',
        '',
        f'```shell\n{about["command"]}\n```',
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


def pivot(rows: Rows, column: Callable[[dict], str], quantity: str) -> Rows:
    """One row for each name in the quantity of some row, with one key for each of the rows."""
    names = dict.fromkeys(name for row in rows for name in row[quantity])
    return [{'': name} | {column(row): row[quantity].get(name) for row in rows} for name in names]


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


def ops_page(about: dict, rows: Rows) -> list[str]:
    return targets(rows)


def draw_ops(about: dict, rows: Rows) -> plt.Figure:
    """The ratio of every operator to its peer, and the target."""
    figure, axes = plt.subplots(figsize=(9, 1 + 0.3 * len(rows)), layout='constrained')
    names = [f'{index} {row["name"].strip()}, {row["threads"]} threads' for index, row in enumerate(rows)]
    axes.barh(names, [row['value'] for row in rows], color='tab:green')
    axes.plot([row['target'] or np.nan for row in rows], names, 'k|', markersize=12, label='target')
    axes.set(xlabel="time over the peer's", xscale='log')
    axes.invert_yaxis()
    axes.legend()
    return figure


def label(row: dict) -> str:
    per = f', tree per {row["tree_per"]}' if row['tree_per'] else ''
    how = '' if row['how'] == 'eager' else f', {row["how"]}'
    return row['network'] + per + how + ', NaN' * (row.get('finite') is False)


TIME = "Medians of calls that take turns; ratios are medians of the rounds' quotients."
MEMORY = """\
Of a process of its own: weights, gradients, optimizer, activations and scratch memory, but neither Python nor
libraries nor freed memory that the C library keeps."""
FIELDS = ('mode', 'batch', 'px', 'network', 'tree_per', 'dtype', 'how', 'rounds', 'finite')


def without(row: dict, fields: Iterable[str]) -> dict:
    return {key: value for key, value in row.items() if key not in fields}


def model_page(about: dict, rows: Rows) -> list[str]:
    lines = targets(rows)
    for title, words, key in (('Time', TIME, 'ms'), ('Peak memory', MEMORY, 'mib')):
        some = [row for row in rows if key in row or (key == 'mib' and 'not_measured' in row)]
        lines += ['', f'## {title}', '', words] if some else []
        for name, group in groups(some, 'mode', 'batch', 'px'):
            lines += ['', f'{name}:']
            shown = [dict(network=label(row), type=row['dtype']) | without(row, FIELDS) for row in group]
            lines += table(shown)
    profiles = [row for row in rows if 'parts_ms' in row]
    if profiles:
        lines += ['', '## Where the time goes', '', 'Per cent of one call under the profiler, in float32.']
        lines += table(list(shares(profiles)))
    return lines


def shares(profiles: Rows) -> Iterable[dict]:
    """Per cent of each part, one column for each profile, and the times with and without the profiler."""
    names = [f'{p["network"]}, {p["mode"]}, batch {p["batch"]}, {p["px"]} px' for p in profiles]
    for part in profiles[0]['parts_ms']:
        values = (100 * p['parts_ms'][part] / p['profiled_ms'] for p in profiles)
        yield {'part': part, **{name: f'{value:.1f}' for name, value in zip(names, values, strict=True)}}
    for title, key in (('ms under the profiler', 'profiled_ms'), ('ms without it', 'plain_ms')):
        yield {'part': title, **{name: cell(p[key]) for name, p in zip(names, profiles, strict=True)}}


def draw_model(about: dict, rows: Rows) -> plt.Figure:
    """Images per second of every mode and batch, and the parts of GrootV."""
    timed = groups([row for row in rows if 'images_per_s' in row], 'mode', 'batch', 'px')
    profiles = [row for row in rows if 'parts_ms' in row]
    count = len(timed) + bool(profiles)
    figure, panels = plt.subplots(count, figsize=(9, 3 * count), squeeze=False, layout='constrained')
    for axes, (name, some) in zip(panels.flat, timed, strict=False):
        colours = ['tab:green' if row['network'].startswith('grootv') else 'tab:grey' for row in some]
        ways = [f'{label(row)}, {row["dtype"]}' for row in some]
        axes.barh(ways, [row['images_per_s'] for row in some], color=colours)
        axes.set(xlabel='images/s', title=name)
        axes.invert_yaxis()
    if profiles:
        stacked(panels.flat[-1], profiles)
    return figure


def stacked(axes: plt.Axes, profiles: Rows) -> None:
    """Stacked shares of the parts, one bar for each profile."""
    left = np.zeros(len(profiles))
    names = [f'{p["network"]}, {p["mode"]}, batch {p["batch"]}' for p in profiles]
    for colour, part in zip(plt.get_cmap('tab20').colors, profiles[0]['parts_ms'], strict=False):
        width = np.array([100 * p['parts_ms'][part] / p['profiled_ms'] for p in profiles])
        axes.barh(names, width, left=left, label=part, color=colour)
        left += width
    axes.set(xlabel='%', title='parts')
    axes.legend(fontsize=6, loc='center left', bbox_to_anchor=(1, 0.5))


def scaling_page(about: dict, rows: Rows) -> list[str]:
    lines = targets(rows)
    for mode, some in groups([row for row in rows if 'side' in row], 'mode'):
        for key, title in (('ms', 'Time in ms'), ('mib', 'Peak memory in MiB')):
            shown = pivot(some, lambda row: f'{row["side"]} x {row["side"]}', key)
            for row in shown:
                fit = exponent(some, row[''], key)
                row['exponent'] = None if fit is None else round(fit, 2)
            lines += ['', f'## {title}, {mode}', *table(shown)]
        for row in some:
            left_out = [f'{name}, {reason}' for name, reason in row['not_measured'].items()]
            lines += ['', f'Not measured at {row["side"]}: {"; ".join(left_out)}.'] if left_out else []
    return lines


def token_page(about: dict, rows: Rows) -> list[str]:
    lines = targets(rows)
    for mode, some in groups([row for row in rows if 'length' in row], 'mode'):
        shown = pivot(some, lambda row: str(row['length']), 'us')
        lines += ['', f'## Microseconds a token, {mode}', *table(shown)]
    return lines


def draw_growth(rows: Rows, x: str, *quantities: tuple[str, str]) -> plt.Figure:
    """One row of panels for each quantity, one column for each mode; operators alone are dotted."""
    modes = groups([row for row in rows if x in row], 'mode')
    size = 6.5 * len(modes), 4.5 * len(quantities)
    figure, grid = plt.subplots(
        len(quantities), len(modes), figsize=size, squeeze=False, layout='constrained'
    )
    for column, (mode, some) in enumerate(modes):
        for axes, (quantity, title) in zip(grid[:, column], quantities, strict=True):
            for name in dict.fromkeys(name for row in some for name in row[quantity]):
                points = [(row[x], row[quantity][name]) for row in some if name in row[quantity]]
                style = dict(linestyle=':', linewidth=1) if ':' in name else dict(marker='.')
                axes.loglog(*zip(*points, strict=True), label=name, **style)
            axes.set(xlabel=x, ylabel=title, title=mode)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)
    return figure


def draw_scaling(about: dict, rows: Rows) -> plt.Figure:
    return draw_growth(rows, 'side', ('ms', 'ms'), ('mib', 'peak memory, MiB'))


def draw_tokens(about: dict, rows: Rows) -> plt.Figure:
    return draw_growth(rows, 'length', ('us', 'us a token'))


# By kind of record: title, what makes the page, what makes the picture.
KINDS = {
    'ops': ('The operators', ops_page, draw_ops),
    'model': ('GrootV compared with other networks', model_page, draw_model),
    'scaling': ('Growth with the number of vertices', scaling_page, draw_scaling),
    'tokens': ('The tree scan over tokens', token_page, draw_tokens),
}


def layout(kind: str) -> tuple[str, Callable, Callable]:
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
