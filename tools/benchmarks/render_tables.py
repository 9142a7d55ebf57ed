"""Make the tables and the picture of a benchmark from its JSON, beside it.

    python tools/benchmarks/render_tables.py experiments/results/model_cpu.json

Nothing in them is written by hand: measure again, or run this again.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt

from grootv import cli
from grootv.errors import UserError

MIB = 2**20
Lines = list[tuple[str, ...]]


def write(path: Path) -> tuple[Path, Path]:
    """Write PATH.md and PATH.png for PATH.json."""
    found = read(path)
    page, picture = path.with_suffix('.md'), path.with_suffix('.png')
    make_page, draw = KINDS[found['kind']]
    figure = draw(found)
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    page.write_text('\n'.join(make_page(found, path.name)) + f'\n\n![]({picture.name})\n')
    return page, picture


def read(path: Path) -> dict:
    """The JSON of a benchmark that has tables."""
    if not path.is_file():
        raise UserError(f'{path} does not exist: give a JSON file that a benchmark has written')
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f'{path} is not JSON: {error}') from error
    if not isinstance(found, dict) or found.get('kind') not in KINDS:
        raise UserError(
            f'{path} was written by no benchmark with tables: it needs a kind, {" or ".join(KINDS)}'
        )
    return found


def markdown(rows: Lines, titles: tuple[str, ...], words: tuple[int, ...] = (0,)) -> list[str]:
    """A table in Markdown, with the columns ``words`` on the left and figures on the right."""
    rule = ('---' if column in words else '---:' for column in range(len(titles)))
    return [line(titles), line(rule), *map(line, rows)]


def line(cells: Iterable[str]) -> str:
    return '| ' + ' | '.join(cells) + ' |'


def heading(found: dict, source: str, title: str) -> list[str]:
    where = found['processor'] if found['device']['name'] == 'cpu' else found['device']['name']
    threads = f'{found["threads"]} thread' + 's' * (found['threads'] > 1)
    return [
        f'# {title}',
        '',
        f'Made from [{source}]({source}) by `tools/benchmarks/render_tables.py`. Measured on {where},',
        f'{threads}, torch {found["versions"]["torch"]}, commit {found["commit"]}, {found["date"][:10]}, by',
        f'`python tools/benchmarks/{found["command"]}`.',
        *(['', '**A quick run: its figures mean nothing.**'] if found['quick'] else []),
    ]


def targets(found: dict) -> list[str]:
    rows = []
    for figure in found['targets']:
        value = 'not measured' if figure['value'] is None else f'{figure["value"]:.3g} {figure["unit"]}'
        limit = '' if figure['limit'] is None else f'{figure["limit"]:g}'
        held = {None: '', True: 'met', False: 'missed'}[figure['holds']]
        if figure['holds'] is False and figure['limit']:
            held += f' by {100 * (figure["value"] / figure["limit"] - 1):.0f} %'
        rows.append((figure['name'], value, limit, held, figure['not_measured'] or figure['note']))
    return ['', '## Targets', '', *markdown(rows, ('', 'measured', 'at most', '', ''), words=(0, 3, 4))]


def label(row: dict) -> str:
    per = f', tree per {row["tree_per"]}' if row['tree_per'] else ''
    return row['network'] + per + ('' if row['how'] == 'eager' else f', {row["how"]}')


def ratio(row: dict, other: str) -> str:
    beside = row['beside'].get(other)
    if beside is None:
        return ''
    return f'{beside:.2f}' if isinstance(beside, float) else f'{beside["ratio"]:.2f}'


def model_table(rows: list[dict]) -> tuple[Lines, tuple[str, ...]]:
    """Times or peak memory of one mode and batch; ratios to whatever some row is compared with."""
    others = list(dict.fromkeys(other for row in rows for other in row['beside']))
    sizes = 'bytes' in rows[0]
    lines = []
    for row in rows:
        if sizes:
            figures = ['not measured' if row['bytes'] is None else f'{row["bytes"] / MIB:.0f}']
        else:
            figures = [
                f'{row["median_s"] * 1e3:.1f}',
                f'{row["p95_s"] * 1e3:.1f}',
                f'{row["images_per_s"]:.1f}',
            ]
            figures[0] += '' if row['finite'] else ', NaN'
        lines.append((label(row), row['dtype'], *figures, *(ratio(row, other) for other in others)))
    units = ['MiB'] if sizes else ['ms', '95 % below', 'images/s']
    return lines, ('network', 'type', *units, *(f'/ {other}' for other in others))


def groups(rows: list[dict]) -> dict[tuple, list[dict]]:
    """Rows by mode, batch and image size."""
    found = {}
    for row in rows:
        found.setdefault((row['mode'], row['batch'], row['input_size']), []).append(row)
    return found


TIME = "Medians of calls that take turns; ratios are medians of the rounds' quotients."
MEMORY = """\
Of a process of its own: weights, gradients, optimizer, activations and scratch memory, but neither Python nor
libraries nor freed memory that the C library keeps."""
PROFILE = """\
Per cent of one call under the profiler, in float32. The steps of `build_tree` divide its time as they do when
each runs alone."""


def model_page(found: dict, source: str) -> list[str]:
    lines = [*heading(found, source, 'GrootV beside other networks'), *targets(found)]
    for title, text, rows in (('Time', TIME, found['rows']), ('Peak memory', MEMORY, found['memory'])):
        lines += ['', f'## {title}', '', text]
        for (mode, batch, size), some in groups(rows).items():
            lines += [
                '',
                f'{mode}, batch {batch}, {size} px:',
                '',
                *markdown(*model_table(some), words=(0, 1)),
            ]
    if found['profiles']:
        lines += ['', '## Where the time goes', '', PROFILE, '', *markdown(*profile_table(found['profiles']))]
    return lines


def profile_table(profiles: list[dict]) -> tuple[Lines, tuple[str, ...]]:
    titles = [f'{p["network"]}, {p["mode"]}, batch {p["batch"]}, {p["input_size"]} px' for p in profiles]
    rows = []
    for part in profiles[0]['parts']:
        rows.append((part, *(f'{100 * p["parts"][part] / p["seconds"]:.1f}' for p in profiles)))
    rows.append(('ms under the profiler', *(f'{p["seconds"] * 1e3:.1f}' for p in profiles)))
    rows.append(('ms without it', *(f'{p["unprofiled_seconds"] * 1e3:.1f}' for p in profiles)))
    return rows, ('part', *titles)


def draw_model(found: dict) -> plt.Figure:
    """Images per second of every mode, and the parts of GrootV; one row of panels for each batch."""
    ours = next(iter(found['parameters']))
    rows = [row for row in found['rows'] if row['network'] in found['parameters']]
    batches, modes = (list(dict.fromkeys(row[key] for row in rows)) for key in ('batch', 'mode'))
    ways = len({(label(row), row['dtype']) for row in rows})
    size = 3.2 * len(modes) + 6, len(batches) * (1 + 0.25 * ways)
    figure, grid = plt.subplots(
        len(batches), len(modes) + 1, figsize=size, squeeze=False, layout='constrained'
    )
    for batch, panels in zip(batches, grid, strict=True):
        for mode, axes in zip(modes, panels, strict=False):
            shown = [row for row in rows if (row['batch'], row['mode']) == (batch, mode)]
            colours = ['tab:green' if row['network'] == ours else 'tab:grey' for row in shown]
            axes.barh(
                [f'{label(row)}, {row["dtype"]}' for row in shown],
                [row['images_per_s'] for row in shown],
                color=colours,
            )
            axes.invert_yaxis()
            axes.set(xlabel='images/s', title=f'{mode}, batch {batch}')
            axes.tick_params(axis='y', labelleft=axes is panels[0])
        profiles = [each for each in found['profiles'] if (each['network'], each['batch']) == (ours, batch)]
        draw_shares(panels[-1], profiles)
    return figure


def draw_shares(axes: plt.Axes, profiles: list[dict]) -> None:
    """Stacked shares of the parts, one bar for each profile."""
    axes.set_visible(bool(profiles))
    bottom = [0.0] * len(profiles)
    parts = profiles[0]['parts'] if profiles else ()
    for colour, part in zip(plt.get_cmap('tab20').colors, parts, strict=False):
        heights = [100 * each['parts'][part] / each['seconds'] for each in profiles]
        axes.bar([each['mode'] for each in profiles], heights, bottom=bottom, label=part, color=colour)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.set(ylabel='%', title='parts of GrootV')
    if profiles:
        axes.legend(fontsize=6, loc='center left', bbox_to_anchor=(1, 0.5))


def scaling_table(rows: list[dict]) -> tuple[Lines, tuple[str, ...]]:
    """Times and peak memory of one mode and side."""
    lines = []
    for row in rows:
        times = [row['median_s'], row['p95_s']]
        cells = [row['not_measured'] or ''] if times[0] is None else [f'{times[0] * 1e3:.2f}']
        cells += ['' if times[1] is None else f'{times[1] * 1e3:.2f}']
        cells += ['' if row.get('bytes') is None else f'{row["bytes"] / MIB:.1f}']
        lines.append((row['name'], *cells))
    return lines, ('', 'ms', '95 % below', 'MiB')


def scaling_page(found: dict, source: str) -> list[str]:
    lines = heading(found, source, 'Growth with the number of vertices')
    lines += targets(found)
    for mode in dict.fromkeys(row['mode'] for row in found['rows']):
        rows = [row for row in found['rows'] if row['mode'] == mode]
        for quantity, (title, form) in QUANTITIES.items():
            lines += ['', f'## {title}, {mode}', '', *markdown(*growth_table(found, rows, quantity, form))]
        reasons = {f'{row["name"]}: {row["not_measured"]}' for row in rows if row.get('not_measured')}
        lines += ['', 'Not measured: ' + '; '.join(sorted(reasons)) + '.'] if reasons else []
    return lines


# What is drawn and tabulated, with its title and how a cell shows it.
QUANTITIES = {
    'median_s': ('Time in ms', lambda seconds: f'{seconds * 1e3:.2f}'),
    'bytes': ('Peak memory in MiB', lambda size: f'{size / MIB:.1f}'),
}


def growth_table(found: dict, rows: list[dict], quantity: str, form) -> tuple[Lines, tuple[str, ...]]:
    """One row for each layer, one column for each side, and the exponent."""
    rows = [row for row in rows if quantity in row]
    sides = sorted({row['side'] for row in rows})
    lines = []
    for name in dict.fromkeys(row['name'] for row in rows):
        values = {row['side']: row[quantity] for row in rows if row['name'] == name}
        cells = ['' if values.get(side) is None else form(values[side]) for side in sides]
        p = slope(found, name, rows[0]['mode'], quantity)
        lines.append((name, *cells, '' if p is None else f'{p:.2f}'))
    return lines, ('', *(f'{side} x {side}' for side in sides), 'exponent')


def slope(found: dict, name: str, mode: str, quantity: str) -> float | None:
    wanted = dict(name=name, mode=mode, quantity=quantity)
    return next((fit['exponent'] for fit in found['exponents'] if wanted.items() <= fit.items()), None)


def draw_scaling(found: dict) -> plt.Figure:
    """Time above, memory below, one column for each mode; the operators alone are dotted."""
    modes = list(dict.fromkeys(row['mode'] for row in found['rows']))
    figure, grid = plt.subplots(
        2, len(modes), figsize=(6.5 * len(modes), 9), squeeze=False, layout='constrained'
    )
    for column, mode in enumerate(modes):
        for axes, (quantity, (title, _)) in zip(grid[:, column], QUANTITIES.items(), strict=True):
            scale = 1e3 if quantity == 'median_s' else 1 / MIB
            rows = [row for row in found['rows'] if row['mode'] == mode and row.get(quantity)]
            for name in dict.fromkeys(row['name'] for row in rows):
                points = [(row['vertices'], scale * row[quantity]) for row in rows if row['name'] == name]
                p = slope(found, name, mode, quantity)
                style = dict(linestyle=':', linewidth=1) if ':' in name else dict(marker='.')
                axes.loglog(
                    *zip(*points, strict=True), label=name if p is None else f'{name}, {p:.2f}', **style
                )
            axes.set(xlabel='vertices', ylabel=title, title=mode)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)
    return figure


def token_table(rows: list[dict]) -> tuple[Lines, tuple[str, ...]]:
    """Times of one mode: one row for each operator or layer, one column for each length."""
    lengths = sorted({row['length'] for row in rows})
    lines = []
    for name in dict.fromkeys(row['name'] for row in rows):
        share = {row['length']: 1e6 * row['median_s'] / row['length'] for row in rows if row['name'] == name}
        lines.append((name, *(f'{share[length]:.2f}' if length in share else '' for length in lengths)))
    return lines, ('us a token', *map(str, lengths))


def token_page(found: dict, source: str) -> list[str]:
    lines = [*heading(found, source, 'The tree scan over tokens'), *targets(found)]
    for mode in dict.fromkeys(row['mode'] for row in found['rows']):
        rows = [row for row in found['rows'] if row['mode'] == mode]
        lines += ['', f'## Microseconds a token, {mode}', '', *markdown(*token_table(rows))]
    return lines


def draw_tokens(found: dict) -> plt.Figure:
    """Time per token against the length, one panel for each mode."""
    modes = list(dict.fromkeys(row['mode'] for row in found['rows']))
    figure, (panels,) = plt.subplots(
        1, len(modes), figsize=(6 * len(modes), 4.5), squeeze=False, layout='constrained'
    )
    for mode, axes in zip(modes, panels, strict=True):
        rows = [row for row in found['rows'] if row['mode'] == mode]
        for name in dict.fromkeys(row['name'] for row in rows):
            points = [
                (row['length'], 1e6 * row['median_s'] / row['length']) for row in rows if row['name'] == name
            ]
            axes.loglog(*zip(*points, strict=True), label=name, marker='.')
        lengths = sorted({row['length'] for row in rows})
        axes.set_xticks(lengths, map(str, lengths))
        axes.minorticks_off()
        axes.set(xlabel='tokens', ylabel='us a token', title=mode)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


KINDS = {
    'model': (model_page, draw_model),
    'scaling': (scaling_page, draw_scaling),
    'tokens': (token_page, draw_tokens),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('json', nargs='+', type=Path, help='file that a benchmark has written')
    for path in parser.parse_args().json:
        print('wrote', *write(path))


if __name__ == '__main__':
    cli.run(main)
