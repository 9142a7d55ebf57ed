"""Learning rates that fall from the head to the stem."""

import inspect
from typing import Any

import torch
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIMIZERS
from torch import nn

from grootv.errors import UserError
from grootv.registry import OPTIM_WRAPPER_CONSTRUCTORS

_MULTIPLIERS = {'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'dwconv_decay_mult'}
_MULTIPLIERS |= {'flat_decay_mult', 'dcn_offset_lr_mult'}
_PARAMWISE = {'layer_decay_rate', 'custom_keys', 'bypass_duplicate', *_MULTIPLIERS}
_CUSTOM = {'lr_mult', 'decay_mult'}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's constructor, whose learning rates are then multiplied by ``rate ** distance``.

    The distance of a parameter is the number of depths between it and the heads; the backbone gives
    it by ``get_layer_depth(name, prefix)``. Parameters outside the backbone have distance 0.

    Args:
        optim_wrapper_cfg: As for MMEngine's constructor.
        paramwise_cfg: As there, all keys in force, and ``layer_decay_rate``: above 0, at most 1.

    Raises:
        UserError: If ``paramwise_cfg`` has no rate or a key that nothing reads, or the model has no
            backbone that knows its depths.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise UserError(
                'optim_wrapper.paramwise_cfg.layer_decay_rate must be above 0 and at most 1, '
                f'got {rate}: set it, or leave out optim_wrapper.constructor'
            )
        if self.base_lr is None:
            raise UserError(
                'layer_decay_rate multiplies optim_wrapper.optimizer.lr, which is not set: set it'
            )
        self.rate = rate
        check_names('paramwise_cfg', self.paramwise_cfg, _PARAMWISE)
        options = _CUSTOM | set(inspect.signature(self._optimizer_class()).parameters)
        for key, settings in self.paramwise_cfg.get('custom_keys', {}).items():
            check_names(f'paramwise_cfg.custom_keys[{key!r}]', settings, options)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        network = getattr(model, 'module', model)
        if not hasattr(getattr(network, 'backbone', None), 'get_layer_depth'):
            raise UserError(
                f'layer_decay_rate needs a backbone with get_layer_depth, and {type(network).__name__} has '
                f'{type(network.backbone).__name__ if hasattr(network, "backbone") else "no backbone"}: '
                'leave out optim_wrapper.constructor, or take grootv.GrootV'
            )
        return super().__call__(model)

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs) -> None:
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:
            return  # the base class is on its way through the modules
        backbone: Any = module.backbone
        names = {parameter: name for name, parameter in module.named_parameters()}
        for group in params:  # one parameter each
            depth, count = backbone.get_layer_depth(names[group['params'][0]], 'backbone.')
            group['lr'] = group.get('lr', self.base_lr) * self.rate ** (count - 1 - depth)

    def _optimizer_class(self) -> type[torch.optim.Optimizer]:
        kind = self.optimizer_cfg['type']
        if not isinstance(kind, str):
            return kind
        with OPTIMIZERS.switch_scope_and_registry(None) as registry:
            return registry.get(kind)


def check_names(place: str, settings: dict, known: set[str]) -> None:
    unknown = sorted(set(settings) - known)
    if unknown:
        raise UserError(
            f'optim_wrapper.{place} has a key {unknown[0]!r} that nothing reads: '
            f'it can have {", ".join(sorted(known))}'
        )
