"""Networks of GrootV's layers: the backbone itself where its packages are, else the same layers stacked."""

import torch
from torch import Tensor, nn

from .environment import import_layer

PICO = dict(embed_dims=16, depths=[1, 1, 2, 1])
TINY = dict(embed_dims=80, depths=[2, 2, 9, 2])


class Block(nn.Module):
    """``grootv.models.layers.Block`` without drop path, which needs timm."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.ssm = import_layer('tree_ssm').TreeSSM(channels)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = import_layer('mlp').MLP(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ssm(self.norm1(x))[0]
        return x + self.mlp(self.norm2(x))


class Stack(nn.Module):
    """The backbone's stem, blocks and downsampling; its last map."""

    def __init__(self, embed_dims: int, depths: list[int]):
        super().__init__()
        layers = [import_layer('stem').Stem(3, embed_dims)]
        for index, depth in enumerate(depths):
            channels = embed_dims * 2**index
            layers += [Block(channels) for _ in range(depth)]
            if index < len(depths) - 1:
                layers.append(import_layer('downsample').Downsample(channels))
        self.layers = nn.Sequential(*layers, nn.LayerNorm(channels, eps=1e-6))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image).permute(0, 3, 1, 2)


class Last(nn.Module):
    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        return maps[-1]


class Head(nn.Module):
    """Logits of a map, by the published layers."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.classifier = import_layer('classifier').Classifier(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier.fc(self.classifier.project(x).mean((2, 3)))


def backbone(arch: dict, **options) -> tuple[nn.Module, str]:
    """A backbone that returns its last map, and what it is made of. Options need the backbone itself."""
    import_layer('tree_ssm')
    try:
        from grootv.models.backbones.grootv import GrootV
    except ImportError as error:
        if options:
            raise
        return Stack(**arch), f'layers only: {error}'
    return nn.Sequential(GrootV(arch=arch, **options), Last()), 'grootv.models.GrootV'


def classifier(arch: dict, classes: int, **options) -> tuple[nn.Module, str]:
    """A backbone with the published head, and what it is made of."""
    body, made_of = backbone(arch, **options)
    return nn.Sequential(body, Head(arch['embed_dims'] * 8, classes)), made_of


def seeded(seed: int, make):
    """What ``make`` builds, from random numbers of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()
