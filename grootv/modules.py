"""How the networks use layers whose weights they could also hand to an operator."""

import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_all
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of a layer is no more than its kind's function of its weight and bias.

    It is not where somebody has replaced it (adapters, quantisation), derived its class (parametrizations),
    hooked it or all modules, or put another sort of tensor in the place of its weight.
    """
    if type(layer) is not kind or 'forward' in layer.__dict__:
        return False
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return False
    if of_all._global_forward_hooks or of_all._global_forward_pre_hooks:
        return False
    if of_all._global_backward_hooks or of_all._global_backward_pre_hooks:
        return False
    weight = layer._parameters.get('weight')
    return type(weight) is nn.Parameter or not is_traceable_wrapper_subclass(weight)


def call(layer: nn.Module, x: Tensor) -> Tensor:
    """Call a layer on a tensor of any floating dtype, in the dtype of the layer's parameters."""
    dtypes = (parameter.dtype for parameter in layer.parameters() if parameter.is_floating_point())
    dtype: torch.dtype = next(dtypes, x.dtype)
    return layer(x.to(dtype)).to(x.dtype)
