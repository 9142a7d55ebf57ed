import copy
import subprocess
import sys

import peft
import pytest
import torch
from transformers import MambaModel

from grootv.models.language import use_tree_scan

from .mambas import VOCABULARY, mamba, pad_left, tokens, tree_mamba

LENGTH, CONTEXT = 12, 7


def hears(model, context_length: int) -> torch.Tensor:
    """Whether the logits at a token (row) change with another token (column)."""
    ids = tokens(LENGTH)
    batch = ids.repeat(LENGTH + 1, 1)
    batch.diagonal().copy_(ids % (VOCABULARY - 1) + 1)
    with torch.no_grad():
        logits = model(batch, context_length=torch.full((LENGTH + 1,), context_length)).logits
    return ((logits[:-1] - logits[-1]).abs().amax(-1) > 1e-5).T


@pytest.mark.parametrize('reach', [2, 3, 5])
def test_only_the_context_hears_later_tokens_and_only_its_own(reach):
    heard = hears(tree_mamba(reach=reach), CONTEXT)
    assert heard[torch.ones_like(heard).tril() == 1].all()
    later = heard.triu(1)
    assert later[:CONTEXT, :CONTEXT].any()
    assert not later[CONTEXT - 1 :].any()
    assert not later[:, CONTEXT:].any()


@pytest.mark.parametrize('reach', [2, 3, 5])
def test_the_causal_tree_hears_no_later_token(reach):
    heard = hears(tree_mamba(reach=reach, causal=True), LENGTH)
    assert torch.equal(heard, torch.ones_like(heard).tril())


@pytest.mark.parametrize('causal', [False, True])
def test_context_0_is_the_chain_and_more_is_not(causal):
    model = tree_mamba(causal=causal)
    ids = tokens(1, LENGTH)
    chain = model(ids, context_length=torch.tensor([0])).logits
    outputs = [model(ids, context_length=torch.tensor([size])).logits for size in range(LENGTH + 1)]
    assert all(torch.equal(output, chain) for output in outputs[:3])  # the tree of two tokens is the chain
    assert not torch.allclose(outputs[-1], chain, rtol=1e-3)
    # Beside a chain, a tree that is the chain adds its share to every state.
    assert not torch.allclose(chain, use_tree_scan(model, scale=0)(ids).logits, rtol=1e-3)


def test_no_context_means_all_tokens():
    model = tree_mamba()
    ids, mask = pad_left([tokens(5), tokens(9)])
    expected = model(ids, attention_mask=mask, context_length=torch.tensor([5, 9])).logits
    assert torch.equal(model(ids, attention_mask=mask).logits, expected)


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('side', ['left', 'right'])
def test_a_padded_batch_gives_the_logits_of_its_items(side, causal):
    model = tree_mamba(causal=causal, use_bias=True)
    items, sizes = [tokens(n) for n in (3, 11, 1, 8)], torch.tensor([3, 6, 0, 8])
    ids, mask = pad_left(items)
    if side == 'right':
        mask = mask.flip(1)
        ids[mask == 1] = torch.cat(items)
    batch = model(ids, attention_mask=mask, context_length=sizes).logits
    for row, item in enumerate(items):
        single = model(item.unsqueeze(0), context_length=sizes[row : row + 1]).logits[0]
        torch.testing.assert_close(batch[row][mask[row] == 1], single, atol=1e-5, rtol=1e-5)


def test_by_the_published_rule_the_smallest_context_serves_all():
    model = tree_mamba(context_rule='minimum')
    ids = tokens(3, LENGTH)
    found = model(ids, context_length=torch.tensor([9, 4, 12])).logits
    other = use_tree_scan(model)
    assert torch.equal(found, other(ids, context_length=torch.tensor([4, 4, 4])).logits)
    assert not torch.equal(found, other(ids, context_length=torch.tensor([9, 4, 12])).logits)


def loss(model, ids, sizes):
    return model(input_ids=ids, labels=ids, context_length=sizes).loss


@pytest.mark.parametrize('reentrant', [False, True])
def test_gradient_checkpointing_keeps_contexts_and_gradients(reentrant):
    plain = tree_mamba().train()
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_enable(dict(use_reentrant=reentrant))
    ids, gradients = tokens(2, LENGTH), []
    for model in (plain, saving):
        # Both forward passes come first: the blocks of the first run again after the second's.
        (loss(model, ids, torch.tensor([9, 12])) + loss(model, ids, torch.tensor([0, 4]))).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize('order', ['tree first', 'adapters first'])
