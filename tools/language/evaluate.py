"""Evaluate language models on the tasks of a config with lm-eval, from data on this machine.

python tools/language/evaluate.py work_dirs/grootl-130m --out work_dirs/zero-shot.json

The config names the tasks and their data; published figures, if it has any, are shown in a second table.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
import importlib.metadata
import json
import logging
import os
import shlex
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1')  # read when datasets is imported
os.environ['DISABLE_MULTIPROC'] = '1'  # lm-eval would fork a process that has threads, which can hang

import datasets
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from tabulate import tabulate

from grootv import cli
from grootv.errors import UserError
from grootv.files import write_atomically
from grootv.language.lm_eval_model import GrootLM
from grootv.language.lm_eval_tasks import SETTINGS
from grootv.language.model import CONTEXT_RULES

CONFIG = Path(__file__).resolve().parents[2] / 'configs/language/zero-shot.yml'
UNITS = dict(acc='%', acc_norm='%', perplexity='ppl')  # of a task's metric
Tasks = Mapping[str, Mapping[str, Any]]  # settings by the name of a task
PACKAGES = ('grootv', 'torch', 'transformers', 'lm-eval', 'datasets')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('models', nargs='+', type=Path, help='folders of the models')
    add('--config', default=CONFIG, help='tasks; default configs/language/zero-shot.yml')
    add('--tasks', nargs='+', help='some of the tasks of the config; default all')
    add('--data-root', help="in place of the config's")
    add('--scale', type=float, help="weight of the tree; default the folder's, or 0.3")
    add('--causal', action=argparse.BooleanOptionalAction, help='as --scale')
    add('--context-rule', choices=CONTEXT_RULES, help='minimum: the published rule')
    add('--limit', type=cli.positive, help='take the first items of each task only')
    add('--batch-size', type=cli.positive, default=8, help='items at once; default 8')
    add('--device', help='default a GPU if there is one')
    add('--dtype', choices=['float32', 'bfloat16', 'float16'], default='float32')
    add('--out', type=Path, help='JSON file to write; the tables go next to it, in Markdown')
    return parser.parse_args()


def data_of(name: str, task: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Where a task's data are, in lm-eval's words.

    Raises:
        UserError: If they are missing, or lack the split that is scored.
    """
    files = task['data'] if isinstance(task['data'], Mapping) else {}
    paths = {split: str(root / file) for split, file in files.items()}
    for path in map(Path, paths.values() or [root / task['data']]):
        if not path.exists():
            raise UserError(
                f'the data of task {name} are missing: {path} does not exist, put them there '
                'or give --data-root'
            )
    if paths:
        found = dict(dataset_path='json', dataset_name=None, dataset_kwargs=dict(data_files=paths))
        splits = list(paths)
    else:
        folder = str(root / task['data'])
        try:
            names = datasets.get_dataset_config_names(folder)
            chosen = task.get('name') if task.get('name') in names else None
            splits = datasets.get_dataset_split_names(folder, chosen)
        except Exception as error:  # whatever files that are no data make the readers raise
            raise UserError(f'the data of task {name} cannot be read: {folder}: {error}') from error
        found = dict(dataset_path=folder, dataset_name=chosen)
    if task['split'] not in splits:
        raise UserError(f'the data of task {name} have no split {task["split"]}, but {", ".join(splits)}')
    return found


def lm_eval_tasks(tasks: Tasks, data: Tasks) -> tuple[list[dict], TaskManager]:
    """The tasks with their data as lm-eval takes them: its own by name, others by their settings."""
    new, own = [], []
    for name, task in tasks.items():
        settings = task.get('settings')
        settings = SETTINGS[settings] if isinstance(settings, str) else settings
        splits = dict(training_split=None, validation_split=None, test_split=task['split'])
        member = dict(task=name, **splits, **(settings or {}), **data[name])
        (new if settings else own).append(member)
    # A member of a group has what lm-eval says of the task of its name.
    groups = [dict(group='grootl', task=own)] if own else []
    return new + groups, TaskManager(include_defaults=bool(own))


def evaluate(model: Path, tasks: Tasks, data: Tasks, args: argparse.Namespace) -> dict[str, Any]:
    """Metrics of a model by task: ``value``, ``stderr`` and the number of ``items``."""
    options = ('scale', 'causal', 'context_rule', 'device', 'dtype', 'batch_size')
    lm = GrootLM(model, **{name: getattr(args, name) for name in options})
    specification, manager = lm_eval_tasks(tasks, data)
    settings = dict(limit=args.limit, bootstrap_iters=1000, log_samples=False)
    results = simple_evaluate(lm, tasks=specification, task_manager=manager, **settings)
    found = {}
    for name, task in tasks.items():
        figures, metric = results['results'][name], task['metric']
        percent = 100 if UNITS[metric] == '%' else 1
        found[name] = dict(
            metric=metric,
            value=percent * figures[f'{metric},none'],
            stderr=percent * figures[f'{metric}_stderr,none'],
            items=results['n-samples'][name]['effective'],
        )
    return dict(model=str(model), tree=lm.model.config.tree, tasks=found)


def tables(record: Mapping[str, Any]) -> str:
    """What was measured, and below it what was published."""
    tasks = record['measured'][0]['tasks']
    head = ['model', *(f'{name}, {UNITS[task["metric"]]}' for name, task in tasks.items())]
    table = partial(tabulate, headers=head, tablefmt='pipe', disable_numparse=True)
    align = ('left', *len(tasks) * ['right'])
    rows = [['items', *(task['items'] for task in tasks.values())]]
    for measured in record['measured']:
        figures = measured['tasks'].values()
        rows.append([measured['model'], *(f'{f["value"]:.1f} ± {f["stderr"]:.1f}' for f in figures)])
    text = f'Measured by `{record["command"]}`:\n\n{table(rows, colalign=align)}\n'
    published = record['published']
    if published:
        rows = [[model, *map(figures.get, tasks)] for model, figures in published['models'].items()]
        text += f'\nPublished ({published["source"]}):\n\n{table(rows, colalign=align)}\n'
    return text


def main() -> None:
    args = parse_args()
    for name in ('lm_eval', 'lm-eval', 'datasets'):
        logging.getLogger(name).setLevel(logging.ERROR)
    config = cli.load_config(args.config)
    root = Path(args.data_root or config.get('data_root', ''))
    unknown = sorted(set(args.tasks or []) - config.tasks.keys())
    if unknown:
        raise UserError(f'--tasks: {unknown[0]} is none of {", ".join(config.tasks)}')
    tasks = {name: config.tasks[name] for name in args.tasks or config.tasks}
    for name, task in tasks.items():
        if isinstance(task.get('settings'), str) and task.settings not in SETTINGS:
            raise UserError(f'settings of task {name}: {task.settings!r} is none of {", ".join(SETTINGS)}')
    data = {name: data_of(name, task, root) for name, task in tasks.items()}
    record = dict(
        command=shlex.join(['python', *sys.argv]),
        packages={name: importlib.metadata.version(name) for name in PACKAGES},
        dtype=args.dtype,
        limit=args.limit,
        context_rule=args.context_rule or 'item',
        measured=[evaluate(model, tasks, data, args) for model in args.models],
        published=config.get('published'),
    )
    print(tables(record))
    if args.out:
        texts = {args.out: json.dumps(record, indent=1) + '\n', args.out.with_suffix('.md'): tables(record)}
        for path, text in texts.items():
            with write_atomically(path) as draft:
                draft.write_text(text)


if __name__ == '__main__':
    cli.run(main)
