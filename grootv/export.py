"""Networks as deployment formats take them: a plain module, traced by PyTorch or written as ONNX.

In ONNX the operators of ``grootv.ops`` are of the domain ``grootv``, version 1; their names, inputs and
attributes are those of ``torch.ops.grootv``, with ``LAST_INPUTS`` last. ONNX Runtime runs them by the library
that :func:`grootv.ops.onnxruntime_library` names.

Packages that only one format or the builder needs are imported where they are used.
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from grootv.errors import UserError
from grootv.ops import convolution

if TYPE_CHECKING:
    from mmengine.config import Config

TRACED_SIDE = 96  # pixels; the last map of a network has three rows and columns then
ONNX_OPERATORS = ('build_tree', 'tree_edge_distance', 'tree_scan', 'selective_tree_scan', 'gated_read_out')
LAST_INPUTS = ('distance', 'scale')  # wherever in torch: models from before they came have the other inputs


class Logits(nn.Module):
    """A classifier without preprocessing and loss: image (B, 3, H, W), normalised -> logits (B, classes)."""

    def __init__(self, classifier: nn.Module):
        super().__init__()
        parts: Any = classifier
        self.backbone: nn.Module = parts.backbone
        self.neck: nn.Module = nn.Identity() if parts.neck is None else parts.neck
        self.head: nn.Module = parts.head

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.neck(self.backbone(image)))


def deployable(cfg: 'Config', checkpoint: str | None = None, trust: bool = False) -> nn.Module:
    """The part of a config's model that is deployed, in evaluation mode and on the CPU.

    Args:
        cfg: Config of a classifier, detector or segmentor.
        checkpoint: Weights of the whole model; None leaves the initial ones.
        trust: As for :func:`grootv.checkpoint.build_model`.

    Returns:
        Image (B, 3, H, W), normalised -> logits of a classifier, or the tuple of maps of another
        model's backbone. No parameter requires a gradient.

    Raises:
        UserError: If the config has no model with a backbone, or the checkpoint is not its own.
    """
    from grootv.checkpoint import build_model
    from grootv.registry import class_name

    if 'backbone' not in cfg.get('model', {}):
        raise UserError(f'{cfg.filename} has no model with a backbone: give a config that trains a network')
    model = build_model(cfg, checkpoint, trust)
    is_classifier = class_name(cfg.model.type) == 'ImageClassifier'
    network: Any = Logits(model) if is_classifier else model.backbone
    return network.eval().requires_grad_(False)


def random_images(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Images (batch, 3, height, width) of normal noise, the same for the same arguments."""
    return torch.randn((batch, 3, height, width), generator=torch.Generator().manual_seed(seed))


def tracing_images(images: Tensor) -> Tensor:
    """Images to trace a network with in place of others: two or more, with sides of ``TRACED_SIDE`` or more.

    PyTorch takes every size of 1 that it meets for a constant, be it the batch or a side of the last map.
    """
    batch, channels, *sides = images.shape
    return images.new_zeros(max(batch, 2), channels, *(max(side, TRACED_SIDE) for side in sides))


def export_program(network: nn.Module, height: int, width: int) -> ExportedProgram:
    """Trace a network with torch.export; batch, height and width are left open.

    Args:
        network: Image (B, 3, H, W) -> logits, or a tuple of maps.
        height: Of an image that the network takes; small ones are traced larger, see :func:`tracing_images`.
        width: Of the same.
    """
    with torch.no_grad():
        return torch.export.export(
            network,
            (tracing_images(random_images(2, height, width)),),
            dynamic_shapes=({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},),
        )


