import copy
import json
import math
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import METRICS

from grootv.errors import UserError
from grootv.language.data import InstructionDataset, pad_right
from tests.tools.tiny_run import losses, run_tool, scalars

from .tiny import adapted_model, write_config, write_items, write_published_config


@pytest.fixture
def build(folder):
    return partial(adapted_model, folder)


@pytest.fixture
def items(folder, tmp_path) -> InstructionDataset:
    return InstructionDataset(str(write_items(tmp_path / 'items.json')), str(folder))


def test_model_starts_as_that_of_its_folder(build, items):
    batch = pad_right([items[0]])
    adapted, plain = build(std=None), build(lora=None)
    before = copy.deepcopy(plain.state_dict())
    for module in plain.modules():
        module._is_hf_initialized = False  # as transformers marks what it has not loaded
    plain.init_weights()  # MMEngine calls it
    assert all(torch.equal(before[name], value) for name, value in plain.state_dict().items())
    with torch.no_grad():
        assert torch.equal(adapted(**batch), plain(**batch))


@torch.no_grad()
def test_loss_is_that_of_the_answers_and_padding_changes_nothing(build, items):
    model, picked, found = build(), [items[0], items[1], items[4]], []
    for item in picked:
        ids, context = item['input_ids'], item['context_length']
        logits = model.model(ids[None], context_length=torch.tensor([context])).logits[0]
        found.append(F.cross_entropy(logits[context - 1 : -1], ids[context:], reduction='none'))
    assert len({len(each) for each in found}) > 1  # otherwise a mean of means would do
    batch, close = pad_right(picked), dict(rtol=1e-5, atol=0)
    torch.testing.assert_close(model(**batch, mode='loss')['loss'], torch.cat(found).mean(), **close)
    for sample, each in zip(model(**batch, mode='predict'), found, strict=True):
        assert sample['tokens'] == len(each)
        torch.testing.assert_close(sample['loss'], each.sum(), **close)
    trees = ({}, dict(causal=True), dict(scale=0.0))
    assert len({build(**tree)(**batch, mode='loss')['loss'].item() for tree in trees}) == 3


def test_perplexity_counts_tokens():
    """A half for each of three tokens, an eighth for one: 2 ** ((3 + 3) / 4)."""
    metric = METRICS.build(dict(type='grootv.Perplexity'))
    metric.process(None, [dict(loss=3 * math.log(2), tokens=3)])
    metric.process(None, [dict(loss=math.log(8), tokens=1)])
    assert metric.evaluate(2) == dict(perplexity=pytest.approx(2**1.5))
    metric.process(None, [dict(loss=1e4, tokens=1)])
    assert metric.evaluate(1) == dict(perplexity=math.inf)


@pytest.mark.parametrize(
    ('lora', 'sentence'),
    [
        (dict(rank=4), r"peft refuses lora={'rank': 4}: .*unexpected keyword argument 'rank'"),
        (dict(r=0, target_modules=['in_proj']), 'peft refuses lora=.*: `r` should be a positive integer'),
        (dict(target_modules=['nothing']), 'peft refuses lora=.*nothing'),
        (dict(target_modules=['dt_proj']), 'dt_proj takes no adapter'),
        (dict(target_modules=['in_proj'], modules_to_save=['dt_proj']), 'dt_proj takes no adapter'),
        (dict(target_modules=['embeddings'], ensure_weight_tying=True), 'lora.ensure_weight_tying has no'),
    ],
)
def test_adapters_that_cannot_be_are_reported(build, lora, sentence):
    with pytest.raises(UserError, match=f'LanguageModel: {sentence}'):
        build(lora=lora)


def test_checkpoint_holds_what_trains(build, items):
    model, batch = build(), pad_right([items[0]])
    state = copy.deepcopy(model.state_dict())
    assert set(state) == {name for name, p in model.named_parameters() if p.requires_grad}
    other = build(std=None)
    with torch.no_grad():
        assert not torch.equal(other(**batch), model(**batch))
        assert str(other.load_state_dict(state)) == '<All keys matched successfully>'
        assert torch.equal(other(**batch), model(**batch))
    state.popitem()
    with pytest.raises(RuntimeError, match='Missing key'):
        other.load_state_dict(state)
    whole = build(lora=None)
    assert all(p.requires_grad and 'lora_' not in name for name, p in whole.named_parameters())
    assert set(whole.state_dict()) == {name for name, _ in whole.named_parameters(remove_duplicate=False)}


