"""Train a small Mamba on Python's help texts, and fine-tune it without a tree, with one, with a causal one.

``make demo-language`` runs it for three seeds and compares. ``--short`` goes through the same steps for one
seed, with too little training to score.
"""

import argparse
import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt
from steps import ROOT, Run, step, summary

DATA = 'data/topics'
START_CONFIG = 'configs/demo/language/mamba-pico_topics.py'
TUNE_CONFIG = 'configs/demo/language/grootl-pico_lora_topics.py'
SEEDS = (0, 1, 2)
VARIANTS = {
    'no tree': ('model.tree.scale=0.0',),
    'published tree': ('model.tree.scale=0.3',),
    'causal tree': ('model.tree.causal=True',),
}
MEASURES = {'perplexity': 'perplexity of the answers', 'accuracy': 'right topics of four, %'}


@dataclass
class Lengths:
    """How much is trained and asked."""

    seeds: tuple[int, ...] = SEEDS
    start: tuple[str, ...] = ()
    tune: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()


SHORT = Lengths(
    seeds=SEEDS[:1],
    start=('train_cfg.max_iters=60', 'train_cfg.val_interval=60', 'default_hooks.logger.interval=10'),
    tune=('train_cfg.max_iters=30', 'train_cfg.val_interval=30', 'default_hooks.logger.interval=5'),
    evaluate=('--limit', '20'),
)


def merge(run: Run) -> Path:
    """The folder that transformers loads, made of the run's last checkpoint."""
    folder = run.work_dir / 'model'
    written_last = folder / 'tokenizer.json'
    if not (ROOT / written_last).exists():
        shutil.rmtree(ROOT / folder, ignore_errors=True)
    command = ('tools/language/merge_lora.py', run.config, run.checkpoint, folder, *run.options)
    run.make('Folder of the model', written_last, *command)
    return folder


def reads(folder: Path) -> tuple[str, ...]:
    """Options that give a config the model and the tokenizer of a folder."""
    keys = ('model.pretrained', *(f'{side}_dataloader.dataset.tokenizer' for side in ('train', 'val')))
    return tuple(f'{key}={folder}' for key in keys)


def run_seed(folder: Path, seed: int, lengths: Lengths) -> dict[str, dict[str, float]]:
    """Train, fine-tune and evaluate with one seed; each variant's measures."""
    shared = (f'randomness.seed={seed}',)
    start = folder / 'start'
    if not (ROOT / start).exists():
        step('Random model', 'tools/language/new_model.py', f'{DATA}/texts_train.json', start, '--seed', seed)
    training = Run(START_CONFIG, folder / 'mamba', (*reads(start), *shared, *lengths.start))
    training.train()
    training.check_loss()
    base = merge(training)
    runs, models = {}, {'not fine-tuned': base}
    for name, tree in VARIANTS.items():
        print(f'\nSeed {seed}, fine-tuning with {name}')
        options = (*reads(base), *shared, *tree, *lengths.tune)
        runs[name] = Run(TUNE_CONFIG, folder / name.replace(' ', '-'), options)
        runs[name].train()
        models[name] = merge(runs[name])
    topics = folder / 'topics.json'
    evaluate = ('tools/language/evaluate.py', *models.values(), '--config', 'configs/language/topics.yml')
    runs['causal tree'].make(
        'Topics', topics, *evaluate, '--batch-size', 16, '--out', topics, *lengths.evaluate, show='|'
    )
    measured = json.loads((ROOT / topics).read_text())['measured']
    scores = {name: figures['tasks']['topic'] for name, figures in zip(models, measured, strict=True)}
    results = {name: dict(accuracy=score['value']) for name, score in scores.items()}
    for name, run in runs.items():
        results[name]['perplexity'] = run.logged('perplexity')[-1]
    return results


def table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Mean and standard deviation over the seeds, in Markdown."""
    lines = ['| | ' + ' | '.join(MEASURES.values()) + ' |', '|---|---:|---:|']
    for name in next(iter(results.values())):
        cells = []
        for measure in MEASURES:
            values = [result[name][measure] for result in results.values() if measure in result[name]]
            spread = f' ± {stdev(values):.2f}' if len(values) > 1 else ''
            cells.append(f'{mean(values):.2f}{spread}' if values else '')
        lines.append(f'| {name} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def page(record: Mapping) -> str:
    """The record as a page in Markdown, beside the plot."""
    results = record['seeds']
    return (
        f'# A small language model with and without the tree\n\n'
        f'By `{record["command"]}` on Python {record["python"]}: mean and standard deviation over '
        f'{len(results)} seeds.\nWhat is measured, and on what: [GrootL](../language.md#see-it-run).\n\n'
        f'{table(results)}\n![](language_demo.png)\n'
    )


def draw(results: Mapping[str, Mapping[str, Mapping[str, float]]], out: Path) -> None:
    """A point a seed, lines between the variants of a seed."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout='constrained')
    for panel, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        for seed, result in results.items():
            panel.plot(
                list(VARIANTS), [result[name][measure] for name in VARIANTS], 'o-', label=f'seed {seed}'
            )
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
    os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')  # it would tell of kernels that are not there

    step('Data', 'tools/dataset_converters/topics.py', DATA)
    results = {}
    for number, seed in enumerate(lengths.seeds, 1):
        print(f'\nSeed {seed} ({number} of {len(lengths.seeds)})', flush=True)
        results[str(seed)] = run_seed(folder / f'seed-{seed}', seed, lengths)
    result, text, plot = (folder / f'language_demo.{kind}' for kind in ('json', 'md', 'png'))
    record = dict(
        command=f'make demo-language{" ARGS=--short" if short else ""}',
        python=platform.python_version(),
        seeds=results,
    )
    (ROOT / result).write_text(json.dumps(record, indent=1) + '\n')
    (ROOT / text).write_text(page(record))
    draw(results, ROOT / plot)
    print(f'\n{table(results)}')
    summary(results=result, table=text, plot=plot)


if __name__ == '__main__':
    main()