def compile_package(program: ExportedProgram, path: Path) -> None:
    """Compile an exported program for the CPU of this machine with AOTInductor and write the package."""
    program = program.run_decompositions({torch.ops.aten.conv2d.default: convolution.opaque})
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def export_onnx(network: nn.Module, image: Tensor, metadata: dict[str, str], path: Path) -> None:
    """Write a network as ONNX; batch, height and width are left open.

    Args:
        network: Image (B, 3, H, W) -> logits, or a tuple of maps.
        image: Images that the network takes; small ones are traced larger, see :func:`tracing_images`.
        metadata: Texts by key, for the model's metadata.
        path: File to write.
    """
    stages = getattr(network, 'out_indices', None)
    logging.getLogger('onnxscript').setLevel(logging.ERROR)  # it reports every node that it does not fold
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # of torch about itself
        program = torch.onnx.export(
            network,
            (tracing_images(image),),
            dynamo=True,
            verbose=False,
            input_names=['image'],
            output_names=['logits'] if stages is None else [f'stage{index}' for index in stages],
            dynamic_shapes=({0: 'batch', 2: 'height', 3: 'width'},),
            custom_translation_table=translation_table(),
        )
    assert program is not None  # only torch's older exporter returns nothing
    model = program.model
    model.ir_version = 9  # nothing needs more, and ONNX Runtime 1.17 reads no more
    # The exporter leaves its notes everywhere, with paths of this machine.
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [value for node in model.graph for value in node.outputs]
    for each in (model.graph, *model.graph, *values):
        each.metadata_props.clear()
    model.metadata_props.update(metadata)
    program.save(path)


def translation_table() -> dict[Callable, Callable]:
    """The ``custom_translation_table`` of ``torch.onnx.export`` for modules that call :mod:`grootv.ops`."""
    operators = (getattr(torch.ops.grootv, name).default for name in ONNX_OPERATORS)
    return {operator: _translation(operator) for operator in operators}


def _translation(operator: torch._ops.OpOverload) -> Callable:
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    kinds = OpSchema.AttrType
    kind_of = {'int': kinds.INT, 'bool': kinds.INT, 'str': kinds.STRING, 'float': kinds.FLOAT}
    option = OpSchema.FormalParameterOption

    def parameter(name: str, optional: bool = False) -> OpSchema.FormalParameter:
        return OpSchema.FormalParameter(
            name, f'T_{name}', param_option=option.Optional if optional else option.Single
        )

    arguments = operator._schema.arguments
    attributes = {each.name: str(each.type) for each in arguments if str(each.type) in kind_of}
    in_order = sorted(arguments, key=lambda each: each.name in LAST_INPUTS)
    inputs = {each.name: str(each.type) for each in in_order if each.name not in attributes}
    outputs = [each.name or 'output' for each in operator._schema.returns]
    schema = OpSchema(
        operator._schema.name.removeprefix('grootv::'),
        'grootv',
        1,
        inputs=[parameter(name, kind.startswith('Optional')) for name, kind in inputs.items()],
        outputs=[parameter(name) for name in outputs],
        type_constraints=[
            (f'T_{name}', ['tensor(float)', 'tensor(int32)'], '') for name in [*inputs, *outputs]
        ],
        attributes=[OpSchema.Attribute(name, kind_of[kind]) for name, kind in attributes.items()],
    )
    op = Op(Opset('grootv', 1), schema.name, schema)

    def translate(*values):
        # PyTorch leaves out a last argument that has its default, None.
        by_name = dict(zip((each.name for each in arguments), values, strict=False))
        numbers = {
            name: int(by_name[name]) if kind == 'bool' else by_name[name] for name, kind in attributes.items()
        }
        return op(*(by_name.get(name) for name in inputs), **numbers)

    return translate


def compare(
    path: Path, images: Tensor, found: Sequence[Tensor], expected: Tensor | Sequence[Tensor], tolerance: float
) -> str:
    """Report how far the outputs of an exported model are from the network's.

    Args:
        path: The model.
        images: What both got.
        found: Outputs of the model.
        expected: Output or outputs of the network.
        tolerance: Greatest difference that is rounding, over the greatest value.

    Raises:
        UserError: If an output differs by more, or is NaN.
    """
    greatest, scale = difference(found, expected), max(float(output.abs().max()) for output in found)
    shape = ' x '.join(map(str, images.shape))
    if not greatest <= tolerance * scale:
        raise UserError(
            f'{path} differs from PyTorch by {greatest:.2g} in values up to {scale:.2g} on images of {shape}'
        )
    return f'{shape}: outputs differ by {greatest:.2g} at most in values up to {scale:.2g}'


def difference(found: Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> float:
    """Greatest absolute difference of the outputs, NaN if there is one."""
    expected = (expected,) if isinstance(expected, Tensor) else expected
    return float(torch.stack([(a - b).abs().max() for a, b in zip(found, expected, strict=True)]).max())
