"""Training with parameters, gradients and optimizer states that are spread over the processes (FSDP)."""

import copy
from collections.abc import Iterable

import torch
from mmengine._strategy import FSDPStrategy as _FSDPStrategy
from mmengine.device import get_device
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from grootv.models.backbones.grootv import Block
from grootv.registry import STRATEGIES, class_name


def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Shard each residual block by itself, and what is left of the network as one more unit.

    A block reads parameters of its parts directly, so the parts must not be sharded on their own.
    """
    return recurse or isinstance(module, Block)


@torch.no_grad()
def clip_sharded_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients of all shards alike, so that their norm is at most ``max_norm``.

    Args:
        parameters: Shards of this process, of any shape.
        max_norm: Upper bound of the Euclidean norm over all processes.

    Returns:
        The norm before, a scalar that is equal on every process.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    squares = sum((gradient.float().square().sum() for gradient in gradients), torch.zeros(()))
    torch.distributed.all_reduce(squares)
    norm = squares.sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.to(gradient.dtype))
    return norm


@STRATEGIES.register_module()
class FSDPStrategy(_FSDPStrategy):
    """MMEngine's strategy, with the optimizer that the unsharded network has.

    A shard is a vector without the shape of its parameter, and lies in one process only. Weight
    decay that depends on the number of dimensions is therefore decided before the network is
    sharded, and gradients are clipped by their norm over all processes. Works without GPUs too,
    and resumes under PyTorch 2.1 and later.

    Args:
        **kwargs: As for :class:`mmengine._strategy.FSDPStrategy`.
    """

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        self._unsharded = copy.deepcopy(model).to('meta')
        for parameter in model.parameters():
            # PyTorch restores the optimizer's states of any other memory format in the wrong order.
            parameter.data = parameter.data.contiguous()
        if get_device() == 'cpu':
            wrapper = self.model_wrapper or {'type': 'MMFullyShardedDataParallel'}
            self.model_wrapper = {**wrapper, 'device_id': torch.device('cpu')}
            # What is there already is read after it has been freed.
            self.state_dict_config.offload_to_cpu = self.optim_state_dict_config.offload_to_cpu = False
        return super()._wrap_model(model)  # pyright: ignore[reportReturnType]: declared to return None

    def build_optim_wrapper(self, optim_wrapper: dict, model: nn.Module) -> OptimWrapper:
        if class_name(optim_wrapper.get('type')) == 'AmpOptimWrapper':
            optim_wrapper.setdefault('use_fsdp', True)
        built = build_optim_wrapper(self._unsharded, optim_wrapper)
        names = {id(parameter): name for name, parameter in self._unsharded.named_parameters()}
        shards = {
            name.replace('_fsdp_wrapped_module.', ''): shard for name, shard in model.named_parameters()
        }
        for group in built.optimizer.param_groups:
            group['params'] = [shards[names[id(parameter)]] for parameter in group['params']]
        if getattr(built, 'clip_func', None) is nn.utils.clip_grad_norm_:
            built.clip_func = clip_sharded_grad_norm  # pyright: ignore[reportAttributeAccessIssue]: one of two
        return built

    def load_optim_state_dict(self, state_dict: dict) -> None:
        optimizer = self.optim_wrapper.optimizer
        state = FullyShardedDataParallel.optim_state_dict_to_load(self.model, optimizer, state_dict)
        self.optim_wrapper.load_state_dict(state)
