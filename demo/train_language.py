"""Train a small Mamba on Python's help texts, and fine-tune it without a tree, with one, with a causal one.

``make demo-language`` runs it for three seeds and compares. ``--short`` goes through the same steps for one
seed, with too little training to score.
"""

import argparse
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt
from steps import ROOT, Run, step, summary
from tabulate import tabulate

DATA = 'data/topics'
START_CONFIG = 'configs/demo/language/mamba-pico_topics.py'
TUNE_CONFIG = 'configs/demo/language/grootl-pico_lora_{}.py'
VARIANTS = {
    'no tree': ('model.tree.scale=0.0',),
    'published tree': ('model.tree.scale=0.3',),
    'causal tree': ('model.tree.causal=True',),
}
Results = Mapping[str, Mapping[str, Mapping[str, float]]]  # by seed, variant and measure
MEASURES = {'perplexity': 'perplexity of the continuation', 'accuracy': 'right topics of four, %'}


@dataclass
class Lengths:
    """How many seeds are run, and options that shorten the steps of each."""

    seeds: tuple[int, ...] = (0, 1, 2)
    start: tuple[str, ...] = ()
    tune: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()


SHORT = Lengths(
    seeds=(0,),
    start=('train_cfg.max_iters=60', 'train_cfg.val_interval=60', 'default_hooks.logger.interval=10'),
    tune=('train_cfg.max_iters=30', 'train_cfg.val_interval=30', 'default_hooks.logger.interval=5'),
    evaluate=('--limit', '20'),
)


def merge(run: Run) -> Path:
    """The folder that transformers loads, made of the run's last checkpoint."""
    folder = run.work_dir / 'model'
    written_last = folder / 'tokenizer.json'
    if not run.made(written_last):
        shutil.rmtree(ROOT / folder, ignore_errors=True)
        command = ('tools/language/merge_lora.py', run.config, run.checkpoint, folder, *run.options)
        step('Folder of the model', *command, label=run.label)
    return folder


class Seed:
    """The runs of one seed, of the random weights and of the order of the data, below a folder."""

    def __init__(self, seed: int, folder: Path, lengths: Lengths):
        self.seed, self.lengths = seed, lengths
        self.start, self.topics = folder / 'start', folder / 'topics.json'

        def run(config: str, name: str, model: Path, *options: str) -> Run:
            loaders = ('train_dataloader', 'val_dataloader')
            tokenizers = (f'{loader}.dataset.tokenizer={model}' for loader in loaders)
            shared = (f'model.pretrained={model}', *tokenizers, f'randomness.seed={seed}')
            label = f'[seed {seed}, {name}] '
            return Run(config, folder / name.replace(' ', '-'), (*shared, *options), label)

        self.base = run(START_CONFIG, 'mamba', self.start, *lengths.start)
        model = self.base.work_dir / 'model'
        self.runs = {
            (task, name): run(TUNE_CONFIG.format(task), f'{task}-{name}', model, *tree, *lengths.tune)
            for task in ('continue', 'name')
            for name, tree in VARIANTS.items()
        }

    def train(self) -> None:
        """Learn the language from nothing."""
        if not (ROOT / self.start).exists():
            new = ('tools/language/new_model.py', f'{DATA}/texts_train.json', self.start, '--seed', self.seed)
            step('Random model', *new, label=self.base.label)
        self.base.train()
        self.base.check_loss()
        merge(self.base)

    def evaluate(self) -> None:
        """Ask every variant for the topics, and the model they start from."""
        runs = [self.runs['name', name] for name in VARIANTS]
        models = [merge(run) for run in (self.base, *runs)]
        newest = max(runs, key=lambda run: (ROOT / run.checkpoint).stat().st_mtime)
        command = ('tools/language/evaluate.py', *models, '--config', 'configs/language/topics.yml')
        options = ('--batch-size', 16, '--out', self.topics, *self.lengths.evaluate)
        newest.make('Topics', self.topics, *command, *options, show='|')

    def results(self) -> dict[str, dict[str, float]]:
        """Each variant's measures."""
        measured = json.loads((ROOT / self.topics).read_text())['measured']
        scores = [figures['tasks']['topic']['value'] for figures in measured]
        results = {'not fine-tuned': dict(accuracy=scores[0])}
        for name, score in zip(VARIANTS, scores[1:], strict=True):
            perplexity = self.runs['continue', name].logged('perplexity')[-1]
            results[name] = dict(accuracy=score, perplexity=perplexity)
        return results


