"""Turn a checkpoint of the first implementation of GrootV into one of this project.

    python tools/model_converters/official_to_grootv.py SRC DST

SRC holds the published network's parameters, bare or under 'model'; DST, .pth or .safetensors, becomes an
mmpretrain classifier checkpoint that loads strictly into configs/classification/grootv-*. Width, depths,
classes and layer scale are read off the shapes; every key must be there, known, and of the right
shape. Post-norm leaves no trace in a checkpoint: pre-norm, as published, is assumed.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
import hashlib
import re
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor

from grootv.checkpoint import build_model, load_checkpoint_file, pack_weights
from grootv.cli import run
from grootv.errors import UserError
from grootv.files import write_atomically

# From our names to the published ones, applied in this order.
RENAMES = [
    (r'^backbone\.stem\.(norm\d)', r'patch_embed.\1.1'),
    (r'^backbone\.stem', 'patch_embed'),
    (r'^backbone\.stages\.(\d)\.norm', r'levels.\1.norm.0'),
    (r'^backbone\.stages', 'levels'),
    (r'(blocks\.\d+\.norm\d)', r'\1.0'),
    (r'downsample\.norm', 'downsample.norm.1'),
    (r'\.ssm\.', '.TreeSSM.'),
    (r'TreeSSM\.conv\.', 'TreeSSM.conv2d.'),
    (r'x_proj\.weight', 'x_proj_weight'),
    (r'dt_proj\.', 'dt_projs_'),
    (r'A_log$', 'A_logs'),
    (r'TreeSSM\.D$', 'TreeSSM.Ds'),
    (r'state_norm', 'h_norm'),
    (r'^head\.conv', 'conv_head.0'),
    (r'^head\.norm', 'conv_head.1.0'),
    (r'^head\.fc', 'head'),
]
STACKED = ('x_proj_weight', 'dt_projs_weight', 'dt_projs_bias')  # stored with a leading 1


def convert(published: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict]:
    """Rename and reshape the published parameters.

    Args:
        published: Parameters by their published names.

    Returns:
        The state dict of the ImageClassifier and the config that builds it.

    Raises:
        UserError: If a key is missing, unknown or misshapen; the sentence names it.
    """
    if not isinstance(published, dict):
        raise UserError(f"'model' of the checkpoint is {type(published).__name__}, not parameters")
    stripped = [str(name).removeprefix('module.') for name in published]
    twice = next((name for name in stripped if stripped.count(name) > 1), None)
    if twice is not None:
        raise UserError(f'the checkpoint has {twice} twice, with and without the prefix module.')
    published = dict(zip(stripped, published.values(), strict=True))
    config = infer_config(published)
    ours = expected_shapes(config)
    names = {name: published_name(name) for name in ours}
    check_keys(set(published), set(names.values()))
    state_dict = {}
    for name, shape in ours.items():
        value = published[names[name]]
        expected = (1, *shape) if names[name].endswith(STACKED) else shape
        if not isinstance(value, Tensor) or tuple(value.shape) != expected:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UserError(
                f'{names[name]} must have shape {expected}, found {found}: '
                'the checkpoint is not that of one GrootV'
            )
        state_dict[name] = value.reshape(shape).clone()
    return state_dict, config


def published_name(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def infer_config(published: dict[str, Tensor]) -> dict:
    """The config of the classifier whose parameters these are."""
    from grootv.models.backbones.grootv import ARCHS

    arch = dict(
        embed_dims=first_size(published, 'patch_embed.conv2.weight'),
        depths=[infer_depth(published, level) for level in range(4)],
    )
    name = next((name for name, known in ARCHS.items() if known == arch), None)
    backbone = dict(type='grootv.GrootV', arch=name or arch)
    if any(key.endswith('.gamma1') for key in published):
        backbone['layer_scale_init_value'] = 1.0
    head = dict(
        type='grootv.GrootVClsHead',
        num_classes=first_size(published, 'head.weight'),
        in_channels=8 * arch['embed_dims'],
    )
    return dict(type='ImageClassifier', backbone=backbone, head=head)


def first_size(published: dict[str, Tensor], key: str) -> int:
    value = published.get(key)
    if not isinstance(value, Tensor) or value.dim() == 0:
        raise UserError(
            f'the checkpoint has no parameter {key}: it needs the keys of the '
            "published GrootV, bare or under 'model'"
        )
    return value.shape[0]


def infer_depth(published: dict[str, Tensor], level: int) -> int:
    pattern = re.compile(rf'levels\.{level}\.blocks\.(\d+)\.')
    blocks = [int(found[1]) for found in map(pattern.match, published) if found]
    return max(blocks, default=0) + 1


def expected_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Shapes of the classifier's state dict, without allocating it."""
    with torch.device('meta'):
        model = build_model(Config(dict(model=config)))
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def check_keys(found: set[str], expected: set[str]) -> None:
    for problem, names in (('lacks', expected - found), ('has unknown', found - expected)):
        if names:
            listed = ', '.join(sorted(names)[:5]) + (', ...' if len(names) > 5 else '')
            raise UserError(
                f'the checkpoint {problem} keys ({len(names)}): {listed}; it needs every key of '
                'the published network and no other'
            )


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Convert a published GrootV checkpoint.')
    parser.add_argument('src', type=Path, help='checkpoint of the first implementation')
    parser.add_argument(
        'dst', type=Path, help='checkpoint to write, .pth or .safetensors; replaced if it is there'
    )
    parser.add_argument(
        '--trust-checkpoint', action='store_true', help='let SRC execute code while it is loaded'
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.dst.is_dir():
        raise UserError(f'{args.dst} is a folder: give the file to write')
    checkpoint = load_checkpoint_file(args.src, trust=args.trust_checkpoint)
    state_dict, config = convert(checkpoint.get('model', checkpoint))
    source = dict(name=args.src.name, sha256=hashlib.sha256(args.src.read_bytes()).hexdigest())
    meta = dict(model=config, source=source)
    with write_atomically(args.dst) as draft:
        draft.write_bytes(pack_weights(state_dict, meta, args.dst.suffix[1:]))
    backbone, head = config['backbone'], config['head']
    print(f'{args.dst}: GrootV {backbone["arch"]}, {head["num_classes"]} classes')


if __name__ == '__main__':
    run(main)
