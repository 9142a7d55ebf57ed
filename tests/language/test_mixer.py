import copy

import numpy as np
import peft
import pytest
import torch
from torch.func import functional_call
from transformers import MambaConfig

from grootv import ops
from grootv.language import TreeMambaMixer, use_tree_scan
from grootv.ops import reference

from .tiny import mamba, pad_left, tokens

MIXER = 'grootv.language.mixer'


@pytest.fixture
def grown(monkeypatch):
    """Arguments and result of every call of token_tree, in order."""
    calls = []

    def record(*arguments):
        calls.append((arguments, ops.token_tree(*arguments)))
        return calls[-1][1]

    monkeypatch.setattr(f'{MIXER}.token_tree', record)
    return calls


def mixer(hidden=6, state=3, dtype=torch.float64, **tree) -> TreeMambaMixer:
    mixer = TreeMambaMixer(MambaConfig(hidden_size=hidden, state_size=state, use_bias=True), 0).to(dtype)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    for name, value in tree.items():
        setattr(mixer, name, value)
    return mixer.eval()


def context(size: int, length: int, padding: int = 0) -> torch.Tensor:
    """The mask of a sequence: 0 at the padding before it, then 1 in the context, 2 after it."""
    return torch.tensor([[0] * padding + [1] * size + [2] * (length - padding - size)])


class Definition:
    """The tree and the scans of one sequence in numpy, everything in full, positions from the end."""

    def __init__(self, mixer: TreeMambaMixer, hidden: torch.Tensor):
        weight = {name: value.detach().double().numpy() for name, value in mixer.named_parameters()}
        length, rank = len(hidden), mixer.time_step_rank
        inner = hidden.double().numpy() @ weight['in_proj.weight'].T + weight['in_proj.bias']
        x, z = np.split(inner, 2, axis=1)
        kernel = weight['conv1d.weight'][:, 0]
        padded = np.concatenate([np.zeros((kernel.shape[1] - 1, x.shape[1])), x])
        windows = [(padded[t : t + kernel.shape[1]].T * kernel).sum(1) for t in range(length)]
        x = silu(np.stack(windows) + weight['conv1d.bias'])
        low_rank, B, C = np.split(x @ weight['x_proj.weight'].T, [rank, rank + mixer.ssm_state_size], axis=1)
        delta = np.log1p(np.exp(low_rank @ weight['dt_proj.weight'].T + weight['dt_proj.bias']))
        decay = np.exp(delta[:, :, None] * -np.exp(weight['A_log']))
        signal = delta[:, :, None] * B[:, None, :] * x[:, :, None]
        self.length, self.decay, self.signal = length, decay[::-1], signal[::-1]
        self.x, self.C, self.z, self.weight = x, C, z, weight

    def distance(self, i: int, j: int) -> float:
        a, b = self.signal[i].ravel(), self.signal[j].ravel()
        return np.exp(-(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b)))

    def published(self, size: int, reach: int) -> list[int]:
        """Parent of every position, by Kruskal's algorithm; the context is the ``size`` last positions."""
        edges = [
            (self.distance(i, i + k), i, i + k)
            for i in range(self.length)
            for k in range(1, reach + 1)
            if i + k < self.length and (k == 1 or i >= self.length - size)
        ]
        group = list(range(self.length))
        neighbours = [[] for _ in group]
        for _, i, j in sorted(edges):
            if group[i] != group[j]:
                group = [group[i] if g == group[j] else g for g in group]
                neighbours[i].append(j)
                neighbours[j].append(i)
        parent, todo = {0: 0}, [0]
        for i in todo:
            for j in neighbours[i]:
                if j not in parent:
                    parent[j] = i
                    todo.append(j)
        return [parent[i] for i in range(self.length)]

    def causal(self, size: int, reach: int) -> list[int]:
        """A position hangs from the first later one that chooses it of the ``reach`` before, or the last."""
        last = self.length - size  # of the context
        parent = [0] + [max(i - reach, last) for i in range(1, self.length)]
        for j in range(self.length - 1):
            earlier = [i for i in range(j + 1, j + 1 + reach) if i == j + 1 or last <= j < i < self.length]
            chosen = min(earlier, key=lambda i: self.distance(i, j))
            parent[chosen] = j  # the first later one has the greatest position, and comes last
        return parent

    def scan(self, parent: list[int]) -> np.ndarray:
        def state(i: int) -> np.ndarray:
            children = [j for j in range(self.length) if parent[j] == i and j != i]
            # A position's decay is that of the token that follows it, whatever its parent.
            return self.signal[i] + sum(self.decay[j - 1] * state(j) for j in children)

        return np.stack([state(i) for i in range(self.length)])[::-1]

    def output(self, parent: list[int], scale: float) -> np.ndarray:
        chain = [max(i - 1, 0) for i in range(self.length)]
        state = self.scan(chain) + scale * self.scan(parent)
        y = (state * self.C[:, None, :]).sum(2) + self.weight['D'] * self.x
        return (y * silu(self.z)) @ self.weight['out_proj.weight'].T + self.weight['out_proj.bias']


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('reach', [1, 3, 4])
def test_trees_and_outputs_are_those_of_the_definition(grown, causal, reach):
    length = 12
    layer = mixer(reach=reach, causal=causal)
    hidden = torch.randn(length, 6, dtype=torch.float64)
    definition = Definition(layer, hidden)
    trees, backward = set(), False
    for size in range(length + 1):
        output = layer(hidden.unsqueeze(0), attention_mask=context(size, length))[0]
        parent = definition.causal(size, reach) if causal else definition.published(size, reach)
        found = grown[-1][1].parent[0].tolist()
        assert found == [length - 1 - i for i in parent[::-1]], size
        assert torch.equal(layer(hidden.unsqueeze(0), attention_mask=torch.tensor([size]))[0], output)
        np.testing.assert_allclose(output.detach().numpy(), definition.output(parent, 0.3), rtol=1e-10)
        trees.add(tuple(found))
        assert size > 2 or found == [*range(1, length), length - 1]  # the chain
        backward |= any(above < token for token, above in enumerate(found))
    # The context matters, except in a tree of neighbours; in the published one, tokens receive later ones.
    assert len(trees) > 3 if reach > 1 else len(trees) == 1
    assert backward == (reach > 1 and not causal)