def run_all(seeds: list[Seed]) -> None:
    """Train, fine-tune and evaluate, two at a time: one thread each uses two cores better."""
    phases = (
        [seed.train for seed in seeds],
        [run.train for seed in seeds for run in seed.runs.values()],
        [seed.evaluate for seed in seeds],
    )
    with ThreadPoolExecutor(2) as pool:
        for calls in phases:
            list(pool.map(lambda call: call(), calls))  # raises what a call raises, and starts no other


def table(results: Results) -> str:
    """Mean and standard deviation over the seeds, in Markdown."""

    def cell(name: str, measure: str) -> str:
        values = [result[name][measure] for result in results.values() if measure in result[name]]
        spread = f' ± {stdev(values):.2f}' if len(values) > 1 else ''
        return f'{mean(values):.2f}{spread}' if values else ''

    return markdown('', next(iter(results.values())), cell)


def differences(results: Results) -> str:
    """What a tree changes, seed by seed, in Markdown."""
    plain, *trees = VARIANTS

    def cell(name: str, measure: str) -> str:
        return ', '.join(f'{r[name][measure] - r[plain][measure]:+.2f}' for r in results.values())

    return markdown(f'compared with {plain}, seed by seed', trees, cell)


def markdown(corner: str, names: Iterable[str], cell: Callable[[str, str], str]) -> str:
    rows = [[name, *(cell(name, measure) for measure in MEASURES)] for name in names]
    head = [corner, *MEASURES.values()]
    align = ('left', 'right', 'right')
    return tabulate(rows, head, tablefmt='pipe', colalign=align, disable_numparse=True) + '\n'


def page(record: Mapping) -> str:
    """The record as a page in Markdown, next to the plot."""
    results = record['seeds']
    versions = ', '.join(f'{name} {number}' for name, number in record['versions'].items())
    return (
        f'# A small language model with and without the tree\n\n'
        f'By `{record["command"]}` with {versions}: mean and standard deviation over {len(results)} seeds.\n'
        f'What is measured, and on what: [GrootL](../../docs/language.md#see-it-run).\n\n'
        f'{table(results)}\n{differences(results)}\n![](language_demo.png)\n'
    )


def draw(results: Results, out: Path) -> None:
    """A point a seed, lines between the variants of a seed."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout='constrained')
    for panel, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        for seed, result in results.items():
            values = [result[name][measure] for name in VARIANTS]
            panel.plot(list(VARIANTS), values, 'o-', label=f'seed {seed}')
        panel.set_ylabel(label)
        panel.grid(axis='y', alpha=0.3)
    panels[1].axhline(25, color='grey', linestyle=':', label='guessing')
    panels[1].legend()
    figure.savefig(out, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--short', action='store_true', help='train for a minute only, to see that it works')
    short = parser.parse_args().short
    lengths = SHORT if short else Lengths()
    folder = Path('work_dirs/short-language' if short else 'work_dirs/language')
    os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')  # without: warnings about missing kernels
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    step('Data', 'tools/dataset_converters/topics.py', DATA)
    seeds = [Seed(seed, folder / f'seed-{seed}', lengths) for seed in lengths.seeds]
    run_all(seeds)
    results = {str(seed.seed): seed.results() for seed in seeds}
    result, text, plot = (folder / f'language_demo.{kind}' for kind in ('json', 'md', 'png'))
    record = dict(
        command=f'make demo-language{" ARGS=--short" if short else ""}',
        versions=dict(Python=platform.python_version(), torch=version('torch')),
        seeds=results,
    )
    (ROOT / result).write_text(json.dumps(record, indent=1) + '\n')
    (ROOT / text).write_text(page(record))
    draw(results, ROOT / plot)
    print(f'\n{table(results)}\n{differences(results)}')
    summary(results=result, table=text, plot=plot)


if __name__ == '__main__':
    main()
