"""Measure how the trees and predictions of a classifier move under small changes of its input.

    python experiments/robustness.py configs/demo/grootv-pico_digits.py CHECKPOINT --out work_dirs/robustness

Every image of the config's test set is changed in several ways, or computed in reduced precision, and its
trees and logits are compared with those of the unchanged one: for each distance metric, tree per block or
stage, and root. The weights stay the same throughout. Inputs that a camera seldom gives (constant,
checkerboard, one bright pixel, NaN) follow. OUT gets robustness.jsonl, README.md and robustness.png.
"""

import argparse
import io
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import measure
import numpy as np
import tables
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


def gaussian_noise(picture: Picture, deviation: float, seed: int) -> Picture:
    drawn = np.random.default_rng(seed).normal(0, deviation, picture.shape)
    return (picture + drawn).round().clip(0, 255).astype(np.uint8)


def gaussian_blur(picture: Picture, radius: float) -> Picture:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def jpeg_compression(picture: Picture, quality: int) -> Picture:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, 'jpeg', quality=quality)
    return np.asarray(Image.open(file))


def brightness(picture: Picture, factor: float) -> Picture:
    return (picture * factor).round().clip(0, 255).astype(np.uint8)


def translate(picture: Picture) -> Picture:
    """One pixel to the right; the first column stays."""
    return np.concatenate([picture[:, :1], picture[:, :-1]], axis=1)


CHANGES: dict[str, Callable[[Picture, int], Picture]] = {
    'gaussian_noise, deviation 2': lambda picture, seed: gaussian_noise(picture, 2, seed),
    'gaussian_noise, deviation 40': lambda picture, seed: gaussian_noise(picture, 40, seed),
    'gaussian_blur, radius 0.5': lambda picture, _: gaussian_blur(picture, 0.5),
    'gaussian_blur, radius 2': lambda picture, _: gaussian_blur(picture, 2),
    'jpeg_compression, quality 90': lambda picture, _: jpeg_compression(picture, 90),
    'jpeg_compression, quality 10': lambda picture, _: jpeg_compression(picture, 10),
    'brightness x 0.7': lambda picture, _: brightness(picture, 0.7),
    'brightness x 1.3': lambda picture, _: brightness(picture, 1.3),
    'translate by 1 pixel': lambda picture, _: translate(picture),
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


def compare(model: nn.Module, batches: list[dict], settings: list[Setting], own: Setting) -> dict:
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
        weight = grid_edge_weight(first.features, metric)[0].nan_to_num(torch.inf)
        even = rooted_tree(torch.zeros_like(first.features), metric, own[2])
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
    return ', '.join(setting)


def percent(share: float) -> str:
    return f'{100 * share:.4g} %'


def by_setting(rows: tables.Rows) -> dict[str, dict[str, dict]]:
    """Figures by setting (metric, tree per, root) and change."""
    return {row['setting']: row['changes'] for row in rows if 'setting' in row}


def page(about: dict, rows: tables.Rows) -> list[str]:
    settings = by_setting(rows)
    own = next(iter(settings))
    lines = ['', f'{about["images"]} images; one is {100 / about["images"]:.2f} points of accuracy.']
    lines += ['', f'## As trained: {own} root']
    titles = {'changed edges': 'changed_edges', 'change of the logits': 'logits'}
    more = {'changed predictions': 'changed_predictions'}

    def figures(row: dict, titles: dict[str, str]) -> dict:
        shown = {title: percent(row[key]) for title, key in titles.items()}
        return shown | {'accuracy': f'{row["accuracy"]:.1f} %'}

    lines += tables.table(
        [{'': change} | figures(row, titles | more) for change, row in settings[own].items()]
    )
    lines += ['', '## The same weights in other settings', '']
    lines += ['Clean images, compared with the setting as trained.']
    shown = []
    for setting, changes in settings.items():
        worst = min(changes, key=lambda change: changes[change]['accuracy'])
        loss = changes['none']['accuracy'] - changes[worst]['accuracy']
        row = {'metric, tree per, root': setting} | figures(changes['none'], titles)
        shown.append(row | {'worst change': f'{loss:.1f} points lost by {worst}'})
    lines += [*tables.table(shown), '', '## Stress inputs', '']
    lines += [
        'The tree is that of stage 0, block 0. Equal weights give a comb: the first row, and every column.'
    ]
    shown = []
    for row in rows:
        if 'input' in row:
            weights = f'{row["distinct_weights"]} of {row["edges"]}'
            result = f'class {row["predicted"]}, {row["confidence"]:.2f}' if row['finite'] else 'NaN'
            unlike = {"edges unlike equal weights'": percent(row['differs_from_equal_weights'])}
            found = {'input': row['input'], 'metric': row['metric'], 'distinct weights, of edges': weights}
            shown.append(found | {'depth': row['depth']} | unlike | {'logits': result})
    return lines + tables.table(shown)


def draw(about: dict, rows: tables.Rows) -> Figure:
    """Three tables in colour: changed edges, change of the logits, change of the accuracy."""
    settings = by_setting(rows)
    changes = [change for change in next(iter(settings.values())) if change != 'none']
    panels = {
        'changed edges, %': lambda row, clean: 100 * row['changed_edges'],
        'change of the logits, % of their norm': lambda row, clean: 100 * row['logits'],
        'change of the accuracy, points': lambda row, clean: row['accuracy'] - clean['accuracy'],
    }
    size = 2.6 + 0.68 * len(settings), 1.6 + 3.4 * len(panels)
    figure, grid = tables.plt.subplots(len(panels), 1, figsize=size, layout='constrained')
    for axes, (name, value) in zip(grid, panels.items(), strict=True):
        values = np.array([[value(found[c], found['none']) for found in settings.values()] for c in changes])
        signed = (values < 0).any()
        largest = max(float(np.abs(values).max()), 1e-9)
        axes.imshow(
            values, 'RdBu' if signed else 'viridis_r', aspect='auto', vmin=-largest * signed, vmax=largest
        )
        for (line, column), number in np.ndenumerate(values):
            colour = 'w' if abs(number) > 0.6 * largest else 'k'
            axes.text(column, line, f'{number:.2g}', ha='center', va='center', fontsize=7.5, color=colour)
        axes.set_yticks(range(len(changes)), changes, fontsize=8)
        axes.set_xticks(range(len(settings)), [s.replace(', ', '\n') for s in settings], fontsize=7.5)
        axes.set_title(name, fontsize=10)
    figure.suptitle('columns: metric, tree per, root', fontsize=11)
    return figure


LAYOUT = 'Robustness', page, draw


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
    path = args.out / 'robustness.jsonl'
    try:
        measure.check_out(path)
    except ValueError as error:
        raise UserError(str(error)) from error
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
    images = sum(len(batch['inputs']) for batch in batches)
    record = measure.Record('robustness', path, images=images)
    found = compare(model, batches, settings, own)
    size = tuple(batches[0]['inputs'][0].shape[1:])
    odd = stress(model, size, own, list(dict.fromkeys([own[0], *args.metrics])))

    for setting, changes in found.items():
        record.add(setting=label(setting), changes=changes)
    for name, by_metric in odd.items():
        for metric, figures in by_metric.items():
            record.add(input=name, metric=metric, **figures)
    print('robustness:', *tables.write(path))


if __name__ == '__main__':
    cli.run(main)
