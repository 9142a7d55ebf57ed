import copy

import peft
import pytest
import torch
import torch.nn.functional as F
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


def definition(mixer: TreeMambaMixer, hidden: torch.Tensor, size: int) -> tuple[ops.Tree, torch.Tensor]:
    """The tree and the output of one sequence, from the operators' reference."""
    x, z = mixer.in_proj(hidden).chunk(2, dim=-1)
    weight, bias = mixer.conv1d.weight, mixer.conv1d.bias
    padded = F.pad(x.mT, (weight.shape[-1] - 1, 0))
    x = F.silu(F.conv1d(padded, weight, bias, groups=len(weight)).mT)
    states = mixer.ssm_state_size
    low_rank, B, C = mixer.x_proj(x).split([mixer.time_step_rank, states, states], dim=-1)
    delta, A = F.softplus(mixer.dt_proj(low_rank)), -mixer.A_log.exp()
    tree = reference.token_tree(delta * x, B, torch.tensor([[0, size]]), mixer.reach, mixer.causal)
    trees = ops.token_chain(*hidden.shape[:2]), tree
    chain_y, tree_y = (reference.token_scan(x, delta, A, B, C, t, delta_softplus=False)[0] for t in trees)
    return tree, mixer.out_proj((chain_y + 0.3 * tree_y + mixer.D * x) * F.silu(z))


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('reach', [1, 3, 4])
def test_trees_outputs_and_gradients_are_those_of_the_definition(grown, causal, reach):
    length = 12
    layer = mixer(reach=reach, causal=causal)
    hidden = torch.randn(1, length, 6, dtype=torch.float64, requires_grad=True)
    trees, backward = set(), False
    for size in range(length + 1):
        output = layer(hidden, attention_mask=context(size, length))
        tree, expected = definition(layer, hidden, size)
        found = grown[-1][1].parent[0].tolist()
        assert found == tree.parent[0].tolist(), size
        assert torch.equal(layer(hidden, attention_mask=torch.tensor([size])), output)
        torch.testing.assert_close(output, expected, rtol=1e-10, atol=0)
        given = (hidden, *layer.parameters())
        gradients = (torch.autograd.grad(y.square().sum(), given) for y in (output, expected))
        torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)
        trees.add(tuple(found))
        assert size > 2 or found == [*range(1, length), length - 1]  # the chain
        backward |= any(above < token for token, above in enumerate(found))
    # The context matters, except in a tree of neighbours; in the published one, tokens receive later ones.
    assert len(trees) > 3 if reach > 1 else len(trees) == 1
    assert backward == (reach > 1 and not causal)


@pytest.mark.parametrize('bias', [False, True])
def test_scale_0_is_mamba(grown, bias):
    # Not bit for bit: the order of sums in a product of matrices depends on their layout and the processor.
    tolerance = dict(atol=2e-5, rtol=1e-4)
    plain = mamba(use_bias=bias, use_conv_bias=bias)
    tree = use_tree_scan(copy.deepcopy(plain), scale=0)
    # With a bias of in_proj, transformers' own Mamba takes padding for tokens.
    ids, mask = pad_left([tokens(17)] if bias else [tokens(5), tokens(17), tokens(1)])
    found, expected = (model(ids, attention_mask=mask, use_cache=True) for model in (tree, plain))
    for _ in range(3):  # the prompt, then tokens after it
        torch.testing.assert_close(found.logits, expected.logits, **tolerance)
        caches = found.cache, expected.cache
        for state in ('conv_states', 'recurrent_states'):
            states = ([getattr(layer, state)[0] for layer in cache.layers] for cache in caches)
            torch.testing.assert_close(*states, **tolerance)
        step = tokens(len(ids), 1)
        found, expected = (
            model(step, cache=cache, use_cache=True)
            for model, cache in zip((tree, plain), caches, strict=True)
        )
    assert not grown


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


def test_hooks_of_every_layer_are_called_and_change_nothing_else():
    model, called = use_tree_scan(mamba()), []
    layers = {module for module in model.modules() if not list(module.children())}

    def run():
        """The prompt, then a token after it, each with the layers that were hooked."""
        ids, given = tokens(2, 7), {}
        for _ in range(2):
            called.clear()
            output = model(ids, use_cache=True, **given)
            yield output.logits, set(called)
            ids, given = tokens(2, 1), dict(cache=output.cache)

    torch.manual_seed(0)
    expected = [logits for logits, _ in run()]
    for layer in layers:
        layer.register_forward_hook(lambda module, *_: called.append(module))
    torch.manual_seed(0)
    for (logits, hooked), before in zip(run(), expected, strict=True):
        torch.testing.assert_close(logits, before, rtol=1e-4, atol=1e-4)
        assert hooked == layers


def test_unsupported_calls_raise():
    model = use_tree_scan(mamba())
    cache = model(tokens(1, 5)).cache
    with pytest.raises(ValueError, match='one token at a time, got 2'):
        model(tokens(1, 2), cache=cache, use_cache=True)
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=['dt_proj']), model)
    with pytest.raises(ValueError, match='dt_proj takes no adapter'):
        model(tokens(1, 5))
