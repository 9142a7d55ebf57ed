"""The backbone of GrootV, alone and with its classifier."""

import torch
from torch import Tensor, nn

from .environment import import_network

PICO = dict(embed_dims=16, depths=[1, 1, 2, 1])
TINY = dict(embed_dims=80, depths=[2, 2, 9, 2])


class Last(nn.Module):
    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        return maps[-1]


class Head(nn.Module):
    """Logits of a map, by the published layers."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.classifier = import_network().Classifier(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier.fc(self.classifier.project(x).mean((2, 3)))


def backbone(arch: dict, **options) -> tuple[nn.Module, str]:
    """A backbone that returns its last map, and what it is made of."""
    return nn.Sequential(import_network().GrootV(arch=arch, **options), Last()), 'grootv.models.GrootV'


def classifier(arch: dict, classes: int, **options) -> tuple[nn.Module, str]:
    """A backbone with the published head, and what it is made of."""
    body, made_of = backbone(arch, **options)
    return nn.Sequential(body, Head(arch['embed_dims'] * 8, classes)), made_of


def seeded(seed: int, make):
    """What ``make`` builds, from random numbers of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()
