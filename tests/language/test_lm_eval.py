import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

from grootv.errors import UserError
from grootv.evaluation.lm_eval_model import GrootLM
from grootv.models.language import load_language_model

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
    return torch.tensor(
        model.loglikelihood(instances('loglikelihood', requests), disable_tqdm=True), dtype=torch.float64
    )


@pytest.fixture(scope='module')
def model(folder) -> GrootLM:
    return GrootLM(folder, batch_size=3)


@pytest.mark.parametrize('causal', [False, True])
def test_a_likelihood_is_the_sum_over_the_continuation_after_its_own_context(folder, causal):
    found = likelihoods(GrootLM(folder, causal=causal, batch_size=3))
    model, tokenizer = load_language_model(folder, causal=causal)
    for (context, continuation), (likelihood, greedy) in zip(REQUESTS, found, strict=True):
        given = tokenizer(context).input_ids or [tokenizer.eos_token_id]
        wanted = tokenizer(context + continuation).input_ids[len(tokenizer(context).input_ids) :]
        with torch.no_grad():
            logits = model(torch.tensor([given + wanted]), context_length=torch.tensor([len(given)])).logits[
                0
            ]
        told = logits.log_softmax(dim=-1)[len(given) - 1 : -1]
        expected = sum(told[place, token].item() for place, token in enumerate(wanted))
        assert likelihood == pytest.approx(expected, abs=1e-4)
        assert greedy == (told.argmax(dim=-1).tolist() == wanted)


def test_what_the_model_would_write_is_greedy(model):
    context = model.tok_encode('Tell me about tides.')
    written = model.model.generate(torch.tensor([context]), max_new_tokens=4, do_sample=False)[0]
    written = written[len(context) :].tolist()
    other = [*written[:3], (written[3] + 1) % model.model.config.vocab_size]
    requests = [(('a', 'b'), context, tokens) for tokens in (written, other)]
    assert [greedy for _, greedy in model._loglikelihood_tokens(requests, True)] == [True, False]


def test_a_context_one_token_shorter_gives_another_likelihood(model):
    """What guards the test above: the random model hears the difference."""
    ids = torch.tensor([model.tok_encode(REQUESTS[1][0] + REQUESTS[1][1])])
    context = len(model.tok_encode(REQUESTS[1][0]))
    lengths = (context, context - 1, 0)
    logits = [model.model(ids, context_length=torch.tensor([length])).logits[0, -1] for length in lengths]
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)
    assert not torch.allclose(logits[0], logits[2], atol=1e-3)


@pytest.mark.parametrize('batch_size', [1, 2, 7])
def test_a_batch_gives_what_its_items_give_alone(folder, model, batch_size):
    batched = likelihoods(GrootLM(folder, batch_size=batch_size))
    for request, expected in zip(REQUESTS, batched, strict=True):
        torch.testing.assert_close(likelihoods(model, [request])[0], expected, atol=1e-4, rtol=0)


def test_scale_0_gives_the_numbers_of_lm_evals_own_model(folder):
    own = HFLM(str(folder), device='cpu', dtype='float32', batch_size=2)
    found = GrootLM(folder, scale=0.0, batch_size=2)
    torch.testing.assert_close(likelihoods(found), likelihoods(own), atol=1e-4, rtol=0)
    texts = instances('loglikelihood_rolling', [('A text that nothing precedes.',), ('Another',)])
    for model in (own, found):
        model._max_length = 8  # several windows
    assert found.loglikelihood_rolling(texts, True) == pytest.approx(own.loglikelihood_rolling(texts, True))
    for model in (own, found):
        model._max_length = 100
    prompts = [(context, dict(max_gen_toks=8, until=['\n'])) for context, _ in REQUESTS if context]
    prompts = instances('generate_until', prompts)
    assert found.generate_until(prompts, True) == own.generate_until(prompts, True)


def test_a_text_that_is_scored_whole_has_no_context(folder):
    text = 'A text that nothing precedes, long enough for windows.'
    found = GrootLM(folder, max_length=8).loglikelihood_rolling(
        instances('loglikelihood_rolling', [(text,)]), disable_tqdm=True
    )
    model, tokenizer = load_language_model(folder)
    tokens = tokenizer(text).input_ids
    assert len(tokens) > 16
    expected, start = 0.0, 0
    while start < len(tokens):
        stop = min(start + 8, len(tokens))
        window = [tokenizer.eos_token_id, *tokens][max(stop - 8, 0) : stop]
        logits = model(torch.tensor([window]), context_length=torch.tensor([0])).logits[0].log_softmax(-1)
        expected += sum(logits[place - stop, tokens[place]].item() for place in range(start, stop))
        start = stop
    assert found == pytest.approx([expected], abs=1e-4)


@pytest.mark.parametrize('causal', [False, True])
def test_a_text_is_generated_as_the_model_generates_it(folder, causal):
    model, tokenizer = load_language_model(folder, causal=causal)
    prompts = ['Tell me about tides.', 'Salt']
    expected = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors='pt').input_ids
        new = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        expected.append(tokenizer.decode(new, skip_special_tokens=True))
    requests = [(prompt, dict(max_gen_toks=8, until=[])) for prompt in prompts]
    model = GrootLM(folder, causal=causal, batch_size=2)
    assert model.generate_until(instances('generate_until', requests), disable_tqdm=True) == expected


def test_the_published_rule_takes_the_smallest_context_of_a_batch(folder):
    request, other = REQUESTS[1], ('Salt', REQUESTS[1][1])
    model = GrootLM(folder, context_rule='minimum', batch_size=2)
    alone, together = likelihoods(model, [request])[0], likelihoods(model, [request, other])[0]
    assert (alone - together).abs().max() > 1e-3


def test_a_long_context_loses_its_first_tokens(folder):
    context, continuation = REQUESTS[1]
    model = GrootLM(folder, max_length=12)
    tokens = model.tok_encode(context + continuation)
    assert len(tokens) > 14
    wanted = tokens[len(model.tok_encode(context)) :]
    given = torch.tensor([tokens[-13:-1]])
    logits = model.model(given, context_length=torch.tensor([13 - len(wanted)])).logits[0].log_softmax(-1)
    expected = sum(logits[place - len(wanted), token].item() for place, token in enumerate(wanted))
    assert likelihoods(model, [REQUESTS[1]])[0, 0].item() == pytest.approx(expected, abs=1e-4)


def test_lm_eval_knows_the_model_and_passes_its_arguments(folder):
    arguments = f'pretrained={folder},scale=0.5,causal=True,context_rule=minimum'
    model = get_model('grootl').create_from_arg_string(arguments, dict(batch_size=2, device='cpu'))
    mixers = [layer.mixer for layer in model.model.backbone.layers]
    assert {(mixer.scale, mixer.reach, mixer.causal) for mixer in mixers} == {(0.5, 3, True)}
    assert model.model.backbone.context_rule == 'minimum'
    assert model.batch_size == 2


def test_bad_input_is_told_in_a_sentence(folder, model, tmp_path):
    with pytest.raises(UserError, match='grootl: batch_size is a whole number from 1 on, got auto'):
        GrootLM(folder, batch_size='auto')
    load_language_model(folder)[0].save_pretrained(tmp_path)
    with pytest.raises(UserError, match='has no tokenizer'):
        GrootLM(tmp_path)
    with pytest.raises(UserError, match='a continuation has 1 to 2048 tokens, got 0'):
        likelihoods(model, [('Salt', '')])
