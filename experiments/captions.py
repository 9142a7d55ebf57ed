"""One tree over the patches of a picture and the words of its caption, or a tree for each?

    python experiments/captions.py --seeds 3 --out experiments/results/edge_decay/captions.jsonl

A toy: the caption names the shape of one object among others; which pixels are it? The network is that of
edge_decay.py with words next to the vertices of the map. docs/tree.md has the arms.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import cv2
import edge_decay
import measure
import numpy as np
import tables
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grootv import cli
from grootv.models.backbones.grootv import MLP, Stem
from grootv.models.layers.tree_ssm import TreeSSM, convolve
from grootv.ops import (
    Tree,
    breadth_first_order_from_edges,
    build_tree,
    grid_edge_weight,
    minimum_spanning_tree_from_edges,
)
from grootv.ops.grid_graph import grid_edges
from grootv.visualization.topology import raster_tree

SIZE = 64
SHAPES = 4  # triangle, square, disc, cross: the words 0 to 3
WORDS, LENGTH = 16, 4  # words of the language, of a caption; those that name no shape mean nothing
OBJECTS = (2, 4)
RADIUS = (7, 11)  # px
WIDTH, BLOCKS, STEPS, SCENES, TESTS = 16, 3, 1500, 6000, 1000


@dataclass(frozen=True)
class Arm:
    """How a block lets words and patches meet.

    Attributes:
        tree: 'one': the minimum spanning tree of the grid of patches, the chain of words, and an edge between
            every word and every patch. 'random': the same graph under random weights. 'two': one tree of the
            patches, and the chain of the words.
        pooled: Add a projection of the mean word to every patch before the scan.
        edge_decay, metric: As for GrootV.
    """

    tree: str
    pooled: bool = False
    edge_decay: bool = True
    metric: str = 'cosine'


ARMS = {
    'one tree, edge': Arm('one'),
    'one tree': Arm('one', edge_decay=False),
    'one random tree, edge': Arm('random'),
    'two trees and pooled words, edge': Arm('two', pooled=True),
    'one tree and pooled words, edge': Arm('one', pooled=True),
    'two trees, edge': Arm('two'),
    'one tree, edge, euclidean': Arm('one', metric='euclidean'),
    'one tree, edge, manhattan': Arm('one', metric='manhattan'),
}


def scene(seed: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture (SIZE, SIZE, 3) uint8, labels (SIZE, SIZE) uint8 and a caption (LENGTH,).

    Label 1 is the named object, 2 the others. Every object has another shape; colours say nothing.
    """
    rng = np.random.default_rng(seed)
    picture = np.zeros((SIZE, SIZE, 3), np.float32) + rng.uniform(0, 70, 3).astype(np.float32)
    labels, centres = np.zeros((SIZE, SIZE), np.uint8), []
    shapes = rng.permutation(SHAPES)[: rng.integers(OBJECTS[0], OBJECTS[1] + 1)].tolist()
    for number, shape in enumerate(shapes):
        for _ in range(200):
            radius = rng.uniform(*RADIUS)
            centre = rng.uniform(radius, SIZE - radius, 2)
            if all(np.linalg.norm(centre - other) > radius + far + 4 for other, far in centres):
                break
        else:
            continue
        centres.append((centre, radius))
        mask = np.zeros((SIZE, SIZE), np.uint8)
        cv2.fillPoly(mask, [outline(shape, centre, radius, rng.uniform(0, 2 * np.pi))], 1)
        picture[mask > 0] = rng.uniform(120, 255, 3)
        labels[mask > 0] = 2 if number else 1
    caption = rng.integers(SHAPES, WORDS, LENGTH)
    caption[rng.integers(LENGTH)] = shapes[0]
    return (picture + rng.normal(0, 4, picture.shape)).clip(0, 255).astype(np.uint8), labels, caption


