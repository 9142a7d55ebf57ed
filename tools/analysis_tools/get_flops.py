"""Count the parameters and multiply-adds of a classifier, a detector or a segmenter.

    python tools/analysis_tools/get_flops.py configs/classification/grootv-tiny_8xb128_in1k.py
    python tools/analysis_tools/get_flops.py configs/detection/mask-rcnn_grootv-tiny_fpn_1x_coco.py
    python tools/analysis_tools/get_flops.py --arch tiny --shape 384 384

A count belongs to a protocol. The published figures follow two; a multiply-add counts as one:

operators: classification at 224 x 224. As fvcore counts, one operator at a time: convolutions, linear layers,
    matrix products, norms (LayerNorm 5 an element, BatchNorm 2), pooling and nearest resizing (1), bilinear
    resizing (4), and the product C h of the read-out; nothing for scan, tree and activations. It computes the
    whole network: for a detector or segmenter up to a minute on one CPU core, and 4 GB.
modules: detection at 800 x 1280 and segmentation at 512 x 2048. Convolutions (1 an element more for a bias),
    linear layers, norms (2 an element) and activations (1), as hooks on such modules find them; nothing for
    pooling, resizing, the scan, its inputs delta, B and C, its read-out and the tree.

A detector's region heads receive fixed numbers of regions: each box head 1000, each mask head 100. A
segmenter's auxiliary head is not run, but its parameters count. The lines below the published count add what
it leaves out of the state-space model. '+ scan' adds 9 L D for every scan over L vertices and D channels, the
usual figure of a selective scan with state size 1, and to the modules the scan's inputs and read-out; with
edge_decay L D more, and L D for the distances, 2 L D for cosine.
'+ scan and tree' adds the metric of every edge and, for cosine, the norm of every vertex, D each. The
spanning tree and its order only compare and count nothing.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import flop_registry

from grootv import cli
from grootv.checkpoint import build_model
from grootv.errors import UserError
from grootv.models.backbones.grootv import ARCHS
from grootv.models.layers import TreeSSM, tree_ssm
from grootv.options import KeyValueAction
from grootv.registry import class_name

BOXES, MASKS = 1000, 100  # regions of a detector
LEFT_OUT: dict[Callable, str] = {
    torch.ops.grootv.selective_tree_scan: 'scan',
    torch.ops.grootv.tree_edge_distance: 'scan',
    torch.ops.grootv.build_tree: 'tree',
}
READ_OUT = torch.ops.grootv.gated_read_out


def multiply_adds(operator: Callable, *args: object) -> int:
    """By the formula that grootv.ops registers, which counts two operations for each."""
    return flop_registry[operator](*args, out_val=None) // 2


def blank_image(model: nn.Module, height: int, width: int) -> Tensor:
    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    return torch.zeros(1, channels, height, width)


def count_operators(model: nn.Module, height: int, width: int) -> Counter:
    """Multiply-adds of one image by operator of the traced network, and what it leaves out: scan, tree."""

    def value(of: torch._C.Value) -> object:
        return of.type().sizes() if isinstance(of.type(), torch._C.TensorType) else of.toIValue()

    def left_out(operator: Callable, inputs: list, outputs: list) -> Counter:
        return Counter({LEFT_OUT[operator]: multiply_adds(operator, *map(value, inputs))})

    def read_out(inputs: list, outputs: list) -> Counter:
        elements = math.prod(value(inputs[0]))
        # fvcore sees the matrix product C h by which the published network reads the states out, and counts
        # its two norms at five for each value.
        return Counter(read_out=elements, layer_norm=2 * 5 * elements)

    handles = {operator: partial(left_out, operator) for operator in LEFT_OUT} | {READ_OUT: read_out}
    analyzer = FlopAnalyzer(model.eval(), (blank_image(model, height, width),))
    analyzer.set_op_handle(**{operator._qualified_op_name: handle for operator, handle in handles.items()})
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analyzer.tracer_warnings('none')
    # The analyzer's hooks would make the network call layers as modules that it applies as functions.
    with torch.no_grad(), mock.patch.object(tree_ssm, 'is_plain', lambda layer, kind: True):
        return analyzer.by_operator()


# A rule takes the arguments, an input and most often a weight and a bias, and the output.
def bias(args: tuple, out: Tensor) -> int:
    return out.numel() if len(args) > 2 and args[2] is not None else 0


def linear(args: tuple, out: Tensor) -> int:
    return out.numel() * args[1].shape[1:].numel()


def norm(args: tuple, out: Tensor) -> int:
    return 2 * out.numel()  # scale and shift, not mean and variance


def activation(args: tuple, out: Tensor) -> int:
    return out.numel()


# What convolution, linear, norm and activation modules call.
MODULE_RULES: dict[Callable, Callable[[tuple, Tensor], int]] = {
    F.conv2d: lambda args, out: linear(args, out) + bias(args, out),
    F.conv_transpose2d: lambda args, out: args[0].numel() * args[1].shape[1:].numel() + bias(args, out),
    F.linear: linear,
    **dict.fromkeys((F.layer_norm, F.batch_norm, F.group_norm), norm),
    **dict.fromkeys((F.relu, F.gelu, F.silu), activation),
}


class ModuleCounter(TorchFunctionMode):
    """Adds up in ``counts`` what is computed while it is active.

    A hook on modules, the usual way, would miss the layers that our network applies as functions.

    Args:
        model: Its projections from vertices to delta, B and C count as a part of the scan, which the
            published figures leave out.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.counts = Counter()
        mixers = [module for module in model.modules() if isinstance(module, TreeSSM)]
        self.hidden = {id(layer.weight) for ssm in mixers for layer in (ssm.x_proj, ssm.dt_proj)}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in MODULE_RULES:
            hidden = func is F.linear and id(args[1]) in self.hidden
            self.counts['scan' if hidden else func.__name__] += MODULE_RULES[func](args, out)
        elif func in LEFT_OUT:
            self.counts[LEFT_OUT[func]] += multiply_adds(func, *args)
        elif func is READ_OUT:
            self.counts['scan'] += out.numel()  # C h
            self.counts['read_out'] += 2 * norm(args, out) + activation(args, out)
        return out


def count_modules(model: nn.Module, height: int, width: int) -> Counter:
    """Multiply-adds of one image in convolution, linear, norm and activation modules, from shapes alone."""
    counter = ModuleCounter(model.eval())
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        image = blank_image(model, height, width)
        with counter:
            model(image)
    return counter.counts


PROTOCOLS = {'operators': count_operators, 'modules': count_modules}


class Kind(NamedTuple):
    """How a kind of model is counted in publications."""

    protocol: str
    shape: tuple[int, int]  # of the image
    # Returns all that is to be counted: a trace leaves out what does not end in a result.
    forward: Callable[[nn.Module, Tensor], list | tuple] | None = None
    regions: str = ''  # as the output names them


def detect_regions(model: nn.Module, image: Tensor) -> list:
    """Run a two-stage detector; blank regions replace those that its first stage would choose."""
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
    name = class_name(cfg.get('model', {}).get('type', 'nothing'))
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
    parser.add_argument('--cfg-options', nargs='+', action=KeyValueAction, metavar='KEY=VALUE')
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
