"""The networks that are measured, and what is done with each."""

import difflib
import importlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from gpu_checks.networks import PICO, classifier, seeded
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from grootv import cli
from grootv.errors import UserError
from grootv.models.backbones.grootv import ARCHS as PUBLISHED

from .clock import Call

# The fewer the channels, the more of the time the trees take: 'narrow' is for that.
ARCHS = {'pico': PICO, 'narrow': dict(embed_dims=16, depths=[2, 2, 9, 2]), **PUBLISHED}
CLASSES = 1000
DTYPES = ('float32', 'bfloat16')
MODES = ('forward', 'backward', 'step')


@dataclass(frozen=True)
class Network:
    """A network by name, for this process or another one.

    Attributes:
        kind: 'arch', 'config' or 'timm'.
        source: A key of ``ARCHS``, the path of a config or timm's name.
        tree_per: GrootV's option; None leaves it as it is.
    """

    kind: str
    source: str
    tree_per: str | None = None

    @property
    def name(self) -> str:
        return {'arch': f'grootv_{self.source}', 'config': Path(self.source).stem}.get(self.kind, self.source)


@dataclass(frozen=True)
class Setting:
    """What all networks have in common.

    Attributes:
        device: 'cpu' or 'cuda'.
        size: Height and width of the images.
        channels_last: Keep images and convolutions' weights in that memory format.
    """

    device: str
    size: int
    channels_last: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


def build(network: Network, setting: Setting) -> nn.Module:
    """The network with random weights and without drop path, on its device."""
    make = {'arch': from_arch, 'config': from_config, 'timm': from_timm}[network.kind]
    model = seeded(0, lambda: make(network, setting))
    return model.to(setting.device, memory_format=setting.memory_format)


def from_arch(network: Network, _: Setting) -> nn.Module:
    options = {} if network.tree_per is None else dict(tree_per=network.tree_per)
    return classifier(ARCHS[network.source], CLASSES, **options)[0]


def from_timm(network: Network, setting: Setting) -> nn.Module:
    """A classifier of timm for images of any size that it takes."""
    if not timm.is_model(network.source):
        similar = difflib.get_close_matches(network.source, timm.list_models(), n=1)
        hint = f', did you mean {similar[0]}?' if similar else ''
        raise UserError(f'--peers {network.source}: timm has no such model{hint}')
    options = dict(num_classes=CLASSES, drop_path_rate=0.0)
    usual = timm.get_pretrained_cfg_value(network.source, 'input_size')
    if usual is None or usual[-1] == setting.size:
        return timm.create_model(network.source, **options)
    try:
        return timm.create_model(network.source, img_size=setting.size, **options)
    except TypeError:  # a network that takes every size has no such option
        return timm.create_model(network.source, **options)


class Dense(nn.Module):
    """A detector as far as it does not depend on what it finds: features and its dense head."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.backbone = detector.backbone
        self.neck = detector.neck
        self.head = detector.rpn_head if detector.with_rpn else detector.bbox_head

    def forward(self, image: Tensor) -> tuple:
        return self.head(self.neck(self.backbone(image)))


KINDS = {'ImageClassifier': None, 'EncoderDecoder': None, 'MaskRCNN': Dense, 'CascadeRCNN': Dense}
KINDS['RetinaNet'] = Dense


def from_config(network: Network, _: Setting) -> nn.Module:
    """The model of a config: a classifier or segmenter as a whole, a detector without its regions."""
    settings = read_model(network).model
    name = str(settings.get('type', 'nothing')).split('.')[-1]
    if name not in KINDS:
        raise UserError(f'{network.source} builds {name}: this tool measures {", ".join(KINDS)}')
    backbone = settings.backbone
    if network.tree_per is not None:
        if backbone.type != 'grootv.GrootV':
            raise UserError(
                f'--tree-per: the backbone of {network.source} is {backbone.type}, not grootv.GrootV'
            )
        backbone.tree_per = network.tree_per
    if 'drop_path_rate' in backbone:
        backbone.drop_path_rate = 0.0
    model = MODELS.build(settings)
    return model if KINDS[name] is None else KINDS[name](model)


def read_model(network: Network) -> Config:
    """The config of a network, its scope made the default one."""
    cfg = cli.load_config(network.source)
    if 'model' not in cfg:
        raise UserError(f'{network.source} has no model')
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    return cfg


def import_packages(network: Network) -> None:
    """Import now what building the network would import."""
    importlib.import_module('grootv.models')
    if network.kind == 'config':
        importlib.import_module(read_model(network).get('default_scope', 'mmpretrain') + '.models')


class Runs:
    """What can be timed of a model: calls on two sets of random images.

    Args:
        model: Called with images.
        setting: Where the images are.
        batch: Images of a set.
        dtype: 'float32', or 'bfloat16' by autocast.
    """

    sets = 2

    def __init__(self, model: nn.Module, setting: Setting, batch: int, dtype: str):
        random = torch.Generator().manual_seed(0)
        shape = (batch, 3, setting.size, setting.size)
        images = [torch.randn(shape, generator=random) for _ in range(self.sets)]
        self.images = [image.to(setting.device, memory_format=setting.memory_format) for image in images]
        self.labels = torch.randint(2**31, (batch,), generator=random).to(setting.device)
        self.model, self.device, self.dtype = model, setting.device, dtype
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.result = self.error = None

    def call(self, mode: str) -> tuple[Call, Call | None]:
        """The call of a mode, and what has to be done right before it, untimed."""
        self.model.train(mode != 'forward')
        return {
            'forward': (self.forward, None),
            'backward': (self.backward, self.loss),
            'step': (self.step, None),
        }[mode]

    def forward(self, index: int) -> None:
        """Inference."""
        with torch.inference_mode(), self.autocast():
            self.result = self.model(self.images[index])

    def loss(self, index: int) -> None:
        """Forward pass of training: cross-entropy, or the mean squares of maps."""
        self.optimizer.zero_grad()
        with self.autocast():
            result = self.model(self.images[index])
            if isinstance(result, Tensor) and result.dim() == 2:
                self.error = F.cross_entropy(result, self.labels % result.shape[1])
            else:
                self.error = sum(leaf.square().mean() for leaf in tree_leaves(result))

    def backward(self, _: int) -> None:
        self.error.backward()

    def step(self, index: int) -> None:
        """Forward, backward and AdamW."""
        self.loss(index)
        self.backward(index)
        self.optimizer.step()

    def autocast(self):
        half = self.dtype == 'bfloat16'
        return torch.autocast(self.device, torch.bfloat16) if half else nullcontext()

    def finite(self) -> bool:
        """Whether the last call left neither NaN nor infinity."""
        found = [*tree_leaves(self.result), self.error]
        found += [parameter.grad for parameter in self.model.parameters()]
        return all(bool(x.isfinite().all()) for x in found if isinstance(x, Tensor))

    def release(self) -> None:
        """Forget what the calls left behind."""
        self.result = self.error = None
        self.optimizer.zero_grad()
