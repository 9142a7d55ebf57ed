import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from grootv.errors import UserError
from grootv.language import load_language_model
from grootv.language.lm_eval_model import GrootLM

REQUESTS = [
    ('Tell me about tides.', ' The sea rises and falls.'),
    ('Tell me about bread, and about glass, and of what both are made by hand.', ' Of sand'),
    ('Salt', ' is white'),
    ('Tell me about tides.', ' Bees'),
    ('', ' no context at all'),
    ('Tell me about tides.', ' B'),
    ('Tell me about tides.', ' C'),
    ('Tell me about', ' tides.C'),
]


def instances(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


def likelihoods(model, requests=REQUESTS) -> torch.Tensor:
    found = model.loglikelihood(instances('loglikelihood', requests), disable_tqdm=True)
    return torch.tensor(found, dtype=torch.float64)


@torch.no_grad()
def scores(model, given: list[int], context: int, wanted: list[int]) -> tuple[torch.Tensor, float]:
    """Logarithms of the probabilities where tokens are wanted after the given ones, and the sum of theirs."""
    ids = torch.tensor([given + wanted[:-1]])
    logits = model(ids, context_length=torch.tensor([context])).logits[0, -len(wanted) :]
    found = logits.log_softmax(dim=-1)
    return found, found[range(len(wanted)), wanted].sum().item()


@pytest.fixture(scope='module')
def model(folder) -> GrootLM:
    return GrootLM(folder, batch_size=3)


@pytest.mark.parametrize('batch_size', [1, 3])
@pytest.mark.parametrize('causal', [False, True])
def test_likelihood_is_the_sum_over_the_continuation_after_its_own_context(folder, causal, batch_size):
    found = likelihoods(GrootLM(folder, causal=causal, batch_size=batch_size))
    model, tokenizer = load_language_model(folder, causal=causal)
    for (context, continuation), (likelihood, greedy) in zip(REQUESTS, found, strict=True):
        given = tokenizer(context).input_ids or [tokenizer.eos_token_id]
        wanted = tokenizer(context + continuation).input_ids[len(tokenizer(context).input_ids) :]
        expected, total = scores(model, given, len(given), wanted)
        assert likelihood == pytest.approx(total, abs=1e-4)
        assert greedy == (expected.argmax(dim=-1).tolist() == wanted)
        if len(given) > 9:  # long enough for a tree that matters
            assert not torch.allclose(expected, scores(model, given, len(given) - 1, wanted)[0], atol=1e-3)


def test_continuation_of_greedy_decoding_is_greedy(model):
    context = model.tok_encode('Tell me about tides.')
    written = model.model.generate(torch.tensor([context]), max_new_tokens=4, do_sample=False)[0]
    written = written[len(context) :].tolist()
    other = [*written[:3], (written[3] + 1) % model.model.config.vocab_size]
    requests = [(('a', 'b'), context, tokens) for tokens in (written, other)]
    assert [greedy for _, greedy in model._loglikelihood_tokens(requests, True)] == [True, False]


def test_text_that_is_scored_whole_has_no_context(folder):
    text = 'A text without context, in several windows.'
    requests = instances('loglikelihood_rolling', [(text,)])
    found = GrootLM(folder, max_length=8).loglikelihood_rolling(requests, disable_tqdm=True)
    model, tokenizer = load_language_model(folder)
    tokens = tokenizer(text).input_ids
    assert len(tokens) == 21  # the last window begins with four tokens that are no context
    expected = 0.0
    for start in range(0, len(tokens), 8):
        wanted = tokens[start : start + 8]
        before = [tokenizer.eos_token_id, *tokens][: start + 1][len(wanted) - 9 :]  # a window has 8 tokens
        expected += scores(model, before, 0, wanted)[1]
    assert found == pytest.approx([expected], abs=1e-4)


def test_long_context_loses_its_first_tokens(folder):
    context, continuation = REQUESTS[1]
    model = GrootLM(folder, max_length=12)
    tokens = model.tok_encode(context + continuation)
    assert len(tokens) > 14
    wanted = tokens[len(model.tok_encode(context)) :]
    given = tokens[: -len(wanted)][len(wanted) - 13 :]
    expected = scores(model.model, given, len(given), wanted)[1]
    assert likelihoods(model, [REQUESTS[1]])[0, 0].item() == pytest.approx(expected, abs=1e-4)


def test_lm_eval_knows_the_model_and_passes_its_arguments(folder):
    arguments = f'pretrained={folder},scale=0.5,causal=True,context_rule=minimum'
    model = get_model('grootl').create_from_arg_string(arguments, dict(batch_size=2, device='cpu'))
    mixers = [layer.mixer for layer in model.model.backbone.layers]
    assert {(mixer.scale, mixer.reach, mixer.causal) for mixer in mixers} == {(0.5, 3, True)}
    assert model.model.backbone.context_rule == 'minimum'
    assert model.batch_size == 2


def test_continuation_that_merges_into_its_context_is_reported_and_scored(folder, model, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr('grootv.language.lm_eval_model.warn', said.append)
    tokenizer = load_language_model(folder)[1]
    before = 'Tell me about '

    def count(text: str) -> int:
        return len(tokenizer(text).input_ids)

    words = (word for word in sorted(tokenizer.get_vocab()) if word.isascii() and word.isalpha())
    word = next(
        word for word in words if count(word) == 1 and count(before + word) == count(before + word[:-1])
    )
    pair = word[:-1], word[-1]
    requests = [REQUESTS[0], (before + pair[0], pair[1]), pair]
    whole = tokenizer(before + word).input_ids
    found = likelihoods(model, requests)
    end = tokenizer.eos_token_id
    alone = tokenizer(word).input_ids
    for row, (given, wanted) in enumerate(((whole[:-1], whole[-1:]), ([end], alone)), 1):
        assert found[row, 0].item() == pytest.approx(
            scores(model.model, given, len(given), wanted)[1], abs=1e-4
        )
    assert torch.equal(found[0], likelihoods(model, REQUESTS[:1])[0])
    assert [text[:35] for text in said] == ['the tokens of 2 continuations merge']


def test_bad_input_raises_one_sentence(folder, model, tmp_path):
    with pytest.raises(UserError, match='grootl: batch_size is a whole number from 1 on, got auto'):
        GrootLM(folder, batch_size='auto')
    load_language_model(folder)[0].save_pretrained(tmp_path)
    with pytest.raises(UserError, match='has no tokenizer'):
        GrootLM(tmp_path)
    for context in ('Salt', ''):
        with pytest.raises(UserError, match=f'a continuation is a text, got an empty one after {context!r}'):
            likelihoods(model, [('Salt', ' is'), (context, '')])
    with pytest.raises(UserError, match='a continuation has 1 to 2048 tokens, got 2049'):
        model._loglikelihood_tokens([(('a', 'b'), [1], 2049 * [1])])