def test_adapters_of_peft_wrap_it(order):
    lora = peft.LoraConfig(task_type='CAUSAL_LM', target_modules=['in_proj', 'x_proj'])
    model, ids, sizes = mamba(), tokens(2, LENGTH), torch.tensor([12, 5])
    plain = use_tree_scan(copy.deepcopy(model))
    if order == 'tree first':
        wrapped = peft.get_peft_model(use_tree_scan(model), lora)
    else:
        wrapped = use_tree_scan(peft.get_peft_model(model, lora))
    wrapped.eval()
    assert torch.equal(
        wrapped(input_ids=ids, context_length=sizes).logits, plain(ids, context_length=sizes).logits
    )
    loss(wrapped, ids, sizes).backward()
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    assert len(trained) == 8 and all(parameter.grad is not None for parameter in trained)
    with torch.no_grad():
        for parameter in trained:
            parameter += 0.1 * torch.randn_like(parameter)
    adapted = wrapped(input_ids=ids, context_length=sizes).logits
    greedy = dict(max_new_tokens=3, do_sample=False)
    continued = wrapped.generate(input_ids=ids, context_length=sizes, **greedy)
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(merged(ids, context_length=sizes).logits, adapted, atol=1e-4, rtol=1e-4)
    assert torch.equal(merged.generate(ids, context_length=sizes, **greedy), continued)


def test_the_model_without_a_head_takes_a_context_too():
    model = tree_mamba()
    ids, sizes = tokens(2, LENGTH), torch.tensor([12, 5])
    hidden = model.backbone(ids, context_length=sizes).last_hidden_state
    assert torch.equal(model.lm_head(hidden), model(ids, context_length=sizes).logits)
    alone = MambaModel(model.config).eval()
    alone.load_state_dict(model.backbone.state_dict())
    assert torch.equal(use_tree_scan(alone)(ids, context_length=sizes).last_hidden_state, hidden)


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (dict(input_ids=tokens(2, 0), context_length=None), r'at least one token.* \(2, 0\)'),
        (dict(attention_mask=torch.tensor([[1] * 8, [0] * 8])), r'at least one token, got an empty one'),
        (dict(attention_mask=torch.ones(2, 7)), r'attention_mask needs .* shape \(2, 8\), got \(2, 7\)'),
        (dict(input_ids=torch.full((2, 8), VOCABULARY)), 'ids of tokens are 0 to 49, the vocabulary, got 50'),
        (dict(input_ids=torch.full((2, 8), -1)), 'ids of tokens are 0 to 49, the vocabulary, got -1'),
        (dict(input_ids=tokens(2, 21)), 'fit the context window of 20 tokens, got 21'),
        (dict(context_length=torch.tensor([3, 9])), 'own number of tokens, 8, got 9'),
        (dict(context_length=torch.tensor([3, -1])), 'own number of tokens, 8, got -1'),
        (dict(context_length=torch.tensor([3])), r'one value per item, shape \(2,\), got \(1,\)'),
        (dict(context_length=None, labels=tokens(2, 8)), 'labels need context_length'),
    ],
)
def test_bad_input_ends_in_one_sentence(change, sentence):
    model = tree_mamba(max_position_embeddings=20)
    call = dict(input_ids=tokens(2, 8), context_length=torch.tensor([3, 8]))
    model(**call)
    with pytest.raises(ValueError, match=sentence):
        model(**{**call, **change})


@pytest.mark.parametrize('side', ['left', 'right'])
def test_padding_is_no_context(side):
    ids, mask = pad_left([tokens(5), tokens(9)])
    mask = mask if side == 'left' else mask.flip(1)
    with pytest.raises(ValueError, match='own number of tokens, 5, got 6'):
        tree_mamba()(ids, attention_mask=mask, context_length=torch.tensor([6, 9]))


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (dict(context_rule='maximum'), "context_rule is one of item, minimum, got 'maximum'"),
        (dict(reach=0), 'at least 1, got 0'),
        (dict(model=torch.nn.Linear(2, 2)), 'needs a Mamba model of transformers, got Linear'),
    ],
)
def test_bad_settings_end_in_one_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        use_tree_scan(**{**dict(model=mamba()), **change})


def test_the_networks_of_images_do_not_import_transformers():
    script = "import sys, grootv.models; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, '-c', script], check=True)
