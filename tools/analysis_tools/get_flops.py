"""Count the parameters and multiply-adds of a classifier.

    python tools/analysis_tools/get_flops.py configs/classification/grootv-tiny_8xb128_in1k.py
    python tools/analysis_tools/get_flops.py --arch tiny --shape 384 384

A count belongs to a protocol. The one behind the published classification figures (4.778 G for
GrootV-T at 224 x 224) is fvcore's: one operator at a time, a multiply-add counts as one.

=========================== ====================================================================
published                   convolutions, linear layers, matrix products, norms (5 an element),
                            pooling; the product C h of the read-out, because it was written as a
                            matrix product; nothing for scan, tree and activations
+ scan                      9 L D for every scan over L vertices and D channels, the usual figure
                            of a selective scan with state size 1
+ scan and tree             the metric of every edge and, for cosine, the norm of every vertex, D
                            each; the spanning tree and its order only compare and count nothing
=========================== ====================================================================
"""

import argparse
import math
from collections import Counter

import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from grootv.models.backbones.grootv import ARCHS
from grootv.utils import cli
from grootv.utils.errors import UserError

SCAN = 9


def count_operators(model: nn.Module, height: int, width: int) -> Counter:
    """Multiply-adds of one image by operator, 'read_out', 'scan' and 'tree' among them.

    Args:
        model: A classifier, called with a batch of images. It is put in evaluation mode.
        height: Rows of the image.
        width: Columns of the image.
    """

    def scan(inputs: list, outputs: list) -> Counter:
        elements = math.prod(sizes(inputs[0]))
        return Counter(read_out=elements, scan=SCAN * elements)

    def tree(inputs: list, outputs: list) -> Counter:
        batch, height, width, channels = sizes(inputs[0])
        evaluations = (height - 1) * width + height * (width - 1)
        if inputs[1].toIValue() == 'cosine':
            evaluations += height * width
        return Counter(tree=batch * evaluations * channels)

    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    image = torch.zeros(1, channels, height, width)
    analyzer = FlopAnalyzer(model.eval(), (image,))
    analyzer.set_op_handle(**{'grootv::selective_tree_scan': scan, 'grootv::build_tree': tree})
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analyzer.tracer_warnings('none')
    with torch.no_grad():
        return analyzer.by_operator()


def sizes(value: torch._C.Value) -> list[int]:
    return value.type().sizes()


def readable(count: int) -> str:
    return f'{count / 1e9:.3f} G' if count >= 1e8 else f'{count / 1e6:.3f} M'


def build_model(args: argparse.Namespace) -> nn.Module:
    if (args.config is None) == (args.arch is None):
        raise UserError('give either a config or --arch')
    if args.config is None:
        init_default_scope('mmpretrain')
        head = dict(type='grootv.GrootVClsHead', num_classes=1000)
        head['in_channels'] = 8 * ARCHS[args.arch]['embed_dims']
        backbone = dict(type='grootv.GrootV', arch=args.arch)
        return MODELS.build(dict(type='ImageClassifier', backbone=backbone, head=head))
    cfg = cli.load_config(args.config, args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    if cfg.get('model', {}).get('type') not in ('ImageClassifier', 'mmpretrain.ImageClassifier'):
        raise UserError(f'{args.config} builds no ImageClassifier: this protocol counts classifiers')
    return MODELS.build(cfg.model)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', nargs='?', help='config file')
    parser.add_argument('--arch', choices=ARCHS, help='a published size, in place of a config')
    parser.add_argument('--shape', type=int, nargs='+', default=[224], help='height and width of the image')
    parser.add_argument('--cfg-options', nargs='+', action=cli.KeyValueAction, metavar='KEY=VALUE')
    args = parser.parse_args(argv)
    if len(args.shape) > 2 or min(args.shape) < 1:
        parser.error(f'--shape takes a height and a width, got {args.shape}')
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    height, width = args.shape[0], args.shape[-1]
    model = build_model(args)
    counts = count_operators(model, height, width)
    scan, tree = counts.pop('scan', 0), counts.pop('tree', 0)
    published = sum(counts.values())
    print(f'parameters       {sum(p.numel() for p in model.parameters()):,}')
    print(f'multiply-adds of one image of {height} x {width}, fvcore operator count:')
    print(f'published        {readable(published)}')
    print(f'+ scan           {readable(published + scan)}')
    print(f'+ scan and tree  {readable(published + scan + tree)}')


if __name__ == '__main__':
    cli.run(main)
