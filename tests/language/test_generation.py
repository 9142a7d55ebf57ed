import pytest
import torch

from .tiny import pad_left, tokens, tree_mamba

GREEDY = dict(do_sample=False, output_logits=True, return_dict_in_generate=True)
PROMPTS = (5, 11, 1, 8)  # the convolution spans 4 tokens
SEARCHES = dict(
    greedy={},
    beams=dict(num_beams=4),
    several_beams=dict(num_beams=4, num_return_sequences=3),
    samples=dict(do_sample=True, num_return_sequences=3),
    sampled_beams=dict(do_sample=True, num_beams=4, num_return_sequences=2),
)


@pytest.mark.parametrize('length', [1, 3, 9])
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
    items = [tokens(n) for n in PROMPTS]
    ids, mask = pad_left(items)
    batch = model.generate(ids, attention_mask=mask.float(), max_new_tokens=6, **GREEDY)
    for row, item in enumerate(items):
        single = model.generate(item.unsqueeze(0), max_new_tokens=6, **GREEDY)
        for found, expected in zip(batch.logits, single.logits, strict=True):
            torch.testing.assert_close(found[row], expected[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('search', SEARCHES)
def test_scores_of_every_search_are_the_likelihoods_of_its_texts(search, causal):
    """States follow the beams and the returned sequences."""
    model, new = tree_mamba(causal=causal), 7
    items = [tokens(n) for n in PROMPTS]
    ids, mask = pad_left(items)
    options = dict(output_scores=True, return_dict_in_generate=True, length_penalty=0.0, top_k=0)
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=new, **{'do_sample': False, **SEARCHES[search]}, **options
    )
    given = getattr(out, 'beam_indices', None)
    found = model.compute_transition_scores(out.sequences, out.scores, given, normalize_logits=given is None)
    count = len(out.sequences) // len(items)
    for row, text in enumerate(out.sequences):
        prompt = items[row // count]
        whole = torch.cat([prompt, text[ids.shape[1] :]]).unsqueeze(0)
        logits = model(whole, context_length=torch.tensor([len(prompt)])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(dim=-1).gather(1, whole[0, len(prompt) :, None])[:, 0]
        torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=1e-4)
        if search.endswith('beams') and search != 'sampled_beams':
            assert out.sequences_scores[row].item() == pytest.approx(expected.sum().item(), abs=1e-3)


@pytest.mark.parametrize('context', [None, (5, 4, 0, 8)])
@pytest.mark.parametrize('search', SEARCHES)
def test_text_is_the_same_without_a_cache_and_in_training_with_checkpointing(search, context):
    model = tree_mamba()
    ids, mask = pad_left([tokens(n) for n in PROMPTS])
    sizes = {} if context is None else dict(context_length=torch.tensor(context))

    def generate(**options) -> torch.Tensor:
        torch.manual_seed(0)
        options = {'do_sample': False, **SEARCHES[search], **sizes, **options}
        return model.generate(ids, attention_mask=mask, max_new_tokens=9, **options)

    expected = generate()
    assert torch.equal(generate(use_cache=False), expected)
    model.train().gradient_checkpointing_enable()
    assert torch.equal(generate(), expected)
    with torch.enable_grad():
        assert torch.equal(generate(), expected)
