"""Initial values that differ from PyTorch's defaults."""

import math

import torch
from torch import Tensor, nn


def linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """A linear layer with weights from a truncated normal of deviation 0.02 and zero biases."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def step_projection(rank: int, width: int, shortest: float = 1e-3, longest: float = 1e-1) -> nn.Linear:
    """The linear layer rank -> width whose softplus is the step size delta of a state-space model.

    As in Mamba (Gu and Dao, 2023): the weight keeps the variance of its input, and the bias makes
    the first steps log-uniform between ``shortest`` and ``longest``.
    """
    layer = nn.Linear(rank, width)
    nn.init.uniform_(layer.weight, -(rank**-0.5), rank**-0.5)
    span = math.log(longest) - math.log(shortest)
    step = torch.exp(torch.rand(width) * span + math.log(shortest)).clamp(min=1e-4)
    with torch.no_grad():
        layer.bias.copy_(inverse_softplus(step))
    return layer


def inverse_softplus(x: Tensor) -> Tensor:
    """The y with softplus(y) = x, for x > 0; exact for small x."""
    return x + torch.log(-torch.expm1(-x))
