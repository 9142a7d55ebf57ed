"""Count the parameters and multiply-adds of a classifier, a detector or a segmenter.

    python tools/analysis_tools/get_flops.py configs/classification/grootv-tiny_8xb128_in1k.py
    python tools/analysis_tools/get_flops.py configs/detection/mask-rcnn_grootv-tiny_fpn_1x_coco.py
    python tools/analysis_tools/get_flops.py --arch tiny --shape 384 384

A count belongs to a protocol. Two stand behind the published figures; a multiply-add counts as one:

=========================== ====================================================================
operators                   published for classification at 224 x 224; fvcore's, one operator at a
                            time: convolutions, linear layers, matrix products, norms (LayerNorm 5
                            an element, BatchNorm 2), pooling and nearest resizing (1), bilinear
                            resizing (4); the product C h of the read-out, because it was written
                            as a matrix product; nothing for scan, tree and activations
modules                     published for detection at 800 x 1280 and segmentation at 512 x 2048:
                            convolutions (1 an element more for a bias), linear layers, norms (2 an
                            element) and activations (1), as hooks on such modules find them;
                            nothing for pooling, resizing, the scan, its inputs delta, B and C, its
                            read-out and the tree
=========================== ====================================================================

A detector's region heads see fixed numbers of regions: each box head 1000, each mask head 100. A
segmenter's auxiliary head is not run, but its parameters count. The lines below the published count add
what it leaves out of the state-space model:

=========================== ====================================================================
+ scan                      9 L D for every scan over L vertices and D channels, the usual figure
                            of a selective scan with state size 1; to the modules also the scan's
                            inputs and read-out
+ scan and tree             the metric of every edge and, for cosine, the norm of every vertex, D
                            each; the spanning tree and its order only compare and count nothing
=========================== ====================================================================

``--protocol operators`` counts a detector or segmenter as fvcore and the tools of mmdet and mmseg do. It
computes the whole network: up to a minute on one CPU core, and 4 GB.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from torch import Tensor, nn

from grootv import cli
from grootv.checkpoint import build_model
from grootv.errors import UserError
from grootv.models.backbones.grootv import ARCHS

sys.path.insert(0, str(Path(__file__).resolve().parent))

from flop_counters import count_modules, count_operators

PROTOCOLS = {'operators': count_operators, 'modules': count_modules}
BOXES, MASKS = 1000, 100  # regions of a detector


class Kind(NamedTuple):
    """How a kind of model is counted in publications.

    Args:
        protocol: Name of the protocol.
        shape: Height and width of the image.
        forward: Runs what is counted and returns all of its results: a trace forgets what does not
            end in one. None is the model's own.
        regions: Said of it in the output.
    """

    protocol: str
    shape: tuple[int, int]
    forward: Callable[[nn.Module, Tensor], list | tuple] | None = None
    regions: str = ''


def detect_regions(model: nn.Module, image: Tensor) -> list:
    """Run a two-stage detector; blank regions stand for those that its first stage would choose."""
    maps, roi = model.extract_feat(image), model.roi_head
    results = [model.rpn_head(maps)]
    parts = [(BOXES, roi.bbox_head, roi.bbox_roi_extractor)]
    if roi.with_mask:
        parts.append((MASKS, roi.mask_head, roi.mask_roi_extractor))
    for regions, heads, extractors in parts:
        for head, extractor in zip(as_list(heads), as_list(extractors), strict=True):
            size = extractor.roi_layers[0].output_size
            results.append(head(maps[0].new_zeros(regions, extractor.out_channels, *size)))
    return results


def detect_densely(model: nn.Module, image: Tensor) -> tuple:
    """Run a one-stage detector without choosing among its boxes."""
    return model.bbox_head(model.extract_feat(image))


def as_list(modules: nn.Module) -> list[nn.Module]:
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]


TWO_STAGES = Kind('modules', (800, 1280), detect_regions, f', {BOXES} boxes and {MASKS} masks')
KINDS = {
    'ImageClassifier': Kind('operators', (224, 224)),
    'MaskRCNN': TWO_STAGES,
    'CascadeRCNN': TWO_STAGES,
    'RetinaNet': Kind('modules', (800, 1280), detect_densely),
    'EncoderDecoder': Kind('modules', (512, 2048)),
}


def chosen_model(args: argparse.Namespace) -> tuple[nn.Module, Kind]:
    if (args.config is None) == (args.arch is None):
        raise UserError('give either a config or --arch')
    if args.config is None:
        head = dict(type='grootv.GrootVClsHead', num_classes=1000)
        head['in_channels'] = 8 * ARCHS[args.arch]['embed_dims']
        backbone = dict(type='grootv.GrootV', arch=args.arch)
        cfg = Config(dict(model=dict(type='ImageClassifier', backbone=backbone, head=head)))
    else:
        cfg = cli.load_config(args.config, args.cfg_options)
    name = str(cfg.get('model', {}).get('type', 'nothing')).split('.')[-1]
    if name not in KINDS:
        raise UserError(f'{args.config} builds {name}: this tool counts {", ".join(KINDS)}')
    model = build_model(cfg)
    if any(isinstance(module, nn.MultiheadAttention) for module in model.modules()):
        raise UserError(f'{args.config} builds attention layers: no protocol here counts them')
    kind = KINDS[name]
    if kind.forward:
        model.forward = partial(kind.forward, model)
    return model, kind


def readable(count: int) -> str:
    return f'{count / 1e9:.3f} G' if count >= 1e8 else f'{count / 1e6:.3f} M'


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', nargs='?', help='config file')
    parser.add_argument('--arch', choices=ARCHS, help='a published classifier, in place of a config')
    parser.add_argument('--shape', type=int, nargs='+', help='height and width of the image')
    parser.add_argument('--protocol', choices=PROTOCOLS, help="default: that of the kind's published figures")
    parser.add_argument('--cfg-options', nargs='+', action=cli.KeyValueAction, metavar='KEY=VALUE')
    args = parser.parse_args(argv)
    if args.shape and (len(args.shape) > 2 or min(args.shape) < 1):
        parser.error(f'--shape takes a height and a width, got {args.shape}')
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    model, kind = chosen_model(args)
    shape = args.shape or kind.shape
    height, width = shape[0], shape[-1]
    protocol = args.protocol or kind.protocol
    counts = PROTOCOLS[protocol](model, height, width)
    scan, tree = counts.pop('scan', 0), counts.pop('tree', 0)
    counted = sum(counts.values())
    print(f'parameters       {sum(p.numel() for p in model.parameters()):,}')
    print(f'multiply-adds of one image of {height} x {width}{kind.regions}, count of {protocol}:')
    print(f'{"published" if protocol == kind.protocol else "counted":<17}{readable(counted)}')
    print(f'+ scan           {readable(counted + scan)}')
    print(f'+ scan and tree  {readable(counted + scan + tree)}')


if __name__ == '__main__':
    cli.run(main)
