"""torch.compile of the networks: one graph, for every size, with eager's outputs and gradients."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from grootv.models import GrootV
from grootv.models.backbones.grootv import Classifier
from grootv.ops.convolution import convolve, opaque

PICO = dict(embed_dims=8, depths=[1, 1, 1, 1])
# The last map of each has both sides greater than 1: PyTorch specialises on sides of 1.
SIZES = [(2, 64, 96), (3, 56, 56), (2, 33, 50)]


class Network(nn.Module):
    """A backbone and its classifier."""

    def __init__(self):
        super().__init__()
        self.backbone = GrootV(PICO)
        self.head = Classifier(64, num_classes=10)

    def forward(self, image):
        return self.head.fc(self.head.project(self.backbone(image)[-1]).mean((2, 3)))


def images(batch, height, width):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


@pytest.fixture(autouse=True)
def forget_graphs():
    torch._dynamo.reset()
    counters.clear()


def graphs():
    return counters['stats']['unique_graphs']


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(('kernel', 'stride', 'groups'), [(3, 2, 1), (3, 1, 4), (1, 1, 1)])
def test_the_opaque_convolution_is_a_convolution(kernel, stride, groups, bias):
    x = torch.randn(2, 5, 8, 4, requires_grad=True)
    conv = nn.Conv2d(4, 8, kernel, stride, kernel // 2, groups=groups, bias=bias)
    arguments = (conv.weight, conv.bias)
    found = convolve(x, *arguments, stride, groups)
    expected = conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert found.is_contiguous() and torch.equal(found, expected)
    leaves = [x, *conv.parameters()]
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)
    torch.library.opcheck(convolve, (x, *arguments, stride, groups))


@pytest.mark.parametrize(
    ('kernel', 'options'),
    [
        ((3, 1), dict(padding=(1, 0))),
        ((5, 3), dict(padding=(2, 1))),
        ((2, 2), dict(padding=(1, 1))),
        ((3, 3), dict(padding=(0, 0))),
        ((3, 3), dict(padding=(1, 1), stride=(2, 1))),
        ((3, 3), dict(padding=(1, 1), dilation=(2, 2))),
    ],
)
def test_other_convolutions_stay_what_they_are(kernel, options):
    assert opaque(torch.randn(2, 4, 6, 8), torch.randn(8, 4, *kernel), **options) is NotImplemented


def test_inductor_compiles_once_for_batch_height_and_width():
    model = Network().eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for size in SIZES:
            # Inductor sums the norms in another order.
            torch.testing.assert_close(compiled(images(*size)), model(images(*size)), rtol=1e-4, atol=1e-5)
    assert graphs() == 1


@pytest.mark.parametrize(
    ('backend', 'options'),
    [('aot_eager', dict(with_cp=True)), ('inductor', dict(out_indices=(0,)))],
)
def test_gradients_of_the_compiled_network(backend, options):
    model = GrootV(PICO, **options).train()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x = images(2, 40, 48)
    weights = list(model.parameters())
    expected, found = (
        torch.autograd.grad(network(x)[0].square().mean(), weights, materialize_grads=True)
        for network in (model, compiled)
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    assert graphs() == 1


def test_autocast_reaches_the_compiled_convolutions():
    model, x = GrootV(PICO, tree_per='stage', out_indices=(0, 1, 2, 3)).eval(), images(2, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        for found, expected in zip(compiled(x), model(x), strict=True):
            assert found.dtype is expected.dtype and torch.equal(found, expected) and found.is_contiguous()
