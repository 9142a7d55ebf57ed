"""Which metric should the tree over the tokens of a text have?

    python tools/dataset_converters/topics.py data/topics
    python tools/language/new_model.py data/topics/texts_train.json data/token_metrics --layers 2
    python experiments/token_metrics.py --jobs 2 --out experiments/results/edge_decay/token_metrics.jsonl

A small Mamba learns from nothing to continue Python's help texts: it reads WINDOW / 2 tokens along the chain
and along a tree, and predicts the next WINDOW / 2. docs/tree.md has the arms.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import edge_decay
import measure
import tables
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, MambaForCausalLM

from grootv import cli, ops
from grootv.errors import UserError
from grootv.language import use_tree_scan
from grootv.language.data import read_texts
from grootv.language.model import load_tokenizer, read_folder

WINDOW = 256  # tokens, of which the first half is context
STRIDE = 16  # between the starts of training windows
STEPS, RATE = 600, 4e-3


def cosine(x: Tensor, B: Tensor, pairs: Tensor) -> Tensor:
    """GrootL's: minus the cosine between what two tokens add to the state, x (B, L, C) times B (B, L, N)."""
    return -torch.stack([F.cosine_similarity(*v[:, pairs].unbind(2), dim=-1) for v in (x, B)]).prod(0)


def euclidean(x: Tensor, B: Tensor, pairs: Tensor) -> Tensor:
    """The square of the distance between the two products."""
    norms, dots = [], []
    for v in (x, B):
        earlier, later = v[:, pairs].unbind(2)
        norms.append((earlier.square().sum(-1), later.square().sum(-1)))
        dots.append((earlier * later).sum(-1))
    return norms[0][0] * norms[1][0] + norms[0][1] * norms[1][1] - 2 * dots[0] * dots[1]


def manhattan(x: Tensor, B: Tensor, pairs: Tensor) -> Tensor:
    """The sum of the absolute differences of the two products."""
    earlier, later = pairs.unbind(1)
    return sum(
        (x[:, earlier] * b[:, earlier, None] - x[:, later] * b[:, later, None]).abs().sum(-1)
        for b in B.unbind(-1)
    )


def random(x: Tensor, B: Tensor, pairs: Tensor) -> Tensor:
    return torch.rand(len(x), len(pairs))


METRICS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    'cosine': cosine,
    'euclidean': euclidean,
    'manhattan': manhattan,
    'random tree': random,
}
ARMS = 'no tree', *METRICS


class Trees:
    """:func:`grootv.ops.token_tree` by another metric, and what its trees look like.

    Attributes:
        chained: Share of the context's tokens whose parent is the next token, of each tree.
    """

    def __init__(self, metric: str):
        self.metric, self.chained = METRICS[metric], []

    def __call__(self, x: Tensor, B: Tensor, context: Tensor, reach: int, causal: bool) -> ops.Tree:
        length, edges = x.shape[1], ops.token_edges(x.shape[1], reach)
        absent = ops.token_edge_weight(x, B, context, reach).isinf()
        weight = self.metric(x, B, edges.long()).masked_fill(absent, torch.inf)
        chosen = ops.minimum_spanning_tree_from_edges(edges, weight, length)
        tree = ops.breadth_first_order_from_edges(edges, chosen, length, root=length - 1)
        inside = int(context[:, 1].min()) - 1
        self.chained.append((tree.parent[:, :inside] == torch.arange(1, inside + 1)).float().mean().item())
        return tree


class Network(nn.Module):
    """A Mamba that reads half a window, and its logits (B, vocabulary, WINDOW / 2) for the other half."""

    def __init__(self, config: Any, arm: str):
        super().__init__()
        self.model = use_tree_scan(MambaForCausalLM(config), scale=0.0 if arm == 'no tree' else 0.3)

    def forward(self, windows: Tensor) -> Tensor:
        half = windows.shape[1] // 2
        context = torch.full((len(windows),), half)
        return self.model(windows, context_length=context).logits[:, half - 1 : -1].transpose(1, 2)


def windows(texts: list[str], tokenizer: Any, stride: int) -> Tensor:
    """Windows (N, WINDOW) of the texts in a row, end-of-text after each."""
    ids = tokenizer(texts, add_special_tokens=False).input_ids
    stream = torch.tensor([i for text in ids for i in (*text, tokenizer.eos_token_id)])
    if len(stream) < WINDOW:
        raise UserError(f'token_metrics: the texts of a side have {WINDOW} tokens or more, got {len(stream)}')
    return stream.unfold(0, WINDOW, stride)