def outline(shape: int, centre: np.ndarray, radius: float, turn: float) -> np.ndarray:
    """Corners (n, 1, 2) int32 of a shape."""
    corners = (3, 4, 24, 12)[shape]
    angle = turn + 2 * np.pi * np.arange(corners) / corners
    reach = np.full(corners, radius)
    if shape == 3:  # a cross: the corners between its arms are near the middle
        reach[::3] *= 0.35
    points = centre + reach[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return points.round().astype(np.int32)[:, None]


class Block(nn.Module):
    """As the network's own, over the vertices of a map and of a caption."""

    def __init__(self, arm: Arm):
        super().__init__()
        self.arm = arm
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.ssm, self.mlp = TreeSSM(WIDTH, metric=arm.metric, edge_decay=arm.edge_decay), MLP(WIDTH)
        self.to_patches = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Vertices (B, L + LENGTH, C), the words last -> the same."""
        ssm, patches = self.ssm, grid[0] * grid[1]
        scanned, z = ssm.in_proj(self.norm1(x)).chunk(2, -1)
        maps = convolve(ssm.conv, scanned[:, :patches].unflatten(1, grid)).flatten(1, 2)
        words = scanned[:, patches:]
        if self.arm.pooled:
            maps = maps + self.to_patches(self.norm1(x)[:, patches:].mean(1, keepdim=True))
        vertices = F.silu(torch.cat([maps, words], 1))
        if self.arm.tree == 'two':
            halves = vertices[:, :patches], vertices[:, patches:]
            trees = build_tree(halves[0].unflatten(1, grid), ssm.metric), raster_tree(len(x), LENGTH)
            found = [self.scan(half, tree) for half, tree in zip(halves, trees, strict=True)]
            h, C, scanned = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        else:
            h, C, scanned = self.scan(vertices, self.joint_tree(vertices, grid))
        x = x + ssm.project_out(h, C, scanned, z.contiguous())
        return x + self.mlp(self.norm2(x))

    def scan(self, vertices: Tensor, tree: Tree) -> tuple[Tensor, Tensor, Tensor]:
        return self.ssm.scan(vertices.unsqueeze(1).contiguous(), tree)

    def joint_tree(self, vertices: Tensor, grid: tuple[int, int]) -> Tree:
        """The spanning tree of patches and words."""
        patches, batch, count = grid[0] * grid[1], *vertices.shape[:2]
        words = torch.arange(patches, count, dtype=torch.int32)
        chain = torch.stack([words[:-1], words[1:]], 1)
        across = torch.cartesian_prod(torch.arange(patches, dtype=torch.int32), words)
        edges = torch.cat([grid_edges(*grid), chain, across])
        if self.arm.tree == 'random':
            weight = torch.rand(batch, len(edges))
        else:
            ends = vertices.detach()[:, edges.long()].flatten(0, 1).unsqueeze(1)  # grids of one edge
            weight = grid_edge_weight(ends, self.ssm.metric).view(batch, -1)
        chosen = minimum_spanning_tree_from_edges(edges, weight, count)
        return breadth_first_order_from_edges(edges, chosen, count)


class Network(nn.Module):
    """Stem and words, blocks over both, a linear layer from a patch to the classes of its pixels."""

    def __init__(self, arm: Arm):
        super().__init__()
        self.stem, self.words = Stem(3, WIDTH), nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block(arm) for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH, eps=1e-6), nn.Linear(WIDTH, 3 * edge_decay.STRIDE**2)

    def forward(self, picture: Tensor, caption: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) uint8, captions (B, LENGTH) -> logits (B, 3, H, W)."""
        x = self.stem(picture.float() / 127.5 - 1)
        grid = x.shape[1:3]
        x = torch.cat([x.flatten(1, 2), self.words(caption)], 1)
        for block in self.blocks:
            x = block(x, grid)
        logits = self.head(self.norm(x[:, : grid[0] * grid[1]])).unflatten(1, grid).permute(0, 3, 1, 2)
        return F.pixel_shuffle(logits, edge_decay.STRIDE)


def data(side: int, count: int) -> tuple[list[Tensor], Tensor]:
    """Pictures and captions, and labels, of test (0) or training (1)."""
    found = [scene((side, number)) for number in range(count)]
    pictures, labels, captions = (torch.from_numpy(np.array(part)) for part in zip(*found, strict=True))
    return [pictures.permute(0, 3, 1, 2).contiguous(), captions], labels


def page(rows: tables.Rows) -> list[str]:
    shown = []
    for arm, own in edge_decay.by_arm(rows).items():
        iou = edge_decay.spread([row['iou'] for row in own])
        runs = ', '.join(f'{row["iou"]:.3f}' for row in own)
        cost = dict(parameters=own[0]['parameters'], s=round(mean(row['train_s'] for row in own)))
        shown.append({'': arm, 'IoU of the named object': iou, 'runs': runs, **cost})
    return ['', f'Mean and standard deviation over {len(own)} seeds.', *tables.table(shown)]


def draw(rows: tables.Rows) -> tables.plt.Figure:
    return tables.bars(
        'IoU of the named object, mean',
        {'': {arm: mean(row['iou'] for row in own) for arm, own in edge_decay.by_arm(rows).items()}},
    )


LAYOUT = 'One tree over picture and caption', page, draw


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--seeds', type=measure.positive, default=3, help='number of seeds, from 0; default 3')
    add('--arms', nargs='+', choices=ARMS, default=list(ARMS), metavar='ARM')
    add('--quick', action='store_true', help='a few steps on a few scenes')
    add('--out', type=Path, default=measure.ROOT / 'work_dirs/captions.jsonl', help='record')
    args = parser.parse_args(argv)
    record = measure.Record('captions', measure.record_path(parser, args.out), args.quick)
    steps, scenes, tests = (3, 20, 4) if args.quick else (STEPS, SCENES, TESTS)
    torch.set_num_threads(1)
    (inputs, labels), (test_inputs, test_labels) = data(1, scenes), data(0, tests)
    for seed in range(args.seeds):
        for arm in args.arms:
            torch.manual_seed(seed)
            network, start = Network(ARMS[arm]), time.monotonic()
            edge_decay.train(network, inputs, labels, steps, seed, f'{arm}, seed {seed}')
            taken = time.monotonic() - start
            parameters = sum(parameter.numel() for parameter in network.parameters())
            record.add(
                arm=arm,
                seed=seed,
                parameters=parameters,
                train_s=taken,
                iou=test(network, test_inputs, test_labels),
            )
    print('captions:', *tables.write(args.out))


@torch.no_grad()
def test(network: Network, inputs: list[Tensor], labels: Tensor) -> float:
    """IoU of the named object over all pixels."""
    network.eval()
    batches = zip(*(x.split(50) for x in inputs), strict=True)
    found = torch.cat([network(*batch).argmax(1) for batch in batches]) == 1
    return ((found & (labels == 1)).sum() / (found | (labels == 1)).sum().clamp(min=1)).item()


if __name__ == '__main__':
    cli.run(main)
