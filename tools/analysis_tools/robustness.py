"""Measure how the trees and predictions of a classifier move under small changes of its input.

    python tools/analysis_tools/robustness.py configs/demo/grootv-pico_digits.py CHECKPOINT \
        --out work_dirs/robustness

Every image of the config's test set is changed in several ways, or computed in reduced precision, and its
trees and logits are compared with those of the unchanged one: for each distance metric, tree per block or
stage, and root. The weights stay the same throughout. Inputs that a camera seldom gives (constant,
checkerboard, one bright pixel, NaN) follow. OUT gets robustness.json, README.md and robustness.png.
"""

import argparse
import io
import json
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from PIL import Image, ImageFilter
from rich.progress import track
from torch import Tensor, nn

from grootv import checks, cli
from grootv.errors import UserError
from grootv.ops import METRICS, Tree, build_tree, grid_edge_weight
from grootv.visualization.blocks import recorded, scans
from grootv.visualization.network import build_model
from grootv.visualization.topology import share_changed, vertex_depth

BATCH = 64
ROOTS = ('first', 'last')
Picture = np.ndarray  # (H, W, 3) uint8, RGB
Setting = tuple[str, str, str]  # metric, tree per, root


def noise(picture: Picture, deviation: float, seed: int) -> Picture:
    drawn = np.random.default_rng(seed).normal(0, deviation, picture.shape)
    return (picture + drawn).round().clip(0, 255).astype(np.uint8)


def blur(picture: Picture, radius: float) -> Picture:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def jpeg(picture: Picture, quality: int) -> Picture:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, 'jpeg', quality=quality)
    return np.asarray(Image.open(file))


def brightness(picture: Picture, factor: float) -> Picture:
    return (picture * factor).round().clip(0, 255).astype(np.uint8)


def shift(picture: Picture) -> Picture:
    """One pixel to the right; the first column stays."""
    return np.concatenate([picture[:, :1], picture[:, :-1]], axis=1)


CHANGES: dict[str, Callable[[Picture, int], Picture]] = {
    'noise, deviation 2': lambda picture, seed: noise(picture, 2, seed),
    'noise, deviation 40': lambda picture, seed: noise(picture, 40, seed),
    'blur, radius 0.5': lambda picture, _: blur(picture, 0.5),
    'blur, radius 2': lambda picture, _: blur(picture, 2),
    'JPEG, quality 90': lambda picture, _: jpeg(picture, 90),
    'JPEG, quality 10': lambda picture, _: jpeg(picture, 10),
    'brightness x 0.7': lambda picture, _: brightness(picture, 0.7),
    'brightness x 1.3': lambda picture, _: brightness(picture, 1.3),
    'shift by 1 pixel': lambda picture, _: shift(picture),
}
PRECISIONS = {'bfloat16 autocast': torch.bfloat16, 'float16 autocast': torch.float16}
ROWS = (*CHANGES, *PRECISIONS)


def configure(model: nn.Module, setting: Setting) -> None:
    """Let a network build other trees with the weights it has."""
    metric, tree_per, root = setting
    for stage in model.backbone.stages:
        stage.share_tree = tree_per == 'stage'
    for ssm in scans(model.backbone).values():
        ssm.metric = metric
        ssm.build_tree = partial(rooted_tree, metric=metric, root=root)


def rooted_tree(guide: Tensor, metric: str, root: str) -> Tree:
    last = guide.shape[1] * guide.shape[2] - 1
    return build_tree(guide, metric, last if root == 'last' else 0)


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, dict]:
    """Logits (B, K) in float32, and what every block built."""
    with recorded(model.backbone) as found, torch.autocast(inputs.device.type, dtype, enabled=bool(dtype)):
        logits = model(inputs, mode='tensor')
    return logits.float(), dict(found)