@pytest.fixture(scope='module')
def whole(tmp_path_factory, folder):
    """A config, and the folder of its run from start to end."""
    place = tmp_path_factory.mktemp('whole')
    config = write_config(place, folder)
    assert run_tool('train.py', config, '--work-dir', place / 'run') == 0
    return config, place / 'run'


def test_run_learns_and_validates_and_its_checkpoint_gives_the_perplexity_again(whole, tmp_path):
    config, run = whole
    found = losses(run)
    assert sorted(found) == list(range(1, 13))
    assert sum(found[step] for step in (10, 11, 12)) < 0.9 * sum(found[step] for step in (1, 2, 3))
    perplexities = [record['perplexity'] for record in scalars(run) if 'perplexity' in record]
    assert len(perplexities) == 2 and perplexities[1] < perplexities[0]
    assert (run / 'best_perplexity_iter_12.pth').is_file()
    arguments = (config, run / 'iter_12.pth', '--work-dir', tmp_path, '--out', tmp_path / 'metrics.json')
    assert run_tool('test.py', *arguments) == 0
    tested = json.loads((tmp_path / 'metrics.json').read_text())
    assert tested == dict(perplexity=pytest.approx(perplexities[1]))


def test_published_run_says_what_it_does(folder, tmp_path, capsys):
    config = write_published_config(tmp_path, folder)
    assert run_tool('train.py', config, '--work-dir', tmp_path / 'run') == 0
    output = capsys.readouterr().out
    trained = [p.numel() for p in adapted_model(folder).parameters() if p.requires_grad]
    for line in (
        'items  8',
        'update: 16 items (1 process x 1 batch x 16 accumulated), 8 in the last one',
        'length: 1 updates, 1 times through 8 items',
        'optimizer: AdamW, learning rate 2e-05 (6.25e-08 at the start)',
        f'weight decay 0: {len(trained)} parameters of {sum(trained)} numbers, learning rate 2e-05',
    ):
        assert line in output
    assert (tmp_path / 'run/iter_8.pth').is_file()
    assert 'the warm-up takes 320 iterations and the run has 8, so that it never' in output


def test_items_that_are_learned_and_validated_are_reported(folder, tmp_path, capsys):
    config = write_config(tmp_path, folder)
    options = ('train_dataloader.dataset.indices=None', 'train_cfg.max_iters=2')
    assert run_tool('train.py', config, '--work-dir', tmp_path / 'run', options=options) == 0
    assert 'the training learns 2 items of the validation data' in capsys.readouterr().out
    options = (*options, f'val_dataloader.dataset.ann_file={write_items(tmp_path / "others.json")}')
    assert run_tool('train.py', config, '--work-dir', tmp_path / 'other', options=options) == 0
    assert 'the training learns' not in capsys.readouterr().out


def test_resumed_run_equals_a_whole_one(whole, tmp_path):
    config, run = whole
    stopped = run_tool('train.py', config, '--work-dir', tmp_path, options=('train_cfg.max_iters=8',))
    assert stopped == 0 and not (tmp_path / 'iter_12.pth').exists()
    assert run_tool('train.py', config, '--work-dir', tmp_path, '--resume') == 0
    found, expected = (torch.load(place / 'iter_12.pth', weights_only=False) for place in (tmp_path, run))
    exactly = dict(rtol=0, atol=0)
    torch.testing.assert_close(found['state_dict'], expected['state_dict'], **exactly)
    torch.testing.assert_close(found['optimizer']['state'], expected['optimizer']['state'], **exactly)


def test_config_that_cannot_run_is_reported_in_a_sentence(folder, tmp_path, capsys, monkeypatch):
    arguments = (write_config(tmp_path, folder), '--work-dir', tmp_path / 'run')
    assert run_tool('train.py', *arguments, options=('model.pretrained=none',)) == 1
    monkeypatch.setitem(sys.modules, 'peft', None)
    monkeypatch.delitem(sys.modules, 'grootv.language.fine_tuning')
    assert run_tool('train.py', *arguments) == 1
    error = capsys.readouterr().err
    assert 'language model none does not exist' in error and 'Traceback' not in error
    assert 'imports what is not installed (import of peft halted' in error
    assert not (tmp_path / 'run').exists()
