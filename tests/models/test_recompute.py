from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grootv.models.backbones.grootv import MLP
from grootv.models.layers.tree_ssm import TreeSSM, recompute


class Executed(TorchDispatchMode):
    """Counts operators that run, below autograd."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def kept_elements(function, *tensors):
    """Elements of the tensors that autograd keeps of a call, each once, and not the given ones."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: (kept.__setitem__(x.untyped_storage().data_ptr(), x.numel()), x)[1], lambda x: x
    ):
        result = function(*tensors)
    given = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    return sum(size for pointer, size in kept.items() if pointer not in given), result


def test_keeps_what_it_is_given_and_repeats_no_expensive_last_step():
    linear, x = torch.nn.Linear(50, 3, bias=False), torch.randn(7, 50, requires_grad=True)
    size, y = kept_elements(lambda x: recompute(lambda x: linear(x.sin().cos()), x), x)
    assert size == 0
    with Executed() as executed:
        y.sum().backward()
    assert executed.counts['sin'] == 2  # once more, and as the derivative of cos
    assert executed.counts['mm'] == 2  # the two gradients of the linear layer
    torch.testing.assert_close(linear.weight.grad, x.sin().cos().sum(0).expand(3, -1))


@pytest.mark.parametrize('layer', [MLP(8), TreeSSM(8)])
def test_layers_keep_less_and_have_the_same_gradients(layer, monkeypatch):
    x = torch.randn(2, 5, 4, 8, requires_grad=True)
    sizes, results = [], []
    for _ in range(2):
        size, y = kept_elements(layer, x)
        y = y if isinstance(y, torch.Tensor) else y[0]
        sizes.append(size)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
        monkeypatch.setattr(f'{type(layer).__module__}.recompute', lambda function, *given: function(*given))
    assert sizes[0] < sizes[1]
    assert all(map(torch.equal, *results))