@pytest.mark.parametrize('operators', ['compiled', 'reference'])
@pytest.mark.parametrize('bias', [False, True])
def test_scale_0_is_mamba_and_bit_for_bit_in_the_order_of_the_reference(monkeypatch, grown, operators, bias):
    exactly = operators == 'reference'
    for name in ('token_chain', 'token_scan') if exactly else ():
        monkeypatch.setattr(f'{MIXER}.{name}', getattr(reference, name))
    tolerance = dict(atol=0, rtol=0) if exactly else dict(atol=2e-5, rtol=1e-4)
    plain = mamba(use_bias=bias, use_conv_bias=bias)
    tree = use_tree_scan(copy.deepcopy(plain), scale=0)
    ids, mask = pad_left([tokens(5), tokens(17), tokens(1)])
    found, expected = (model(ids, attention_mask=mask, use_cache=True) for model in (tree, plain))
    for _ in range(3):  # the prompt, then tokens after it
        torch.testing.assert_close(found.logits, expected.logits, **tolerance)
        caches = found.cache_params, expected.cache_params
        for state in ('conv_states', 'ssm_states'):
            states = (list(getattr(cache, state)) for cache in caches)
            torch.testing.assert_close(*states, **tolerance)
        step = tokens(3, 1)
        found, expected = (
            model(step, cache_params=cache, cache_position=torch.tensor([4]), use_cache=True)
            for model, cache in zip((tree, plain), caches, strict=True)
        )
    assert not grown


def test_gradients():
    layers = torch.nn.ModuleList(mixer(hidden=4, state=2) for _ in range(2))
    hidden = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.cat([context(6, 6), context(4, 6, padding=1)])
    names, parameters = zip(*layers.named_parameters(), strict=True)

    def network(hidden, *values):
        for index, layer in layers.named_children():
            given = dict(zip(names, values, strict=True))
            own = {name: given[f'{index}.{name}'] for name, _ in layer.named_parameters()}
            hidden = hidden + functional_call(layer, own, hidden, dict(attention_mask=mask))
        return hidden

    assert torch.autograd.gradcheck(network, (hidden, *parameters), fast_mode=True)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_and_the_tree_grows_from_float32(dtype, grown):
    layer, hidden = mixer(hidden=16, dtype=torch.float32, causal=True), torch.randn(1, 30, 16)
    mask = context(0, 30)
    expected = layer(hidden, attention_mask=mask)
    with torch.autocast('cpu', dtype):
        mixed = layer(hidden, attention_mask=mask)
    for found in (mixed, layer.to(dtype)(hidden.to(dtype), attention_mask=mask)):
        assert found.dtype == dtype
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < 8 * torch.finfo(dtype).eps
    for (x, B, *_), _ in grown:
        assert x.dtype == B.dtype == torch.float32 and not x.requires_grad


def test_unsupported_calls_raise():
    model = use_tree_scan(mamba())
    cache = model(tokens(1, 5)).cache_params
    with pytest.raises(ValueError, match='one token at a time, got 2'):
        model(tokens(1, 2), cache_params=cache, cache_position=torch.tensor([4]), use_cache=True)
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=['dt_proj']), model)
    with pytest.raises(ValueError, match='dt_proj takes no adapter'):
        model(tokens(1, 5))
