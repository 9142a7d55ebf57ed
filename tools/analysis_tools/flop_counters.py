"""The two protocols behind published multiply-adds: what each counts, and what it leaves out.

Both return a Counter whose entries 'scan' and 'tree' are what the protocol leaves out; the others are
its count. A multiply-add counts as one.
"""

import math
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from mmengine.analysis import FlopAnalyzer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from grootv.models.layers import TreeSSM

SCAN = 9  # multiply-adds of a selective scan with state size 1, by vertex and channel


def edge_terms(shape: list[int], metric: str) -> int:
    """Multiply-adds of the metric of every edge of maps (B, H, W, C), and for cosine of every norm."""
    batch, height, width, channels = shape
    evaluations = (height - 1) * width + height * (width - 1)
    if metric == 'cosine':
        evaluations += height * width
    return batch * evaluations * channels


def blank_image(model: nn.Module, height: int, width: int) -> Tensor:
    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    return torch.zeros(1, channels, height, width)


def count_operators(model: nn.Module, height: int, width: int) -> Counter:
    """Multiply-adds of one image as fvcore counts them: by operator of the traced network.

    Args:
        model: Called with a batch of images. It is put in evaluation mode and computes in earnest.
        height: Rows of the image.
        width: Columns of the image.
    """

    def sizes(value: torch._C.Value) -> list[int]:
        return value.type().sizes()

    def scan(inputs: list, outputs: list) -> Counter:
        return Counter(scan=SCAN * math.prod(sizes(inputs[0])))

    def read_out(inputs: list, outputs: list) -> Counter:
        elements = math.prod(sizes(inputs[0]))
        # fvcore sees the matrix product C h by which the published network reads the states out, and counts
        # its two norms at five for each value.
        return Counter(read_out=elements, layer_norm=2 * 5 * elements)

    def tree(inputs: list, outputs: list) -> Counter:
        return Counter(tree=edge_terms(sizes(inputs[0]), inputs[1].toIValue()))

    analyzer = FlopAnalyzer(model.eval(), (blank_image(model, height, width),))
    handles = dict(selective_tree_scan=scan, gated_read_out=read_out, build_tree=tree)
    analyzer.set_op_handle(**{f'grootv::{name}': handle for name, handle in handles.items()})
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analyzer.tracer_warnings('none')
    with torch.no_grad():
        return analyzer.by_operator()


# A rule takes the arguments, an input and most often a weight and a bias, and the output.
def convolution(args: tuple, out: Tensor) -> int:
    return linear(args, out) + bias(args, out)


def transposed_convolution(args: tuple, out: Tensor) -> int:
    return args[0].numel() * args[1].shape[1:].numel() + bias(args, out)


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
    F.conv2d: convolution,
    F.conv_transpose2d: transposed_convolution,
    F.linear: linear,
    F.layer_norm: norm,
    F.batch_norm: norm,
    F.group_norm: norm,
    F.relu: activation,
    F.gelu: activation,
    F.silu: activation,
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
        elif func is torch.ops.grootv.selective_tree_scan:
            self.counts['scan'] += SCAN * out.numel()
        elif func is torch.ops.grootv.gated_read_out:
            self.counts['scan'] += out.numel()  # C h
            self.counts['read_out'] += 2 * norm(args, out) + activation(args, out)
        elif func is torch.ops.grootv.build_tree:
            self.counts['tree'] += edge_terms(args[0].shape, args[1])
        return out


def count_modules(model: nn.Module, height: int, width: int) -> Counter:
    """Multiply-adds of one image in convolution, linear, norm and activation modules.

    Args:
        model: Called with a batch of images. It is put in evaluation mode; nothing is computed but
            shapes.
        height: Rows of the image.
        width: Columns of the image.
    """
    model.eval()
    counter = ModuleCounter(model)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        image = blank_image(model, height, width)
        with counter:
            model(image)
    return counter.counts
