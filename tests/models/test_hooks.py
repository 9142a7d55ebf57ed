"""Layers that somebody hooks, wraps or quantises compute and learn as any module does."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from grootv.models import GrootV
from grootv.models.layers import TreeSSM
from grootv.modules import is_plain

PICO = dict(embed_dims=8, depths=[1, 1, 1, 1])
PROJECTIONS = ('in_proj', 'x_proj', 'dt_proj', 'out_proj')
LAYERS = (*PROJECTIONS, 'conv', 'state_norm', 'out_norm')


class Adapted(nn.Module):
    """A layer with an adapter of low rank next to it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        out_features, in_features = layer.weight.shape
        self.down, self.up = nn.Linear(in_features, 2, bias=False), nn.Linear(2, out_features, bias=False)
        self.to(layer.weight.dtype)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def images(dtype=torch.float32):
    return torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0)).to(dtype)


def network(**options):
    torch.manual_seed(0)
    return GrootV(PICO, **options)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('options', [{}, dict(with_cp=True, tree_per='stage', post_norm=True)])
def test_hooks_of_every_module_are_called(training, options):
    model = network(**options).train(training)
    names = [name for name, module in model.named_modules() if not isinstance(module, nn.ModuleList)]
    forward, backward = set(), set()
    expected = model(images())[0]
    for name in names:
        module = model.get_submodule(name)
        module.register_forward_hook(lambda *_, name=name: forward.add(name))
        if isinstance(module, (nn.Linear, nn.LayerNorm, nn.Conv2d)):
            module.register_full_backward_hook(lambda *_, name=name: backward.add(name))
    found = model(images())[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert forward == set(names)
    found.sum().backward()
    assert all(f'stages.3.blocks.0.ssm.{layer}' in backward for layer in LAYERS)


def test_hooks_of_all_modules_are_called():
    model, called = network().eval(), set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: called.add(module))
    try:
        model(images())
    finally:
        handle.remove()
    assert {module for module in model.modules() if not isinstance(module, nn.ModuleList)} <= called


@pytest.mark.parametrize('name', PROJECTIONS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_adapters_compute_and_learn(name, dtype):
    torch.manual_seed(0)
    ssm, x = TreeSSM(8).to(dtype), torch.randn(2, 5, 6, 8, dtype=dtype)
    layer = getattr(ssm, name)
    adapted = Adapted(layer)
    setattr(ssm, name, adapted)
    found, tree = ssm(x)
    found.float().square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in (adapted.up.weight, adapted.down.weight))
    with torch.no_grad():
        layer.weight += adapted.up.weight @ adapted.down.weight
    setattr(ssm, name, layer)
    limit = dict(rtol=1e-4, atol=1e-5) if dtype is torch.float32 else dict(rtol=0.1, atol=0.02)
    torch.testing.assert_close(found, ssm(x, tree)[0], **limit)
    torch.testing.assert_close(adapted.layer.weight.grad.isfinite().all(), torch.tensor(True))


def test_parametrized_layers_are_called():
    torch.manual_seed(0)
    ssm, x = TreeSSM(8), torch.randn(1, 5, 6, 8)
    expected, tree = ssm(x)
    for name in PROJECTIONS:
        parametrizations.weight_norm(getattr(ssm, name))
    torch.testing.assert_close(ssm(x, tree)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('norm', [nn.LayerNorm(16, eps=0.1), nn.LayerNorm(16, bias=False), nn.Identity()])
def test_another_norm_is_called(norm):
    torch.manual_seed(0)
    ssm, x = TreeSSM(8), torch.randn(1, 5, 6, 8)
    h, vertices, z = torch.randn(3, 1, 30, 16)
    C = torch.randn(1, 30, 1)
    ssm.state_norm = norm
    expected = ssm.out_norm(C * norm(h) + ssm.D * vertices) * nn.functional.silu(z)
    torch.testing.assert_close(ssm.project_out(h, C, vertices, z), ssm.out_proj(expected))
    ssm(x)


def test_dynamic_quantisation_runs():
    model = network().eval()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    found, expected = quantized(images())[0], model(images())[0]
    assert found.shape == expected.shape and found.isfinite().all()
    assert (found - expected).norm() < 0.3 * expected.norm()


def test_an_unmodified_layer_is_plain():
    ssm = TreeSSM(8)
    for name, kind in zip(LAYERS, [nn.Linear] * 4 + [nn.Conv2d] + [nn.LayerNorm] * 2, strict=True):
        layer = getattr(ssm, name)
        assert is_plain(layer, kind)
        handle = layer.register_forward_pre_hook(lambda *_: None)
        assert not is_plain(layer, kind)
        handle.remove()
        layer.forward = lambda x: x
        assert not is_plain(layer, kind)
