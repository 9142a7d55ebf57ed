"""A tree in figures, compared with random trees and the raster scan, over one image or many."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from torch import Tensor

from grootv.ops import Tree

from .blocks import BlockTree
from .topology import (
    edge_weight,
    is_root,
    path_length,
    random_tree,
    raster_tree,
    share_inside,
    vertex_degree,
    vertex_depth,
)
from .tree import DISTANCES

KINDS = dict(tree='spanning tree', random='random tree', raster='raster scan')
COLOURS = dict(tree='tab:red', random='tab:blue', raster='0.45')
RANDOM_TREES = 10
PAIRS = 2000  # of vertices, whose paths are measured
BINS = 30
QUANTITIES = {
    'edge_weight': ('edge weight', 'edges'),
    'depth': ('depth: edges to the root', 'vertices'),
    'path_length': ('path length: edges between two random vertices', 'pairs'),
    'degree': ('degree: edges of a vertex', 'vertices'),
}


@dataclass
class Sample:
    """What was measured on trees of one kind: a vector for each of ``QUANTITIES``.

    ``inside`` is the share of the edges inside one label, of every tree; empty without labels.
    """

    values: dict[str, np.ndarray]
    inside: np.ndarray


def measure(
    block: BlockTree, labels: Tensor | None, ignore: int | None, generator: torch.Generator
) -> dict[str, Sample]:
    """Samples of a block's tree, of random trees and of the raster scan over the same vertices, by kind.

    Args:
        block: Tree of one image.
        labels: Label of every vertex, shape (1, L), or None.
        ignore: Edges with an end of this label are not counted.
        generator: Draws the random trees and the pairs of vertices.
    """
    count = block.tree.parent.shape[1]
    pairs = torch.randint(count, (2, 1, PAIRS), generator=generator)
    drawn = [random_tree(1, *block.grid, generator=generator) for _ in range(RANDOM_TREES)]
    trees = dict(tree=[block.tree], random=drawn, raster=[raster_tree(1, count)])

    def sample(tree: Tree) -> Sample:
        values = dict(
            edge_weight=edge_weight(block.vertices, tree, block.metric)[~is_root(tree)],
            depth=vertex_depth(tree)[0],
            path_length=path_length(tree, *pairs)[0],
            degree=vertex_degree(tree)[0],
        )
        inside = [] if labels is None else share_inside(labels, tree, ignore)
        return Sample({name: value.numpy() for name, value in values.items()}, np.asarray(inside))

    return {kind: pooled([sample(tree) for tree in trees[kind]]) for kind in KINDS}


def pooled(samples: list[Sample]) -> Sample:
    """Samples of several trees or images as one."""
    values = {name: np.concatenate([one.values[name] for one in samples]) for name in QUANTITIES}
    return Sample(values, np.concatenate([one.inside for one in samples]))


def figures(one: Sample) -> dict[str, float | None]:
    """Mean and largest value of every quantity; mean and standard deviation of the share inside one label.

    None replaces what is not finite: the weights of a tree without edges, of NaN features.
    """
    found = {}
    for name, values in one.values.items():
        values = values if values.size else np.array([np.nan])
        found |= {f'{name}_mean': values.mean(), f'{name}_max': values.max()}
    if one.inside.size:
        counted = one.inside[np.isfinite(one.inside)]
        counted = counted if counted.size else np.array([np.nan])
        found |= dict(inside_label=counted.mean(), inside_label_std=counted.std())
    return {name: round(float(value), 5) if np.isfinite(value) else None for name, value in found.items()}


def histograms(by_kind: dict[str, Sample]) -> dict[str, dict[str, list]]:
    """Edges of the bins that all kinds share, and each kind's counts in them, by quantity."""
    result = {}
    for name in QUANTITIES:
        together = np.concatenate([one.values[name] for one in by_kind.values()])
        bins = bin_edges(name, together[np.isfinite(together)])
        counts = {
            kind: np.histogram(one.values[name].clip(bins[0], bins[-1]), bins)[0].tolist()
            for kind, one in by_kind.items()
        }
        result[name] = dict(bins=bins.tolist(), **counts)
    return result


def bin_edges(name: str, values: np.ndarray) -> np.ndarray:
    """Evenly spaced for weights, one a degree, and ever wider for lengths, from 0 on."""
    if name == 'degree':
        return np.arange(6) - 0.5  # a vertex of a grid has up to four edges
    if not values.size:
        return np.array([0.0, 1.0])
    if name == 'edge_weight':
        low, high = float(values.min()), float(np.quantile(values, 0.99))
        return np.linspace(low, max(high, low + 1e-6), BINS + 1)
    return np.unique(np.geomspace(1, values.max() + 2, BINS).round()) - 1


def draw_histograms(found: dict[str, dict[str, list]], metric: str, title: str) -> Figure:
    """Edge weight, depth, path length and degree; spanning tree, random trees and raster scan in each."""
    figure = Figure(figsize=(11, 6.4), layout='constrained')
    for axes, (name, (label, unit)) in zip(figure.subplots(2, 2).flat, QUANTITIES.items(), strict=True):
        bins = found[name]['bins']
        shares = {kind: np.array(found[name][kind]) / max(sum(found[name][kind]), 1) for kind in KINDS}
        if name == 'degree':
            draw_bars(axes, shares, range(len(bins) - 1))
        else:
            for kind, share in shares.items():
                axes.stairs(share, bins, linewidth=1.6, color=COLOURS[kind], label=KINDS[kind])
        if name == 'edge_weight':
            label = f'edge weight: {DISTANCES[metric]}; the last bin holds all above'
            axes.set_yscale('log')
        elif name != 'degree':
            axes.set_xscale('symlog', linthresh=1)
            axes.set_xlim(left=0)
        axes.set(xlabel=label, ylabel=f'share of the {unit} in a bin')
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


def draw_bars(axes: Axes, by_kind: dict[str, np.ndarray], labels: Iterable) -> list[BarContainer]:
    """Groups of three bars, one for each kind of tree."""
    found = []
    for offset, (kind, heights) in zip((-0.28, 0, 0.28), by_kind.items(), strict=True):
        places = np.arange(len(heights)) + offset
        found.append(axes.bar(places, heights, width=0.26, color=COLOURS[kind], label=KINDS[kind]))
    axes.set_xticks(range(len(heights)), labels)
    return found


def draw_shares(by_block: dict[str, dict[str, float]], title: str) -> Figure:
    """Share of the edges inside one label, by block and kind of tree, as bars."""
    figure = Figure(figsize=(max(6.5, 1 + 1.6 * len(by_block)), 3.8), layout='constrained')
    axes = figure.subplots()
    percent = {kind: np.array([100 * shares[kind] for shares in by_block.values()]) for kind in KINDS}
    for bars in draw_bars(axes, percent, [name.replace(', ', '\n') for name in by_block]):
        axes.bar_label(bars, fmt='%.1f', fontsize=8, padding=1)
    axes.set(ylim=(0, 122), yticks=range(0, 101, 20), ylabel='edges inside one label, %', axisbelow=True)
    axes.legend(ncols=3, loc='upper center', fontsize=9)
    axes.grid(axis='y', alpha=0.3)
    figure.suptitle(title, fontsize=11, parse_math=False)
    return figure
