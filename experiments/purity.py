"""How many of an object's edges a spanning tree keeps inside it: of the colours, and of random weights.

    python experiments/purity.py --out experiments/results/edge_decay/purity.jsonl

No training. The scenes are the test scenes of edge_decay.py; a vertex has the mean colour of its pixels. An
edge counts if an end is in the marked object: inside if both are, otherwise across.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import curves
import measure
import numpy as np
import stamps
import tables
import torch
import torch.nn.functional as F
from torch import Tensor

from grootv import cli
from grootv.ops import Tree, build_tree
from grootv.visualization.topology import is_root, random_tree

SCENES: dict[str, tuple[Callable[..., tuple], tuple[int, ...]]] = {
    'curves': (curves.tracing_scene, (64, 128)),
    'photographs': (stamps.click_scene, (96, 192, 384)),
}
STRIDES = (1, 2, 4, 8)


def trees(colours: Tensor) -> dict[str, Tree]:
    """Of maps of colours (B, H, W, 3) in 0 to 255."""
    return {
        'cosine': build_tree(colours / 127.5 - 1),
        'euclidean': build_tree(colours, 'euclidean'),
        'random': random_tree(*colours.shape[:3]),
    }


def share_inside(tree: Tree, owned: Tensor) -> float:
    """Of the edges with an end among the vertices of the object, owned (B, L) bool, that with both."""
    above = owned.gather(1, tree.parent.long())
    edge = ~is_root(tree)
    return ((owned & above & edge).sum() / ((owned | above) & edge).sum()).item()


def page(rows: tables.Rows) -> list[str]:
    shown = [
        {'': row['scenes'], 'px': row['px'], 'pixels of a vertex': f'{row["stride"]} x {row["stride"]}'}
        | {tree: f'{value:.3f}' for tree, value in row['inside'].items()}
        for row in rows
    ]
    return ['', "Share of the marked object's edges that stay inside it.", *tables.table(shown)]


def draw(rows: tables.Rows) -> tables.plt.Figure:
    groups = tables.groups(rows, 'scenes', 'px')
    figure, grid = tables.plt.subplots(
        1, len(groups), figsize=(3.2 * len(groups), 3.4), layout='constrained', sharey=True, squeeze=False
    )
    for axes, (title, some) in zip(grid.flat, groups, strict=True):
        for tree in some[0]['inside']:
            axes.plot(
                [row['stride'] for row in some], [row['inside'][tree] for row in some], '.-', label=tree
            )
        axes.set(title=title, xlabel='side of a vertex, px', xscale='log')
        axes.set_xticks(STRIDES, STRIDES, minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    grid[0, 0].set_ylabel('share of the edges inside')
    grid[0, 0].legend(fontsize=8)
    return figure


LAYOUT = 'Edges inside objects', page, draw


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--count', type=measure.positive, default=100, help='scenes of a size; default 100')
    add('--quick', action='store_true', help='two scenes')
    add('--out', type=Path, default=measure.ROOT / 'work_dirs/purity.jsonl', help='record')
    args = parser.parse_args(argv)
    record = measure.Record('purity', measure.record_path(parser, args.out), args.quick)
    for scenes, (scene, sizes) in SCENES.items():
        for size in sizes:
            found = [scene(size, (0, size, number))[:2] for number in range(2 if args.quick else args.count)]
            pictures, labels = (torch.from_numpy(np.array(part)) for part in zip(*found, strict=True))
            for stride in STRIDES:
                colours = F.avg_pool2d(pictures[..., :3].permute(0, 3, 1, 2).float(), stride)
                owned = F.max_pool2d((labels == 1).float().unsqueeze(1), stride).bool().flatten(1)
                made = trees(colours.permute(0, 2, 3, 1).contiguous())
                inside = {name: share_inside(tree, owned) for name, tree in made.items()}
                record.add(scenes=scenes, px=size, stride=stride, inside=inside)
    print('purity:', *tables.write(args.out))


if __name__ == '__main__':
    cli.run(main)
