import pytest
import torch

from grootv import ops
from grootv.language import use_tree_scan

from .mambas import VOCABULARY, mamba, pad_left, tokens, tree_mamba

GREEDY = dict(do_sample=False, output_logits=True, return_dict_in_generate=True)


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('length', [1, 3, 9])  # the convolution spans 4 tokens
@pytest.mark.parametrize('size', [None, 0, 1])
def test_prompt_and_steps_equal_a_full_forward(length, size, causal):
    model = tree_mamba(causal=causal)
    ids = tokens(2, length)
    sizes = torch.full((2,), length if size is None else size)
    given = {} if size is None else dict(context_length=sizes)
    out = model.generate(ids, max_new_tokens=8, **given, **GREEDY)
    full = model(out.sequences, context_length=sizes).logits[:, length - 1 : -1]
    torch.testing.assert_close(torch.stack(out.logits, dim=1), full, atol=1e-4, rtol=1e-4)


def test_scale_0_generates_what_mamba_does():
    plain, (ids, mask) = mamba(), pad_left([tokens(5), tokens(9)])
    expected = plain.generate(ids, attention_mask=mask, max_new_tokens=8, **GREEDY)
    found = use_tree_scan(plain, scale=0).generate(ids, attention_mask=mask, max_new_tokens=8, **GREEDY)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('causal', [False, True])
def test_left_padded_batch_generates_what_its_items_do(causal):
    model = tree_mamba(causal=causal, use_bias=True)
    items = [tokens(n) for n in (2, 11, 1, 8)]
    ids, mask = pad_left(items)
    batch = model.generate(ids, attention_mask=mask, max_new_tokens=6, **GREEDY)
    for row, item in enumerate(items):
        single = model.generate(item.unsqueeze(0), max_new_tokens=6, **GREEDY)
        for found, expected in zip(batch.logits, single.logits, strict=True):
            torch.testing.assert_close(found[row], expected[0], atol=1e-5, rtol=1e-5)


def test_steps_after_the_prompt_take_one_token_and_grow_no_tree(monkeypatch):
    model, grown, lengths = tree_mamba(), [], []

    def grow(*arguments):
        grown.append(arguments)
        return ops.token_tree(*arguments)

    monkeypatch.setattr('grootv.language.mixer.token_tree', grow)
    layers = model.backbone.layers
    layers[0].register_forward_pre_hook(lambda layer, arguments: lengths.append(arguments[0].shape[1]))
    model.generate(tokens(1, 9), max_new_tokens=5, do_sample=False)
    assert lengths == [9, 1, 1, 1, 1]
    assert len(grown) == len(layers)


def test_samples_of_a_prompt_share_its_context():
    model, ids, sizes = tree_mamba(), tokens(2, 9), torch.tensor([9, 4])
    sampled = dict(do_sample=True, num_return_sequences=3, max_new_tokens=4, context_length=sizes)
    out = model.generate(ids, **{**GREEDY, **sampled})
    full = model(out.sequences, context_length=sizes.repeat_interleave(3)).logits[:, 8:-1]
    torch.testing.assert_close(torch.stack(out.logits, dim=1), full, atol=1e-4, rtol=1e-4)


def test_generation_checks_its_prompt():
    with pytest.raises(ValueError, match='at least one token'):
        tree_mamba().generate(tokens(1, 0), max_new_tokens=3)
    with pytest.raises(ValueError, match='ids of tokens are 0 to 49'):
        tree_mamba().generate(torch.tensor([[3, VOCABULARY]]), max_new_tokens=3)