class Tally:
    """What one kind of change did to the images so far."""

    def __init__(self):
        self.edges, self.changed = 0, 0.0
        self.by_block: dict[str, list[float]] = {}
        self.difference = self.norm = 0.0
        self.images = self.right = self.flipped = 0

    def add(self, before: tuple[Tensor, dict], after: tuple[Tensor, dict], labels: Tensor) -> None:
        for (stage, block), built in after[1].items():
            vertices = built.tree.parent.shape[1]
            share = share_changed(before[1][stage, block].tree, built.tree)
            self.by_block.setdefault(f'stage {stage}, block {block}', []).extend(share.tolist())
            self.edges += (vertices - 1) * len(labels)
            self.changed += (vertices - 1) * float(share.sum())
        self.difference += float((after[0] - before[0]).double().square().sum())
        self.norm += float(before[0].double().square().sum())
        self.images += len(labels)
        self.right += int((after[0].argmax(1) == labels).sum())
        self.flipped += int((after[0].argmax(1) != before[0].argmax(1)).sum())

    def figures(self) -> dict[str, object]:
        return dict(
            changed_edges=round(self.changed / max(self.edges, 1), 5),
            changed_edges_by_block={name: round(float(np.mean(v)), 5) for name, v in self.by_block.items()},
            logits=round((self.difference / max(self.norm, 1e-12)) ** 0.5, 6),
            changed_predictions=round(self.flipped / self.images, 5),
            accuracy=round(100 * self.right / self.images, 3),
        )


def measure(model: nn.Module, batches: list[dict], settings: list[Setting], own: Setting) -> dict:
    """Figures by setting and kind of change.

    'none' compares the clean images in a setting with the same in the network's own one.
    """
    tallies = {setting: {row: Tally() for row in ('none', *ROWS)} for setting in settings}
    seed = 0
    for batch in track(batches, 'batches'):
        pictures, labels = pictures_of(batch), labels_of(batch)
        inputs = network_input(model, batch, pictures)
        changed = {
            name: network_input(model, batch, [change(p, seed + i) for i, p in enumerate(pictures)])
            for name, change in CHANGES.items()
        }
        seed += len(pictures)
        configure(model, own)
        trained = predict(model, inputs)
        for setting, found in tallies.items():
            configure(model, setting)
            clean = predict(model, inputs)
            found['none'].add(trained, clean, labels)
            for name, other in changed.items():
                found[name].add(clean, predict(model, other), labels)
            for name, dtype in PRECISIONS.items():
                found[name].add(clean, predict(model, inputs, dtype), labels)
    return {
        setting: {row: tally.figures() for row, tally in found.items()} for setting, found in tallies.items()
    }


def pictures_of(batch: dict) -> list[Picture]:
    return [tensor.flip(0).permute(1, 2, 0).numpy() for tensor in batch['inputs']]  # the loader gives BGR


def network_input(model: nn.Module, batch: dict, pictures: list[Picture]) -> Tensor:
    """What the network gets of pictures in place of a batch's own."""
    tensors = [torch.from_numpy(picture.copy()).permute(2, 0, 1).flip(0) for picture in pictures]
    return model.data_preprocessor({**batch, 'inputs': tensors})['inputs']


def labels_of(batch: dict) -> Tensor:
    return torch.cat([sample.gt_label for sample in batch['data_samples']])


