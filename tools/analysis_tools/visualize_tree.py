"""Draw the spanning trees of images, and compare them with random trees and a raster scan.

    python tools/analysis_tools/visualize_tree.py IMAGE --config CONFIG --checkpoint CHECKPOINT \
        --stage 1 --block 0 --pixel 60 100 --out tree.png
    python tools/analysis_tools/visualize_tree.py [FOLDER] --config CONFIG --checkpoint CHECKPOINT \
        --labels LABELS --report work_dirs/trees

The first form draws one block. The second analyses every block over the images of a folder, or without one
over the test set of the config, and writes index.html, its pictures and report.json.

Without a config the tree is that of the image's own colours, where the decay of an edge is exp(-d / 10), d
the distance of its two colours over the mean distance along the tree.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image
from rich.progress import track
from torch import Tensor

from grootv import checks, cli
from grootv.datasets.images import eight_bits
from grootv.errors import UserError
from grootv.files import write_named
from grootv.ops import METRICS, Tree, build_tree
from grootv.options import KeyValueAction
from grootv.visualization import statistics
from grootv.visualization.blocks import BlockTree, recorded, scans
from grootv.visualization.network import build_model, network_input, test_set
from grootv.visualization.report import PAGE
from grootv.visualization.tree import draw

LONGEST = 64  # vertices along the longer side of an image without a network
ENDINGS = ('.bmp', '.jpeg', '.jpg', '.png', '.webp')
UNLABELLED = 0  # in the label maps of ADE20K and of the digit scenes


@dataclass
class Item:
    """An image, its label map if there is one, and the label in it that means nothing."""

    image: Path
    labels: Path | None = None
    ignore: int = UNLABELLED


def read_image(path: str | Path, kind: str = 'image') -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
        return eight_bits(image) if kind == 'image' else image
    except FileNotFoundError:
        raise UserError(f'{kind} {path} does not exist: check the path') from None
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f'{kind} {path} cannot be read ({error}): give another one') from error


def read_labels(path: Path, picture: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """Label at the centre of every vertex's cell, (1, L)."""
    labels = np.asarray(read_image(path, 'label map'))
    if labels.ndim != 2:
        raise UserError(f'label map {path} has {labels.shape[2]} channels: give one label a pixel')
    (height, width), (rows, columns) = labels.shape, picture.shape[:2]
    if abs(rows * width / (columns * height) - 1) > 0.02:
        raise UserError(
            f'label map {path} is {height} x {width}, and the network sees {rows} x {columns} of its image: '
            'take cropping and padding out of the test pipeline'
        )
    y, x = ((2 * np.arange(n) + 1) * side // (2 * n) for n, side in zip(grid, labels.shape, strict=True))
    return torch.from_numpy(labels[np.ix_(y, x)].astype(np.int64)).view(1, -1)


def tree_of_colours(image: Image.Image, metric: str) -> BlockTree:
    """The tree of a small copy of an image."""
    small = image.convert('RGB')
    small.thumbnail((LONGEST, LONGEST))
    colours = torch.from_numpy(np.array(small)).float().unsqueeze(0) / 255
    vertices = colours.flatten(1, 2)

    def distance(tree: Tree) -> Tensor:
        return (vertices - vertices[:, tree.parent[0].long()]).norm(dim=-1, keepdim=True)

    tree = build_tree(colours, metric)
    scale = 10 * distance(tree).mean().clamp_min(1e-6)
    return BlockTree(colours, tree, metric, lambda path: torch.exp(-distance(path) / scale))


class Source:
    """Where the trees of an image come from: blocks of a network, or without one the image's colours.

    Args:
        args: The command line.
        stage: Stage of the wanted blocks; None for all.
        block: Block of its stage; None for all.
    """

    def __init__(self, args: argparse.Namespace, stage: int | None, block: int | None):
        self.cfg = None
        if args.config is None:
            if args.checkpoint or args.cfg_options or stage or block:
                raise UserError('--checkpoint, --cfg-options, --stage and --block need --config')
            self.metric = args.metric or 'euclidean'
            self.name = f'{self.metric} distance of the colours'
            return
        self.cfg = cli.load_config(args.config, args.cfg_options)
        if args.metric:
            self.cfg.model.backbone.metric = args.metric
        self.model = build_model(self.cfg, args.checkpoint, args.trust_checkpoint)
        self.name = Path(args.config).stem + ('' if args.checkpoint else ', untrained')
        self.metric = self.model.backbone.stages[0].blocks[0].ssm.metric
        places = list(scans(self.model.backbone))
        check_place('--stage', stage, {i for i, _ in places})
        check_place('--block', block, {k for i, k in places if stage in (None, i)})
        self.places = [(i, k) for i, k in places if stage in (None, i) and block in (None, k)]

    @torch.no_grad()
    def trees(self, path: str | Path) -> tuple[np.ndarray, dict[str, BlockTree]]:
        """The picture (H, W, 3), and the wanted blocks by name."""
        image = read_image(path)
        if self.cfg is None:
            return np.array(image.convert('RGB')), {'pixels': tree_of_colours(image, self.metric)}
        picture, inputs = network_input(self.cfg, self.model, path)
        with recorded(self.model.backbone) as found:
            self.model.backbone(inputs, out_indices=(self.places[-1][0],))  # no stage after the last wanted
        return picture, {f'stage {i}, block {k}': found[i, k] for i, k in self.places}

    def title(self, image: Path, block: str) -> str:
        return ', '.join([image.name, self.name] + [block] * (self.cfg is not None))


def check_place(option: str, value: int | None, known: set[int]) -> None:
    if value is not None and value not in known:
        raise UserError(f'{option} must be 0 to {max(known)}, got {value}')


def vertex_at(pixel: list[int] | None, size: tuple[int, int], grid: tuple[int, int]) -> int:
    """The vertex whose cell covers a pixel of the picture, the middle one by default."""
    pixel = pixel or [side // 2 for side in size]
    if not all(0 <= p < side for p, side in zip(pixel, size, strict=True)):
        raise UserError(f'--pixel must lie inside the picture of {size[0]} x {size[1]}, got {pixel}')
    row, column = (p * n // side for p, n, side in zip(pixel, grid, size, strict=True))
    return row * grid[1] + column


def picture_of(args: argparse.Namespace, picture: np.ndarray, block: BlockTree, title: str):
    """The figure of one block, with the affinity of every --pixel."""
    vertices = [vertex_at(pixel, picture.shape[:2], block.grid) for pixel in args.pixel or [None]]
    return draw(picture, block, vertices, title)


def draw_one(args: argparse.Namespace) -> None:
    """One picture of one block."""
    if args.images is None or args.images.is_dir() or args.labels:
        raise UserError('a picture shows one image: give an image file, or --report FOLDER to analyse many')
    source = Source(args, args.stage or 0, args.block or 0)
    picture, blocks = source.trees(args.images)
    ((name, block),) = blocks.items()
    figure = picture_of(args, picture, block, source.title(args.images, name))
    endings = figure.canvas.get_supported_filetypes()
    if args.out.suffix[1:] not in endings:
        raise UserError(f'--out {args.out}: end it in .{", .".join(sorted(endings))}')
    with write_named(args.out) as draft:
        figure.savefig(draft, dpi=150)
    print(f'tree: {args.out}')


def items_of(args: argparse.Namespace, cfg: Config | None) -> list[Item]:
    """The images to analyse: a file, the first ones of a folder, or of the config's test set."""
    if args.images is None:
        if cfg is None:
            raise UserError('give an image, a folder, or a --config with a test set')
        return items_of_test_set(args, cfg)
    folder, found = args.images.parent, [args.images]
    if args.images.is_dir():
        folder = args.images
        found = sorted(path for path in folder.rglob('*') if path.suffix.lower() in ENDINGS)[: args.count]
    if not found:
        raise UserError(f'folder {folder} holds no image ({", ".join(ENDINGS)})')
    if args.labels is None:
        return [Item(path) for path in found]
    return [Item(path, labels_of(path, folder, args.labels)) for path in found]


def labels_of(image: Path, folder: Path, labels: Path) -> Path:
    """The label map of an image: a file, or at the image's place below a folder."""
    path = (labels / image.relative_to(folder)).with_suffix('.png') if labels.is_dir() else labels
    if not path.is_file():
        raise UserError(f'image {image} has no label map {path}: add it, or leave out --labels')
    return path


def items_of_test_set(args: argparse.Namespace, cfg: Config) -> list[Item]:
    """The first images of the test set; their label maps too if it is one for segmentation."""
    if args.labels:
        raise UserError('--labels belongs to images that are given: the test set brings its own')
    checks.check_data(cfg, ['test_dataloader'])
    dataset = DATASETS.build(test_set(cfg))
    found = [dataset.get_data_info(index) for index in range(min(args.count, len(dataset)))]
    reduced = getattr(dataset, 'reduce_zero_label', True)
    ignore = UNLABELLED if reduced else dataset.ignore_index
    places = [(info['img_path'], info.get('seg_map_path')) for info in found]
    return [Item(Path(image), Path(labels) if labels else None, ignore) for image, labels in places]


def analyse(args: argparse.Namespace) -> None:
    """Every block of every image, as a page."""
    source = Source(args, args.stage, args.block)
    items = items_of(args, source.cfg)
    args.report.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    samples, images = defaultdict(list), []
    for number, item in enumerate(track(items, 'images')):
        picture, blocks = source.trees(item.image)
        images.append(dict(image=str(item.image), blocks={}))
        for name, block in blocks.items():
            labels = None if item.labels is None else read_labels(item.labels, picture, block.grid)
            measured = statistics.measure(block, labels, item.ignore, generator)
            samples[name].append(measured)
            found = {kind: statistics.figures(one) for kind, one in measured.items()}
            images[-1]['blocks'][name] = dict(grid=block.grid, **found)
            if number < args.pictures:
                file = images[-1]['blocks'][name]['picture'] = f'image-{number:03}_{file_name(name)}'
                figure = picture_of(args, picture, block, source.title(item.image, name))
                figure.savefig(args.report / file, dpi=100)
    print(f'report: {write_report(args, source, samples, images)}')


def file_name(block: str) -> str:
    return block.replace(', ', '_').replace(' ', '-') + '.png'


def write_report(args: argparse.Namespace, source: Source, samples: dict, images: list[dict]) -> Path:
    """index.html, its summary pictures and report.json; the page's path."""
    title = f'{source.name}, {len(images)} image{"s" * (len(images) > 1)}'
    pooled = {
        name: {kind: statistics.pooled([one[kind] for one in found]) for kind in statistics.KINDS}
        for name, found in samples.items()
    }
    summary = {
        name: {kind: statistics.figures(one) for kind, one in found.items()} for name, found in pooled.items()
    }
    columns = list(dict.fromkeys(key for found in summary.values() for one in found.values() for key in one))
    rows = [
        [name, statistics.KINDS[kind], *('' if one[key] is None else f'{one[key]:.4g}' for key in columns)]
        for name, found in summary.items()
        for kind, one in found.items()
    ]
    pictures = {}
    if 'inside_label' in columns:
        shares = {
            name: {kind: one['inside_label'] or 0 for kind, one in found.items()}
            for name, found in summary.items()
        }
        statistics.draw_shares(shares, title).savefig(args.report / 'labels.png', dpi=100)
        pictures['labels.png'] = 'share of the edges inside one label'
    drawn = {name: statistics.histograms(found) for name, found in pooled.items()}
    for name, found in drawn.items():
        file = f'histograms_{file_name(name)}'
        figure = statistics.draw_histograms(found, source.metric, f'{title}, {name}')
        figure.savefig(args.report / file, dpi=100)
        pictures[file] = f'histograms of {name}'
    sections = [('', pictures)]
    for entry in images[: args.pictures]:
        blocks = entry['blocks'].items()
        shown = {one['picture']: f'{entry["image"]}, {name}' for name, one in blocks}
        sections.append((entry['image'], shown))
    content = dict(
        network=source.name,
        checkpoint=args.checkpoint,
        metric=source.metric,
        random_trees=statistics.RANDOM_TREES,
        pairs=statistics.PAIRS,
        summary=summary,
        histograms=drawn,
        images=images,
    )
    (args.report / 'report.json').write_text(json.dumps(content, indent=1) + '\n')
    page = PAGE.render(
        title=f'Spanning trees: {title}',
        text=f"Each block's tree compared with {statistics.RANDOM_TREES} random spanning trees (minimum "
        'under uniform random weights) and the row-major raster scan over the same vertices.',
        header=['block', 'path', *(key.replace('_', ' ') for key in columns)],
        rows=rows,
        sections=sections,
    )
    path = args.report / 'index.html'
    path.write_text(page)
    return path


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'images', type=Path, nargs='?', help="image or folder; default: the config's test set"
    )
    parser.add_argument('--config', help='config of a network; default: the colours themselves')
    parser.add_argument('--checkpoint', help='weights of the network; default: untrained')
    parser.add_argument('--stage', type=int, help='stage of the network, from 0; default: 0, all in a report')
    parser.add_argument('--block', type=int, help='block of the stage, from 0; default: 0, all in a report')
    parser.add_argument(
        '--pixel',
        type=int,
        nargs=2,
        action='append',
        metavar=('ROW', 'COL'),
        help='pixel of the drawn picture whose affinity is shown, may be repeated; default: its middle',
    )
    parser.add_argument('--metric', choices=METRICS, help="default: the network's own; euclidean without one")
    parser.add_argument('--out', type=Path, default=Path('tree.png'), help='picture to write')
    parser.add_argument('--report', type=Path, metavar='FOLDER', help='analyse, and write a page there')
    parser.add_argument('--count', type=int, default=8, help='number of images in a report; default 8')
    parser.add_argument('--pictures', type=int, default=8, help='number of them that are drawn; default 8')
    parser.add_argument(
        '--labels',
        type=Path,
        help=f'label map of the image, or a folder of them; {UNLABELLED} means unlabelled',
    )
    parser.add_argument('--cfg-options', nargs='+', action=KeyValueAction, metavar='KEY=VALUE')
    parser.add_argument('--trust-checkpoint', action='store_true', help='let the checkpoint execute code')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.count < 1 or args.pictures < 0:
        raise UserError(f'--count must be 1 or more, --pictures 0 or more, got {args.count}, {args.pictures}')
    analyse(args) if args.report else draw_one(args)


if __name__ == '__main__':
    cli.run(main)
