"""Draw the spanning tree of a block over an image, and the affinity of one pixel along it.

    python tools/analysis_tools/visualize_tree.py IMAGE --config CONFIG --checkpoint CHECKPOINT \
        --stage 1 --block 0 --pixel 60 100 --out tree.png

Without a config it draws the tree of the image's own colours, where the decay of an edge is
exp(-d / 10), d the distance of its two colours over the mean distance along the tree.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from PIL import Image
from torch import Tensor, nn

from grootv.ops import METRICS, Tree, build_tree
from grootv.utils import cli
from grootv.utils.checkpoint import check_keys, load_checkpoint_file, state_dict_of
from grootv.utils.errors import UserError
from grootv.visualization.tree import draw

LONGEST = 64  # vertices along the longer side of an image without a network


def read_image(path: str) -> Image.Image:
    try:
        return Image.open(path).convert('RGB')
    except FileNotFoundError:
        raise UserError(f'image {path} does not exist: check the path') from None
    except OSError as error:
        raise UserError(f'image {path} cannot be read ({error}): give another one') from error


def tree_of_colours(image: Image.Image, metric: str) -> tuple[tuple[int, int], Tree, Tensor]:
    """Grid, tree and decays (1, L, 1) of a small copy of an image."""
    small = image.copy()
    small.thumbnail((LONGEST, LONGEST))
    colours = torch.from_numpy(np.array(small)).float().unsqueeze(0) / 255
    tree = build_tree(colours, metric)
    vertices = colours.flatten(1, 2)
    parents = vertices[:, tree.parent[0].long()]
    distance = (vertices - parents).norm(dim=-1, keepdim=True)
    decay = torch.exp(-distance / distance.mean().clamp_min(1e-6) / 10)
    return tuple(colours.shape[1:3]), tree, decay


def build_model(cfg: Config, metric: str | None, checkpoint: str | None, trust: bool) -> nn.Module:
    if metric is not None:
        cfg.model.backbone.metric = metric
    torch.manual_seed(0)  # the same picture again, also without a checkpoint
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))  # as the Runner does
    model = MODELS.build(cfg.model).eval()
    if checkpoint is not None:
        weights = load_checkpoint_file(checkpoint, trust=trust)
        check_keys(model, weights)
        model.load_state_dict(state_dict_of(weights), strict=False)
    return model


def network_input(cfg: Config, model: nn.Module, path: str) -> tuple[np.ndarray, Tensor]:
    """What the test pipeline makes of an image: the picture (H, W, 3) and the network's input."""
    dataset = cfg.test_dataloader.dataset
    while 'pipeline' not in dataset:
        dataset = dataset.dataset
    steps = [step for step in dataset.pipeline if not step.type.endswith('Annotations')]
    data = Compose([TRANSFORMS.build(step) for step in steps])(dict(img_path=path, img_id=0))
    preprocessor = model.data_preprocessor
    inputs = preprocessor(pseudo_collate([data]), False)['inputs']
    picture = inputs * preprocessor.std + preprocessor.mean
    picture = picture[0].permute(1, 2, 0).round().clamp(0, 255).byte().cpu().numpy()
    return picture, inputs


@torch.no_grad()
def tree_of_block(
    model: nn.Module, inputs: Tensor, stage: int, block: int
) -> tuple[tuple[int, int], Tree, Tensor]:
    """Grid, tree and decays (1, L, D) of one block of the backbone."""
    found = {}

    def keep(ssm: nn.Module, args: tuple, output: tuple) -> None:
        guide, _ = ssm.project(args[0])
        found['grid'] = tuple(guide.shape[1:3])
        found['tree'] = output[1]
        found['decay'] = ssm.decay(guide.flatten(1, 2))

    backbone = model.backbone
    backbone.out_indices = (stage,)  # no need to run the stages after it
    backbone.stages[stage].blocks[block].ssm.register_forward_hook(keep)
    backbone(inputs)
    return found['grid'], found['tree'], found['decay']


def check_place(model: nn.Module, config: str, stage: int, block: int) -> None:
    depths = getattr(model.backbone, 'depths', None)
    if type(model.backbone).__name__ != 'GrootV':
        raise UserError(f'{config} has no GrootV backbone: only that one builds trees')
    if not 0 <= stage < len(depths):
        raise UserError(f'--stage must be 0 to {len(depths) - 1}, got {stage}')
    if not 0 <= block < depths[stage]:
        raise UserError(f'--block must be 0 to {depths[stage] - 1} in stage {stage}, got {block}')


def vertex_at(pixel: list[int] | None, size: tuple[int, int], grid: tuple[int, int]) -> int:
    """The vertex whose cell covers a pixel of the picture, the middle one by default."""
    pixel = pixel or [side // 2 for side in size]
    if not all(0 <= p < side for p, side in zip(pixel, size, strict=True)):
        raise UserError(f'--pixel must lie inside the picture of {size[0]} x {size[1]}, got {pixel}')
    row, column = (p * n // side for p, n, side in zip(pixel, grid, size, strict=True))
    return row * grid[1] + column


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('image', help='image file')
    parser.add_argument('--config', help='config of a network; default: the colours themselves')
    parser.add_argument('--checkpoint', help='weights of the network; default: untrained')
    parser.add_argument('--stage', type=int, default=0, help='stage of the network, from 0')
    parser.add_argument('--block', type=int, default=0, help='block of the stage, from 0')
    parser.add_argument(
        '--pixel',
        type=int,
        nargs=2,
        metavar=('ROW', 'COL'),
        help='pixel of the drawn picture whose affinity is shown; default: its middle',
    )
    parser.add_argument('--metric', choices=METRICS, help="default: the network's own; euclidean without one")
    parser.add_argument('--out', type=Path, default=Path('tree.png'), help='picture to write')
    parser.add_argument('--cfg-options', nargs='+', action=cli.KeyValueAction, metavar='KEY=VALUE')
    parser.add_argument('--trust-checkpoint', action='store_true', help='let the checkpoint execute code')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    image = read_image(args.image)
    name = Path(args.image).name
    if args.config is None:
        if args.checkpoint or args.cfg_options or args.stage or args.block:
            raise UserError('--checkpoint, --cfg-options, --stage and --block need --config')
        picture = np.array(image)
        grid, tree, decay = tree_of_colours(image, args.metric or 'euclidean')
        title = f'{name}, {args.metric or "euclidean"} distance of the colours'
    else:
        cfg = cli.load_config(args.config, args.cfg_options)
        init_default_scope(cfg.get('default_scope', 'mmpretrain'))
        model = build_model(cfg, args.metric, args.checkpoint, args.trust_checkpoint)
        check_place(model, args.config, args.stage, args.block)
        picture, inputs = network_input(cfg, model, args.image)
        grid, tree, decay = tree_of_block(model, inputs, args.stage, args.block)
        untrained = '' if args.checkpoint else ', untrained'
        place = f'stage {args.stage}, block {args.block}{untrained}'
        title = f'{name}, {Path(args.config).stem}, {place}'
    vertex = vertex_at(args.pixel, picture.shape[:2], grid)
    figure = draw(picture, grid, tree, decay, vertex, title)
    endings = figure.canvas.get_supported_filetypes()
    if args.out.suffix[1:] not in endings:
        raise UserError(f'--out {args.out}: end it in .{", .".join(sorted(endings))}')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=150)
    print(f'tree: {args.out}')


if __name__ == '__main__':
    cli.run(main)