def stress_inputs(height: int, width: int) -> dict[str, Tensor]:
    """Images that cameras seldom give, (3, H, W) float in 0 to 255."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    centre = (rows == height // 2) & (columns == width // 2)
    grey = torch.full((height, width), 128.0)
    maps = {
        'constant': grey,
        'checkerboard': (rows + columns) % 2 * 255.0,
        'one bright pixel': centre * 255.0,
        'one NaN pixel': grey.masked_fill(centre, torch.nan),
        'all NaN': torch.full((height, width), torch.nan),
    }
    return {name: image.expand(3, -1, -1) for name, image in maps.items()}


def stress(model: nn.Module, size: tuple[int, int], own: Setting, metrics: list[str]) -> dict[str, dict]:
    """What comes out for each stress input and metric, and what its first tree looks like."""
    preprocessor, found = model.data_preprocessor, {}
    for name, metric in product(stress_inputs(*size), metrics):
        configure(model, (metric, *own[1:]))
        image = stress_inputs(*size)[name].to(preprocessor.mean)
        logits, built = predict(model, ((image - preprocessor.mean) / preprocessor.std).unsqueeze(0))
        first = built[0, 0]
        weight = grid_edge_weight(first.guide, metric)[0].nan_to_num(torch.inf)
        even = rooted_tree(torch.zeros_like(first.guide), metric, own[2])
        chances = logits.softmax(1)[0]
        finite = bool(logits.isfinite().all())
        found.setdefault(name, {})[metric] = dict(
            finite=finite,
            predicted=int(logits.argmax(1)) if finite else None,
            confidence=round(float(chances.max()), 4) if finite else None,
            distinct_weights=len(weight.unique()),
            edges=len(weight),
            depth=int(vertex_depth(first.tree).max()),
            differs_from_equal_weights=round(float(share_changed(even, first.tree)), 4),
        )
    return found


def label(setting: Setting) -> str:
    metric, tree_per, root = setting
    return f'{metric}, {tree_per}, {root}'


def draw(found: dict[Setting, dict], title: str) -> Figure:
    """Three tables in colour: changed edges, change of the logits, change of the accuracy."""
    panels = {
        'changed edges, %': lambda row, clean: 100 * row['changed_edges'],
        'change of the logits, % of their norm': lambda row, clean: 100 * row['logits'],
        'change of the accuracy, points': lambda row, clean: row['accuracy'] - clean['accuracy'],
    }
    figure = Figure(figsize=(2.6 + 0.68 * len(found), 1.6 + 3.4 * len(panels)), layout='constrained')
    for axes, (name, value) in zip(
        figure.subplots(len(panels), 1, squeeze=False).flat, panels.items(), strict=True
    ):
        values = np.array([[value(by_row[row], by_row['none']) for by_row in found.values()] for row in ROWS])
        signed = name.startswith('change of the accuracy')
        largest = max(float(np.abs(values).max()), 1e-9)
        limits = dict(vmin=-largest, vmax=largest) if signed else dict(vmin=0, vmax=largest)
        axes.imshow(values, cmap='RdBu' if signed else 'viridis_r', aspect='auto', **limits)
        for (row, column), number in np.ndenumerate(values):
            dark = abs(number) > 0.6 * largest
            text = f'{number:+.1f}' if signed else f'{number:.2g}' if number < 10 else f'{number:.0f}'
            axes.text(column, row, text, ha='center', va='center', fontsize=7.5, color='w' if dark else 'k')
        axes.set_yticks(range(len(ROWS)), ROWS, fontsize=8)
        axes.set_xticks(range(len(found)), ['\n'.join(setting) for setting in found], fontsize=7.5)
        axes.set_title(name, fontsize=10)
    figure.suptitle(f'{title}\ncolumns: metric, tree per, root', fontsize=11, parse_math=False)
    return figure


def page(found: dict[Setting, dict], odd: dict[str, dict], own: Setting, command: str, images: int) -> str:
    """The tables, as Markdown."""
    lines = [
        '# Robustness',
        '',
        f'{images} images; one is {100 / images:.2f} points of accuracy. Made by',
        '',
        f'```shell\n{command}\n```',
        '',
        f'## As trained: {label(own)} root',
        '',
        '| | changed edges | change of the logits | changed predictions | accuracy |',
        '|---|---|---|---|---|',
    ]
    for row in ('none', *ROWS):
        one = found[own][row]
        cells = [percent(one['changed_edges']), percent(one['logits']), percent(one['changed_predictions'])]
        lines.append(f'| {row} | {" | ".join(cells)} | {one["accuracy"]:.1f} % |')
    lines += [
        '',
        '## The same weights in other settings',
        '',
        'Clean images, compared with the setting as trained.',
        '',
        '| metric, tree per, root | changed edges | change of the logits | accuracy | worst change |',
        '|---|---|---|---|---|',
    ]
    for setting, by_row in found.items():
        clean = by_row['none']
        worst = min(ROWS, key=lambda row: by_row[row]['accuracy'])
        loss = clean['accuracy'] - by_row[worst]['accuracy']
        cells = [percent(clean['changed_edges']), percent(clean['logits']), f'{clean["accuracy"]:.1f} %']
        lines.append(f'| {label(setting)} | {" | ".join(cells)} | {loss:.1f} points lost by {worst} |')
    lines += ['', '![](robustness.png)', '', '## Stress inputs', '']
    lines += [
        'The tree is that of stage 0, block 0. Equal weights give a comb: the first row, and every column.',
        '',
        "| input | metric | distinct weights, of edges | depth | edges unlike equal weights' | logits |",
        '|---|---|---|---|---|---|',
    ]
    for name, by_metric in odd.items():
        for metric, one in by_metric.items():
            result = f'class {one["predicted"]}, {one["confidence"]:.2f}' if one['finite'] else 'NaN'
            cells = [f'{one["distinct_weights"]} of {one["edges"]}', str(one['depth'])]
            cells += [percent(one['differs_from_equal_weights']), result]
            lines.append(f'| {name} | {metric} | {" | ".join(cells)} |')
    lines += ['', 'Every figure: [robustness.json](robustness.json).', '']
    return '\n'.join(lines)


def percent(share: float) -> str:
    return f'{100 * share:.3g} %'


def read_batches(cfg: Config, count: int) -> list[dict]:
    """Images and labels of the test set, evenly chosen where it has more than ``count``."""
    checks.check_data(cfg, ['test_dataloader'])
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
    data = [dataset[int(index)] for index in track(chosen, 'images')]
    if len({tuple(one['inputs'].shape) for one in data}) > 1:
        raise UserError('the images of the test set differ in size: let its pipeline crop them to one')
    return [pseudo_collate(data[start : start + BATCH]) for start in range(0, len(data), BATCH)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--metrics', nargs='+', choices=METRICS, default=METRICS, help='default: all')
    parser.add_argument(
        '--tree-per', nargs='+', choices=['block', 'stage'], default=['block', 'stage'], help='default: both'
    )
    parser.add_argument('--roots', nargs='+', choices=ROOTS, default=ROOTS, help='default: both corners')
    parser.add_argument('--count', type=int, default=1000, help='number of images at most; default 1000')
    parser.add_argument('--out', type=Path, required=True, help='folder for tables and picture')
    args = parser.parse_args(argv)
    if args.count < 1:
        raise UserError(f'--count must be 1 or more, got {args.count}')
    cfg = cli.load_config(args.config, args.cfg_options)
    if cfg.get('default_scope') != 'mmpretrain':
        raise UserError(f'{args.config} is no classifier: robustness compares logits and top-1 accuracy')
    model = build_model(cfg, args.checkpoint, args.trust_checkpoint)
    own = (
        model.backbone.stages[0].blocks[0].ssm.metric,
        'stage' if model.backbone.stages[0].share_tree else 'block',
        'first',
    )
    settings = list(dict.fromkeys([own, *product(args.metrics, args.tree_per, args.roots)]))
    batches = read_batches(cfg, args.count)
    found = measure(model, batches, settings, own)
    size = tuple(batches[0]['inputs'][0].shape[1:])
    odd = stress(model, size, own, list(dict.fromkeys([own[0], *args.metrics])))

    args.out.mkdir(parents=True, exist_ok=True)
    images = sum(len(batch['inputs']) for batch in batches)
    command = f'python tools/analysis_tools/robustness.py {args.config} {args.checkpoint} --out {args.out}'
    content = dict(
        images=images,
        trained=label(own),
        settings={label(setting): by_row for setting, by_row in found.items()},
        stress=odd,
    )
    (args.out / 'robustness.json').write_text(json.dumps(content, indent=1) + '\n')
    (args.out / 'README.md').write_text(page(found, odd, own, command, images))
    draw(found, f'{Path(args.config).stem}, {images} images').savefig(args.out / 'robustness.png', dpi=100)
    print(f'robustness: {args.out}')


if __name__ == '__main__':
    cli.run(main)
