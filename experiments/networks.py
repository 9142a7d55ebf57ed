"""The networks that are measured, by name: GrootV, those of timm, models of configs, exported ones."""

import difflib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import timm
import torch
from torch import Tensor, nn

if importlib.util.find_spec('mmengine') is None:  # stand-ins for the base class and the registry of GrootV

    class BaseModule(nn.Module):
        def __init__(self, init_cfg=None):
            super().__init__()

    engine, registry = ModuleType('mmengine.model'), ModuleType('grootv.registry')
    engine.BaseModule = BaseModule
    registry.MODELS = SimpleNamespace(register_module=lambda: lambda kind: kind)
    sys.modules |= {module.__name__: module for module in (ModuleType('mmengine'), engine, registry)}

from grootv.models.backbones.grootv import ARCHS as PUBLISHED
from grootv.models.backbones.grootv import Classifier, GrootV

# The fewer the channels, the more of the time the trees take: 'narrow' is for that.
ARCHS = {
    'pico': dict(embed_dims=16, depths=[1, 1, 2, 1]),
    'narrow': dict(embed_dims=16, depths=[2, 2, 9, 2]),
    **PUBLISHED,
}
DEPLOYED = {'export': 'torch.export', 'aoti': 'AOTInductor', 'onnx': 'ONNX Runtime'}


@dataclass(frozen=True)
class Way:
    """A network and one way of running it.

    Attributes:
        source: A key of ``ARCHS`` with 'grootv_' before it, timm's name or the path of a config.
        tree_per: GrootV's option; None leaves it as it is.
        dtype: 'float32', or 'bfloat16' by autocast.
        how: 'eager', 'torch.compile' or a value of ``DEPLOYED``.
        size: Height and width of the images.
        channels_last: Keep images and weights in that memory format.
    """

    source: str
    tree_per: str | None = None
    dtype: str = 'float32'
    how: str = 'eager'
    size: int = 224
    channels_last: bool = False

    @property
    def name(self) -> str:
        return Path(self.source).stem if self.source.endswith('.py') else self.source

    def others(self, peer: str | None) -> dict[str, 'Way']:
        """What it is compared with, by the word for it."""
        found = dict(block=replace(self, tree_per='block')) if self.tree_per else {}
        found |= dict(float32=replace(self, dtype='float32'), eager=replace(self, how='eager'))
        if peer is not None:
            found[peer] = replace(self, source=peer, tree_per=None)
        return {word: way for word, way in found.items() if way != self}


class Network(nn.Module):
    """GrootV and its classifier, without MMEngine's data structures."""

    def __init__(self, arch: dict, classes: int = 1000, **options):
        super().__init__()
        self.backbone = GrootV(arch, **options)
        self.head = Classifier(8 * arch['embed_dims'], classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head.fc(self.head.project(self.backbone(image)[-1]).mean((2, 3)))


def build(way: Way, device: str) -> nn.Module:
    """The network with random weights and without drop path, on its device."""
    torch.manual_seed(0)
    if way.source.endswith('.py'):
        model = from_config(way)
    elif way.source.removeprefix('grootv_') in ARCHS:
        model = Network(ARCHS[way.source.removeprefix('grootv_')], tree_per=way.tree_per or 'block')
    else:
        model = from_timm(way)
    return model.to(device, memory_format=memory_format(way))


def memory_format(way: Way) -> torch.memory_format:
    return torch.channels_last if way.channels_last else torch.contiguous_format


def from_timm(way: Way) -> nn.Module:
    """A classifier of timm for images of any size that it takes."""
    if not timm.is_model(way.source):
        similar = difflib.get_close_matches(way.source, timm.list_models(), n=1)
        hint = f', did you mean {similar[0]}?' if similar else ''
        sys.exit(f'--peers {way.source}: timm has no such model{hint}')
    usual = timm.get_pretrained_cfg_value(way.source, 'input_size')
    sized = {} if usual is None or usual[-1] == way.size else dict(img_size=way.size)
    try:
        model = timm.create_model(way.source, drop_path_rate=0.0, **sized)
    except TypeError:  # a network that takes every size has no such option
        model = timm.create_model(way.source, drop_path_rate=0.0)
    try:
        model.eval()(torch.zeros(1, 3, way.size, way.size))
    except (AssertionError, RuntimeError, ValueError) as error:
        sys.exit(f'--peers {way.source}: it takes no images of {way.size} px ({error})')
    return model


class Dense(nn.Module):
    """A detector as far as it does not depend on what it finds: features and its dense head."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.backbone, self.neck = detector.backbone, detector.neck
        self.head = detector.rpn_head if detector.with_rpn else detector.bbox_head

    def forward(self, image: Tensor) -> tuple:
        return self.head(self.neck(self.backbone(image)))


def from_config(way: Way) -> nn.Module:
    """The model of a config: a classifier or segmenter as a whole, a detector without its regions."""
    from grootv import cli
    from grootv.checkpoint import build_model
    from grootv.errors import UserError

    try:
        cfg = cli.load_config(way.source)
    except UserError as error:
        sys.exit(str(error))
    if cfg.get('model', {}).get('backbone', {}).get('type') != 'grootv.GrootV':
        sys.exit(f'{way.source} has no model with the backbone grootv.GrootV')
    cfg.model.backbone |= dict(drop_path_rate=0.0) | (dict(tree_per=way.tree_per) if way.tree_per else {})
    model = build_model(cfg)
    return Dense(model) if hasattr(model, 'with_rpn') else model


class Deployed(nn.Module):
    """A network whose calls another one answers."""

    def __init__(self, network: nn.Module, call: Callable[[Tensor], Tensor]):
        super().__init__()
        self.network, self.call = network, call

    def forward(self, images: Tensor) -> Tensor:
        return self.call(images)


def deployed(kind: str, network: nn.Module, size: int, folder: Path) -> nn.Module:
    """A classifier exported and loaded again: any batch, height and width."""
    from grootv import export, ops

    network, path = network.eval(), folder / ('model.onnx' if kind == 'onnx' else 'model.pt2')
    if kind == 'export':
        torch.export.save(export.export_program(network, size, size), path)
        return Deployed(network, torch.export.load(path).module().forward)
    if kind == 'aoti':
        export.compile_package(export.export_program(network, size, size), path)
        return Deployed(network, torch._inductor.aoti_load_package(str(path)))
    import onnxruntime

    with torch.no_grad():
        export.export_onnx(network, torch.randn(2, 3, size, size), {}, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Waiting threads would otherwise keep the cores busy while the next network takes its turn.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    options.register_custom_ops_library(ops.onnxruntime_library())
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return Deployed(network, lambda images: torch.from_numpy(session.run(None, {'image': images.numpy()})[0]))
