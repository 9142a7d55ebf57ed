"""Measure how the trees and predictions of a classifier move under small changes of its input.

    python experiments/robustness.py configs/demo/grootv-pico_digits.py CHECKPOINT --out work_dirs/robustness

Every image of the config's test set is changed in several ways, or computed in reduced precision, and its
trees and logits are compared with those of the unchanged one: for each distance metric, tree per block or
stage, and root. The weights stay the same throughout. Inputs that a camera seldom gives (constant,
checkerboard, one bright pixel, NaN) follow. OUT gets robustness.jsonl, README.md and robustness.png.
"""

import argparse
from functools import partial
from itertools import product
from pathlib import Path

import measure
import numpy as np
import tables
import torch
from imagecorruptions import corrupt
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from rich.progress import track
from torch import Tensor, nn

from grootv import checks, cli
from grootv.errors import UserError
from grootv.ops import METRICS, Tree, build_tree, grid_edge_weight
from grootv.visualization.blocks import recorded, scans
from grootv.visualization.network import build_model
from grootv.visualization.topology import share_changed, vertex_depth

BATCH = 64
SETTINGS = list(product(METRICS, ('block', 'stage'), ('first', 'last')))  # metric, tree per, root
Picture = np.ndarray  # (H, W, 3) uint8, RGB


# Name of imagecorruptions, at its weakest and its strongest.
CORRUPTIONS = ('gaussian_noise', 'gaussian_blur', 'jpeg_compression', 'brightness', 'contrast')
CHANGES = {f'{name}, severity {n}': (name, n) for name in CORRUPTIONS for n in (1, 5)}
CHANGES['translate by 1 pixel'] = None
PRECISIONS = {'bfloat16 autocast': torch.bfloat16, 'float16 autocast': torch.float16}


def change(name: str, picture: Picture, seed: int) -> Picture:
    if CHANGES[name] is None:
        return np.hstack([picture[:, :1], picture[:, :-1]])
    corruption, severity = CHANGES[name]
    np.random.seed(seed)
    return corrupt(picture, severity, corruption)


def rooted_tree(guide: Tensor, metric: str, root: str) -> Tree:
    last = guide.shape[1] * guide.shape[2] - 1
    return build_tree(guide, metric, last if root == 'last' else 0)


@torch.no_grad()
def predict(model: nn.Module, setting: tuple, inputs: Tensor, dtype: torch.dtype | None = None) -> tuple:
    """Logits (B, K) in float32, and what every block built, with the trees of a setting."""
    metric, tree_per, root = setting
    for stage in model.backbone.stages:
        stage.share_tree = tree_per == 'stage'
    for ssm in scans(model.backbone).values():
        ssm.metric = metric
        ssm.build_tree = partial(rooted_tree, metric=metric, root=root)
    with recorded(model.backbone) as found, torch.autocast(inputs.device.type, dtype, enabled=bool(dtype)):
        logits = model(inputs, mode='tensor')
    return logits.float(), dict(found)


def difference(before: tuple, after: tuple, labels: Tensor) -> dict[str, Tensor]:
    """What changed for each image: share of the edges of each block, logits, prediction."""
    (logits, trees), (others, built) = before, after
    return dict(
        shares=torch.stack([share_changed(trees[at].tree, built[at].tree) for at in built], 1),
        edges=torch.tensor([[each.vertices.shape[1] - 1 for each in built.values()]] * len(labels)),
        difference=(others - logits).double().square().sum(1),
        norm=logits.double().square().sum(1),
        changed=others.argmax(1) != logits.argmax(1),
        right=others.argmax(1) == labels,
    )


def figures(differences: list[dict[str, Tensor]]) -> dict[str, float]:
    """Of all images together."""
    total = {name: torch.cat([part[name] for part in differences]).double() for name in differences[0]}
    return dict(
        changed_edges=round(float((total['shares'] * total['edges']).sum() / total['edges'].sum()), 5),
        logits=round(float(total['difference'].sum() / total['norm'].sum().clamp(min=1e-12)) ** 0.5, 6),
        changed_predictions=round(float(total['changed'].mean()), 5),
        accuracy=round(100 * float(total['right'].mean()), 3),
    )


def compare(model: nn.Module, batches: list[dict], settings: list[tuple], own: tuple) -> dict[tuple, dict]:
    """Figures by setting and kind of change.

    'none' compares the clean images in a setting with the same in the network's own one.
    """
    found = {setting: {name: [] for name in ('none', *CHANGES, *PRECISIONS)} for setting in settings}
    for number, batch in enumerate(track(batches, 'batches')):
        labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
        pictures = [tensor.flip(0).permute(1, 2, 0).numpy() for tensor in batch['inputs']]  # was BGR
        changed = {}
        for name in CHANGES:
            new = [change(name, picture, number * BATCH + i) for i, picture in enumerate(pictures)]
            changed[name] = [torch.from_numpy(one.copy()).permute(2, 0, 1).flip(0) for one in new]
        changed = {n: model.data_preprocessor({**batch, 'inputs': x})['inputs'] for n, x in changed.items()}
        clean = model.data_preprocessor(dict(batch))['inputs']
        trained = predict(model, own, clean)
        for setting, by_change in found.items():
            before = predict(model, setting, clean)
            after = {name: predict(model, setting, other) for name, other in changed.items()}
            after |= {name: predict(model, setting, clean, dtype) for name, dtype in PRECISIONS.items()}
            by_change['none'].append(difference(trained, before, labels))
            for name, other in after.items():
                by_change[name].append(difference(before, other, labels))
    return {s: {name: figures(some) for name, some in rows.items()} for s, rows in found.items()}


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