def run(arm: str, seed: int, model: Path, data: Path, quick: bool) -> dict:
    """Train, and score the held-out texts; the row."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(model)
    read = lambda side: read_texts('token_metrics', data / f'texts_{side}.json')  # noqa: E731
    inputs, tests = (
        windows(read('train'), tokenizer, STRIDE),
        windows(read('held-out'), tokenizer, WINDOW // 2),
    )
    steps, tests = (3, tests[:8]) if quick else (STEPS, tests)
    torch.manual_seed(seed)
    network = Network(read_folder('model', model, AutoConfig.from_pretrained), arm)
    trees, start = Trees(arm if arm in METRICS else 'cosine'), time.monotonic()
    with mock.patch('grootv.language.mixer.token_tree', trees):
        labels = inputs[:, WINDOW // 2 :]
        edge_decay.train(network, [inputs], labels, steps, seed, f'{arm}, seed {seed}', RATE)
        taken = time.monotonic() - start
        network.eval()
        trees.chained.clear()
        with torch.no_grad():
            loss = torch.cat(
                [
                    F.cross_entropy(network(some), some[:, WINDOW // 2 :], reduction='none')
                    for some in tests.split(16)
                ]
            ).mean()
    chained = mean(trees.chained) if trees.chained else None
    return dict(arm=arm, seed=seed, train_s=taken, perplexity=loss.exp().item(), chained=chained)


def page(rows: tables.Rows) -> list[str]:
    some, shown = edge_decay.by_arm(rows), []
    plain = {row['seed']: row['perplexity'] for row in some.get('no tree', [])}
    for arm, own in some.items():
        changes = [row['perplexity'] - plain[row['seed']] for row in own if row['seed'] in plain]
        row = {'': arm, 'perplexity': edge_decay.spread([row['perplexity'] for row in own])}
        row['less that of no tree, seed by seed'] = ', '.join(f'{change:+.2f}' for change in changes)
        chained = [row['chained'] for row in own if row['chained'] is not None]
        row['parent is the next token'] = edge_decay.spread(chained) if chained else ''
        shown.append(row | dict(s=round(mean(row['train_s'] for row in own))))
    return ['', f'Mean and standard deviation over {len(own)} seeds.', *tables.table(shown)]


def draw(rows: tables.Rows) -> tables.plt.Figure:
    """A point a seed, lines between the arms of a seed."""
    figure, axes = tables.plt.subplots(figsize=(7, 3.6), layout='constrained')
    for seed in sorted({row['seed'] for row in rows}):
        own = [row for row in rows if row['seed'] == seed]
        axes.plot([row['arm'] for row in own], [row['perplexity'] for row in own], 'o-', label=f'seed {seed}')
    axes.set(ylabel='perplexity of held-out texts')
    axes.grid(axis='y', alpha=0.3)
    axes.legend()
    return figure


LAYOUT = 'Metrics of the tree over tokens', page, draw


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--seeds', type=measure.positive, default=3, help='number of seeds, from 0; default 3')
    add('--arms', nargs='+', choices=ARMS, default=list(ARMS), metavar='ARM')
    add('--jobs', type=measure.positive, default=1, help='runs at a time, a thread each; default 1')
    add('--model', type=Path, default=measure.ROOT / 'data/token_metrics', help='sizes and tokenizer')
    add('--data', type=Path, default=measure.ROOT / 'data/topics', help='folder of the texts')
    add('--quick', action='store_true', help='a few steps on a few windows')
    add('--out', type=Path, default=measure.ROOT / 'work_dirs/token_metrics.jsonl', help='record')
    args = parser.parse_args(argv)
    for folder in (args.model, args.data):
        if not folder.is_dir():
            raise UserError(f'token_metrics: {folder} does not exist: the first lines of this file make it')
    record = measure.Record('token_metrics', measure.record_path(parser, args.out), args.quick)
    runs = itertools.product(args.arms, range(args.seeds), [args.model], [args.data], [args.quick])
    for row in measure.in_processes(args.jobs, run, runs):
        record.add(**row)
    print('token_metrics:', *tables.write(args.out))


if __name__ == '__main__':
    cli.run(main)
