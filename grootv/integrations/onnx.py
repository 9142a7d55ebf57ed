"""GrootV in ONNX: the operators of ``grootv.ops`` in the domain ``grootv``, version 1.

Their names, inputs and attributes are those of ``torch.ops.grootv``. ONNX Runtime runs them by the library
that :func:`grootv.ops.onnxruntime_library` names.
"""

from collections.abc import Callable

import torch
from onnx.defs import OpSchema
from onnxscript.values import Op, Opset

OPERATORS = ('build_tree', 'tree_scan', 'selective_tree_scan', 'gated_read_out')
_ATTRIBUTES = {'int': OpSchema.AttrType.INT, 'bool': OpSchema.AttrType.INT, 'str': OpSchema.AttrType.STRING}
_ATTRIBUTES['float'] = OpSchema.AttrType.FLOAT


def translation_table() -> dict[Callable, Callable]:
    """The ``custom_translation_table`` of ``torch.onnx.export`` for modules that call :mod:`grootv.ops`."""
    operators = (getattr(torch.ops.grootv, name).default for name in OPERATORS)
    return {operator: _translation(operator) for operator in operators}


def _translation(operator: torch._ops.OpOverload) -> Callable:
    arguments, results = operator._schema.arguments, operator._schema.returns
    attributes = {each.name: str(each.type) for each in arguments if str(each.type) in _ATTRIBUTES}
    inputs = {each.name: str(each.type) for each in arguments if each.name not in attributes}
    outputs = [each.name or 'output' for each in results]
    schema = OpSchema(
        operator._schema.name.removeprefix('grootv::'),
        'grootv',
        1,
        inputs=[_parameter(name, kind.startswith('Optional')) for name, kind in inputs.items()],
        outputs=[_parameter(name) for name in outputs],
        type_constraints=[
            (f'T_{name}', ['tensor(float)', 'tensor(int32)'], '') for name in [*inputs, *outputs]
        ],
        attributes=[OpSchema.Attribute(name, _ATTRIBUTES[kind]) for name, kind in attributes.items()],
    )
    op = Op(Opset('grootv', 1), schema.name, schema)

    def translate(*values):
        by_name = dict(zip((each.name for each in arguments), values, strict=True))
        numbers = {
            name: int(by_name[name]) if kind == 'bool' else by_name[name] for name, kind in attributes.items()
        }
        return op(*(by_name[name] for name in inputs), **numbers)

    return translate


def _parameter(name: str, optional: bool = False) -> OpSchema.FormalParameter:
    option = OpSchema.FormalParameterOption
    return OpSchema.FormalParameter(
        name, f'T_{name}', param_option=option.Optional if optional else option.Single
    )