def stress(model: nn.Module, image: Tensor, setting: tuple) -> dict[str, object]:
    """What comes out for an image, and what its first tree looks like."""
    mean, deviation = model.data_preprocessor.mean, model.data_preprocessor.std
    logits, built = predict(model, setting, ((image.to(mean) - mean) / deviation).unsqueeze(0))
    first, finite = built[0, 0], bool(logits.isfinite().all())
    weight = grid_edge_weight(first.features, setting[0])[0].nan_to_num(torch.inf)
    even = rooted_tree(torch.zeros_like(first.features), setting[0], setting[2])
    return dict(
        finite=finite,
        predicted=int(logits.argmax(1)) if finite else None,
        confidence=round(float(logits.softmax(1).max()), 4) if finite else None,
        distinct_weights=len(weight.unique()),
        edges=len(weight),
        depth=int(vertex_depth(first.tree).max()),
        differs_from_equal_weights=round(float(share_changed(even, first.tree)), 4),
    )


def page(rows: tables.Rows) -> list[str]:
    settings = {row['setting']: row['changes'] for row in rows if 'setting' in row}
    own, names = next(iter(settings)), ('changed edges', 'change of the logits', 'changed predictions')

    def shown(row: dict) -> dict[str, str]:
        shares = (row['changed_edges'], row['logits'], row['changed_predictions'])
        found = {name: f'{100 * share:.4g} %' for name, share in zip(names, shares, strict=True)}
        return found | {'accuracy': f'{row["accuracy"]:.1f} %'}

    lines = ['', f'## As trained: {own} root']
    lines += tables.table([{'': change} | shown(row) for change, row in settings[own].items()])
    lines += ['', '## The same weights in other settings', '']
    lines += ['Clean images, compared with the setting as trained.']
    others = []
    for setting, changes in settings.items():
        worst = min(changes, key=lambda change: changes[change]['accuracy'])
        lost = f'{changes["none"]["accuracy"] - changes[worst]["accuracy"]:.1f} points lost by {worst}'
        others.append({'metric, tree per, root': setting} | shown(changes['none']) | {'worst change': lost})
    lines += [*tables.table(others), '', '## Stress inputs', '']
    lines += ['The tree is that of stage 0, block 0. Equal weights give a comb: the first row, all columns.']
    return lines + tables.table([row for row in rows if 'input' in row])


def draw(rows: tables.Rows) -> tables.plt.Figure:
    """Tables in colour: changed edges, change of the logits, accuracy; one column for each setting."""
    settings = {row['setting']: row['changes'] for row in rows if 'setting' in row}
    changes = list(next(iter(settings.values())))
    titles = dict(changed_edges='changed edges', logits='change of the logits', accuracy='accuracy, %')
    figure, grid = tables.plt.subplots(3, figsize=(2.6 + 0.68 * len(settings), 12), layout='constrained')
    for axes, (key, title) in zip(grid, titles.items(), strict=True):
        values = np.array([[found[change][key] for found in settings.values()] for change in changes])
        axes.imshow(values, 'RdYlGn' if key == 'accuracy' else 'YlOrRd', aspect='auto')
        for (line, column), number in np.ndenumerate(values):
            axes.text(column, line, f'{number:.3g}', ha='center', va='center', fontsize=7)
        axes.set_yticks(range(len(changes)), changes, fontsize=8)
        axes.set_xticks(range(len(settings)), [s.replace(', ', '\n') for s in settings], fontsize=7)
        axes.set_title(title)
    return figure


LAYOUT = 'Robustness', page, draw


def read_batches(cfg: dict, count: int) -> list[dict]:
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
    parser.add_argument('--count', type=measure.positive, default=1000, help='most images; default 1000')
    parser.add_argument('--out', type=Path, required=True, help='folder for record, page and picture')
    args = parser.parse_args(argv)
    path = measure.record_path(parser, args.out / 'robustness.jsonl')
    cfg = cli.load_config(args.config, args.cfg_options)
    if cfg.get('default_scope') != 'mmpretrain':
        raise UserError(f'{args.config} is no classifier: robustness compares logits and top-1 accuracy')
    model = build_model(cfg, args.checkpoint, args.trust_checkpoint)
    stage = model.backbone.stages[0]
    own = stage.blocks[0].ssm.metric, 'stage' if stage.share_tree else 'block', 'first'
    batches = read_batches(cfg, args.count)
    images = sum(len(batch['inputs']) for batch in batches)
    record = measure.Record('robustness', path, images=images)
    settings = list(dict.fromkeys([own, *SETTINGS]))
    for setting, changes in compare(model, batches, settings, own).items():
        record.add(setting=', '.join(setting), changes=changes)
    for name, image in stress_inputs(*batches[0]['inputs'][0].shape[1:]).items():
        for metric in dict.fromkeys(setting[0] for setting in settings):
            record.add(input=name, metric=metric, **stress(model, image, (metric, *own[1:])))
    print('robustness:', *tables.write(path))


if __name__ == '__main__':
    cli.run(main)
