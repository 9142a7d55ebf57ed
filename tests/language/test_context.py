import copy

import peft
import pytest
import torch

from grootv.language import use_tree_scan

from .tiny import VOCABULARY, mamba, pad_left, tokens, tree_mamba

LENGTH, CONTEXT = 12, 7


def receives(model, context_length: int) -> torch.Tensor:
    """Whether the logits at a token (row) change with another token (column)."""
    ids = tokens(LENGTH)
    batch = ids.repeat(LENGTH + 1, 1)
    batch.diagonal().copy_(ids % (VOCABULARY - 1) + 1)
    with torch.no_grad():
        logits = model(batch, context_length=torch.full((LENGTH + 1,), context_length)).logits
    return ((logits[:-1] - logits[-1]).abs().amax(-1) > 1e-5).T


def test_context_receives_later_tokens_of_its_own_alone_and_none_in_a_causal_tree():
    found = receives(tree_mamba(), CONTEXT)
    assert found[torch.ones_like(found).tril() == 1].all()
    later = found.triu(1)
    assert later[:CONTEXT, :CONTEXT].any()
    assert not later[CONTEXT - 1 :].any() and not later[:, CONTEXT:].any()
    found = receives(tree_mamba(causal=True), LENGTH)
    assert torch.equal(found, torch.ones_like(found).tril())


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('side', ['left', 'right'])
def test_padded_batch_gives_the_logits_of_its_items(side, causal):
    model = tree_mamba(causal=causal, use_bias=True)
    items, sizes = [tokens(n) for n in (3, 11, 1, 8)], torch.tensor([3, 6, 0, 8])
    ids = torch.nn.utils.rnn.pad_sequence(items, batch_first=True, padding_side=side)
    mask = ids.ne(0).long()
    batch = model(ids, attention_mask=mask, context_length=sizes).logits
    whole = model(ids, attention_mask=mask).logits
    for row, item in enumerate(items):
        single = model(item.unsqueeze(0), context_length=sizes[row : row + 1]).logits[0]
        torch.testing.assert_close(batch[row][mask[row] == 1], single, atol=1e-5, rtol=1e-5)
        single = model(item.unsqueeze(0)).logits[0]  # without a context length, all tokens are context
        torch.testing.assert_close(whole[row][mask[row] == 1], single, atol=1e-5, rtol=1e-5)


def test_published_rule_gives_every_item_the_smallest_context():
    model = tree_mamba(context_rule='minimum')
    ids, mask = pad_left([tokens(LENGTH), tokens(5), tokens(LENGTH)])
    sizes = torch.tensor([9, 4, 12])
    found = model(ids, attention_mask=mask, context_length=sizes).logits
    whole = model(ids, attention_mask=mask).logits
    other = use_tree_scan(model)
    for logits, size in ((found, sizes[1:2]), (whole, torch.tensor([5]))):
        assert torch.equal(logits, other(ids, attention_mask=mask, context_length=size.repeat(3)).logits)
    assert not torch.equal(found, other(ids, attention_mask=mask, context_length=sizes).logits)


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
    expected = use_tree_scan(copy.deepcopy(model))(ids, context_length=sizes).logits
    steps = [use_tree_scan, lambda model: peft.get_peft_model(model, lora)]
    for step in steps if order == 'tree first' else reversed(steps):
        model = step(model)
    assert torch.equal(model.eval()(input_ids=ids, context_length=sizes).logits, expected)
    loss(model, ids, sizes).backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 8 and all(parameter.grad is not None for parameter in trained)


def test_model_without_a_head_takes_a_context_too():
    model = tree_mamba()
    ids, sizes = tokens(2, LENGTH), torch.tensor([12, 5])
    hidden = model.backbone(ids, context_length=sizes).last_hidden_state
    assert torch.equal(model.lm_head(hidden), model(ids, context_length=sizes).logits)


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
        (dict(attention_mask=torch.tensor([[0] * 5 + [1] * 3, [1] * 8])), '3, got 4'),
        (dict(context_length=torch.tensor([3, -1])), 'own number of tokens, 8, got -1'),
        (dict(context_length=torch.tensor([3, 2**32])), 'own number of tokens, 8, got 4294967296'),
        (dict(context_length=torch.tensor([3.0, 2.5])), r'must be int32 or int64, got torch\.float32'),
        (dict(context_length=torch.tensor([3])), r'one value per item, shape \(2,\), got \(1,\)'),
        (dict(context_length=None, labels=tokens(2, 8)), 'labels need context_length'),
    ],
)
def test_bad_input_raises_one_sentence(change, sentence):
    model = tree_mamba(max_position_embeddings=20)
    call = dict(input_ids=tokens(2, 8), context_length=torch.tensor([4, 8]))
    with pytest.raises(ValueError, match=sentence):
        model(**{**call, **change})


def test_bad_settings_raise_one_sentence():
    with pytest.raises(ValueError, match="context_rule is one of item, minimum, got 'maximum'"):
        use_tree_scan(mamba(), context_rule='maximum')
    with pytest.raises(ValueError, match='at least 1, got 0'):
        use_tree_scan(mamba(), reach=0)
    with pytest.raises(ValueError, match='needs a Mamba model of transformers, got Linear'):
        use_tree_scan(torch.nn.Linear(2, 2))
