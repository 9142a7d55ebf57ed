import pytest
import torch

from .tiny import pad_left, tokens, tree_mamba

GREEDY = dict(do_sample=False, output_logits=True, return_dict_in_generate=True)


@pytest.mark.parametrize('length', [1, 3, 9])  # the convolution spans 4 tokens
@pytest.mark.parametrize('size', [None, 0, 1])
def test_prompt_and_steps_of_one_token_equal_a_full_forward(length, size):
    model, lengths = tree_mamba(), []
    layer = model.backbone.layers[0]
    hook = layer.register_forward_pre_hook(lambda layer, given: lengths.append(given[0].shape[1]))
    sizes = torch.tensor([length if size is None else size, length])
    given = {} if size is None else dict(context_length=sizes)
    out = model.generate(tokens(2, length), max_new_tokens=8, **given, **GREEDY)
    assert lengths == [length] + 7 * [1]
    hook.remove()
    full = model(out.sequences, context_length=sizes).logits[:, length - 1 : -1]
    torch.testing.assert_close(torch.stack(out.logits, dim=1), full, atol=1e-4, rtol=1e-4)


def test_left_padded_batch_generates_what_its_items_do():
    model = tree_mamba(use_bias=True)
    items = [tokens(n) for n in (2, 11, 1, 8)]
    ids, mask = pad_left(items)
    batch = model.generate(ids, attention_mask=mask, max_new_tokens=6, **GREEDY)
    for row, item in enumerate(items):
        single = model.generate(item.unsqueeze(0), max_new_tokens=6, **GREEDY)
        for found, expected in zip(batch.logits, single.logits, strict=True):
            torch.testing.assert_close(found[row], expected[0], atol=1e-5, rtol=1e-5)
