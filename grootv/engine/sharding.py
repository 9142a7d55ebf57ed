"""Training with parameters, gradients and optimizer states that are spread over the processes (FSDP)."""

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from mmengine._strategy import DDPStrategy, SingleDeviceStrategy
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from grootv.errors import UserError
from grootv.models.backbones.grootv import Block
from grootv.registry import STRATEGIES


def whole(value: Any) -> Any:
    """A state with every shard replaced by the whole tensor, on the CPU; all processes must call it alike."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, Mapping):
        return {key: whole(item) for key, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value


def sharded_as(value: Any, own: Any) -> Any:
    """This process's shard of a whole tensor, where the own one is sharded and has the same shape."""
    if not isinstance(own, DTensor) or not isinstance(value, Tensor) or value.shape != own.shape:
        return value
    device = value.to(own.device)
    return distribute_tensor(device, own.device_mesh, own.placements, src_data_rank=None)


def clip_sharded_grad_norm(parameters: Iterable[Tensor], **settings: Any) -> Tensor:
    """:func:`torch.nn.utils.clip_grad_norm_`, whose norm is that of all processes."""
    norm = nn.utils.clip_grad_norm_(parameters, **settings)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def replica(model: nn.Module, plain: nn.Module) -> nn.Module:
    """A copy of a sharded network with shards of its own.

    Args:
        model: The network.
        plain: The network before it was sharded, on any device.
    """
    copied = copy.deepcopy(plain)
    for module, source in zip(copied.modules(), model.modules(), strict=True):
        for name, parameter in source._parameters.items():
            if parameter is not None:
                own = parameter.detach().clone()
                module._parameters[name] = nn.Parameter(own, requires_grad=parameter.requires_grad)
        for name, buffer in source._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.clone()
    return copied


@STRATEGIES.register_module()
class FSDPStrategy(DDPStrategy):
    """Shard each block of GrootV, and the rest of the network as one more unit, by PyTorch's ``fully_shard``.

    Parameters keep their names and shapes, so the optimizer is that of the unsharded network, and so are
    the checkpoints, averaged weights (EMAHook) included. Works without GPUs too.

    Args:
        model_wrapper: Not taken: nothing wraps the network.
        **kwargs: As for :class:`mmengine._strategy.DDPStrategy`.
    """

    def __init__(self, *, model_wrapper: None = None, **kwargs: Any):
        if model_wrapper is not None:
            raise UserError(
                'strategy.model_wrapper has no effect on grootv.FSDPStrategy, which shards by fully_shard: '
                'leave it out'
            )
        super().__init__(**kwargs)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if not torch.distributed.is_initialized():
            raise UserError(
                'grootv.FSDPStrategy needs a launcher, even for a single process: start with '
                'tools/dist_train.sh or tools/dist_test.sh'
            )
        model = self.convert_model(model.to(get_device()))
        plain = copy.deepcopy(model).to('meta')
        mesh = init_device_mesh(get_device(), (get_world_size(),))
        for module in model.modules():
            if isinstance(module, Block):
                fully_shard(module, mesh=mesh)
        # Otherwise the root's weights stay whole after a validation, when EMAHook exchanges the shards.
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
        sharded: Any = model
        sharded.__deepcopy__ = lambda memo: replica(model, plain)  # fully_shard's own refuses
        return sharded

    def build_optim_wrapper(self, optim_wrapper: Any, model: nn.Module | None = None) -> Any:
        built: Any = super().build_optim_wrapper(optim_wrapper, model)
        if isinstance(built, OptimWrapper) and getattr(built, 'clip_func', None) is nn.utils.clip_grad_norm_:
            built.clip_func = clip_sharded_grad_norm  # pyright: ignore[reportAttributeAccessIssue]: one of two
        return built

    def model_state_dict(self) -> dict:
        return whole(self.model.state_dict())

    def optim_state_dict(self) -> dict:
        return whole(self.optim_wrapper.state_dict())

    def save_checkpoint(self, filename: str, *, callback: Callable | None = None, **kwargs: Any) -> None:
        """Gather the states in all processes, and write them in the first."""

        def gather(checkpoint: dict) -> None:
            if callback is not None:
                callback(checkpoint)  # EMAHook exchanges the weights and the averaged ones
            for key in ('state_dict', 'ema_state_dict'):
                if key in checkpoint:
                    checkpoint[key] = whole(checkpoint[key])
            if not is_main_process():
                raise _NothingToWrite

        with suppress(_NothingToWrite):
            SingleDeviceStrategy.save_checkpoint(self, filename, callback=gather, **kwargs)

    def load_checkpoint(self, filename: str, *, callback: Callable | None = None, **kwargs: Any) -> dict:
        """Read the file in every process, which keeps its shards."""
        own = self.model.state_dict()

        def scatter(checkpoint: dict) -> None:
            for key in ('state_dict', 'ema_state_dict'):
                state = checkpoint.get(key)
                if isinstance(state, Mapping):
                    checkpoint[key] = {
                        name: sharded_as(value, own.get(name.removeprefix('module.')))
                        for name, value in state.items()
                    }
            if callback is not None:
                callback(checkpoint)

        return super().load_checkpoint(filename, callback=scatter, **kwargs)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        parameters = [each for group in self.optim_wrapper.param_groups for each in group['params']]
        states = state_dict['state']
        for number, parameter in enumerate(parameters):
            if number in states:
                states[number] = {key: sharded_as(v, parameter) for key, v in states[number].items()}
        self.optim_wrapper.load_state_dict(state_dict)


class _NothingToWrite(Exception):
    """Ends the saving of a checkpoint in all processes but the first."""
