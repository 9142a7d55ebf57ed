import copy
import json
import math
import subprocess
import sys

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import METRICS
from torch import nn

from grootv.language.data import InstructionDataset, pad_right
from grootv.language.fine_tuning import LanguageModel
from tests.tools.tiny_run import losses, run_tool, scalars

from .tiny import ROOT, adapted_model, write_config, write_items


@pytest.fixture
def build(folder):
    return lambda *args, **options: adapted_model(folder, *args, **options)


@pytest.fixture
def items(folder, tmp_path) -> InstructionDataset:
    write_items(tmp_path / 'items.json')
    return InstructionDataset('items.json', str(folder), str(tmp_path))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# What trains -----------------------------------------------------------------------------------


def test_adapters_alone_train(build):
    model = build()
    vocabulary, width, inner, state, rank = model.model.config.vocab_size, 16, 32, 4, 1
    sides = [(width, 2 * inner), (inner, rank + 2 * state), (inner, width)]  # in_proj, x_proj, out_proj
    layers = 2 * sum(8 * (before + after) for before, after in sides)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all('lora_' in name for name in trained)
    assert sum(p.numel() for p in trained.values()) == 8 * (vocabulary + width) + layers
    assert {m.scaling['default'] for m in model.modules() if hasattr(m, 'scaling')} == {16 / 8}


def test_model_starts_as_that_of_its_folder(build, items):
    batch = pad_right([items[0]])
    adapted, plain = build(std=None), build(lora=None)
    before = weights(plain)
    for module in plain.modules():
        module._is_hf_initialized = False  # as transformers marks what it has not loaded
    plain.init_weights()  # MMEngine calls it
    assert all(torch.equal(before[name], value) for name, value in weights(plain).items())
    with torch.no_grad():
        assert torch.equal(adapted(**batch), plain(**batch))


# The loss --------------------------------------------------------------------------------------


def by_hand(model: LanguageModel, item: dict) -> list[float]:
    """Loss of each token of the answer."""
    ids, context = item['input_ids'], item['context_length']
    with torch.no_grad():
        logits = model.model(ids[None], context_length=torch.tensor([context])).logits[0]
    return [-logits[t - 1].log_softmax(0)[ids[t]].item() for t in range(context, len(ids))]


def test_loss_is_that_of_the_answers_and_padding_changes_nothing(build, items):
    model, picked = build(), [items[0], items[1], items[4]]
    found = [by_hand(model, item) for item in picked]
    assert len({len(each) for each in found}) > 1  # otherwise a mean of means would do
    batch = pad_right(picked)
    every = [loss for each in found for loss in each]
    assert model(**batch, mode='loss')['loss'].item() == pytest.approx(sum(every) / len(every), rel=1e-5)
    for sample, each in zip(model(**batch, mode='predict'), found, strict=True):
        assert sample['tokens'] == len(each)
        assert sample['loss'].item() == pytest.approx(sum(each), rel=1e-5)
    trees = ({}, dict(causal=True), dict(scale=0.0))
    assert len({build(**tree)(**batch, mode='loss')['loss'].item() for tree in trees}) == 3


def test_perplexity_counts_tokens():
    """A half for each of three tokens, an eighth for one: 2 ** ((3 + 3) / 4)."""
    metric = METRICS.build(dict(type='grootv.Perplexity'))
    metric.process(None, [dict(loss=torch.tensor(3 * math.log(2)), tokens=torch.tensor(3))])
    metric.process(None, [dict(loss=torch.tensor(math.log(8)), tokens=torch.tensor(1))])
    assert metric.evaluate(2) == dict(perplexity=pytest.approx(2**1.5))
    metric.process(None, [dict(loss=torch.tensor(1e4), tokens=torch.tensor(1))])
    assert metric.evaluate(1) == dict(perplexity=math.inf)


# The step --------------------------------------------------------------------------------------


def test_accumulated_gradients_are_the_mean_of_the_items(build, items):
    model = build()
    reference = copy.deepcopy(model)
    wrapper = build_optim_wrapper(model, dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=3))
    wrapper.initialize_count_status(model, 0, 3)
    before = weights(model)
    for number in range(3):
        assert all(torch.equal(before[name], value) for name, value in weights(model).items())
        model.train_step(pad_right([items[number]]), wrapper)
    mean = sum(reference(**pad_right([items[number]]), mode='loss')['loss'] for number in range(3)) / 3
    mean.backward()
    after = weights(model)
    for name, parameter in reference.named_parameters():
        if 'lora_' in name:
            expected = before[name] - 0.1 * parameter.grad
            torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(after[name], before[name])


def test_bfloat16_stays_near_float32(build, items):
    """Two decimal digits of each product; weights and gradients stay in float32."""
    model, batch = build(), pad_right([items[0]])
    wrapper = build_optim_wrapper(
        model, dict(type='grootv.BFloat16OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2))
    )
    exact = model(**batch, mode='loss')['loss'].item()
    with wrapper.optim_context(model):
        rough = model(**batch, mode='loss')['loss']
    assert rough.dtype == torch.float32 and rough.item() != exact
    assert rough.item() == pytest.approx(exact, rel=5e-2)
    rough.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


# Checkpoints -----------------------------------------------------------------------------------


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


# Runs of the tools -----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def whole(tmp_path_factory, folder):
    """A config, and the folder of its run from start to end."""
    place = tmp_path_factory.mktemp('whole')
    config = write_config(place, folder)
    assert run_tool('train.py', config, '--work-dir', place / 'run') == 0
    return config, place / 'run'


def test_run_learns_and_validates(whole):
    _, run = whole
    found = losses(run)
    assert sorted(found) == list(range(1, 13))
    assert sum(found[step] for step in (10, 11, 12)) < 0.9 * sum(found[step] for step in (1, 2, 3))
    perplexities = [record['perplexity'] for record in scalars(run) if 'perplexity' in record]
    assert len(perplexities) == 2 and perplexities[1] < perplexities[0]
    assert (run / 'best_perplexity_iter_12.pth').is_file()


def test_resumed_run_equals_a_whole_one(whole, tmp_path):
    config, run = whole
    stopped = run_tool('train.py', config, '--work-dir', tmp_path, options=('train_cfg.max_iters=8',))
    assert stopped == 0 and not (tmp_path / 'iter_12.pth').exists()
    assert run_tool('train.py', config, '--work-dir', tmp_path, '--resume') == 0
    found, expected = (torch.load(place / 'iter_12.pth', weights_only=False) for place in (tmp_path, run))
    exactly = dict(rtol=0, atol=0)
    torch.testing.assert_close(found['state_dict'], expected['state_dict'], **exactly)
    torch.testing.assert_close(found['optimizer']['state'], expected['optimizer']['state'], **exactly)


def test_commands_train_and_test_without_the_packages_of_other_tasks(folder, tmp_path):
    config = write_config(tmp_path, folder, settings='train_cfg = dict(max_iters=2, val_interval=2)')
    code = """
import runpy, sys
sys.modules.update(dict.fromkeys(('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'timm')))  # not installed
tools, *arguments = sys.argv[1:]
for name, sys.argv[1:] in (('train', arguments[:1]), ('test', arguments)):
    runpy.run_path(f'{tools}/{name}.py', run_name='__main__')
"""
    work = tmp_path / 'work_dirs/tiny'
    out = work / 'metrics.json'
    command = [sys.executable, '-c', code, ROOT / 'tools', config, work / 'iter_2.pth', '--out', out]
    run = subprocess.run(command, cwd=tmp_path, timeout=300, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    log = next(path for path in work.glob('*/vis_data/scalars.json') if 'perplexity' in path.read_text())
    (trained,) = [json.loads(line)['perplexity'] for line in log.open() if 'perplexity' in line]
    assert f'perplexity: {trained:.4f}' in run.stdout + run.stderr
    assert json.loads(out.read_text()) == dict(perplexity=pytest.approx(trained))


@pytest.mark.parametrize(
    ('option', 'sentence'),
    [
        ('model.pretrained=none', 'language model none does not exist'),
        ('train_dataloader.dataset.tokenizer=none', 'tokenizer none does not exist'),
        ('train_dataloader.dataset.ann_file=none.json', 'none.json does not exist'),
        ('model.lora.target_modules=[nothing]', 'nothing'),
        ('model.tree.reach=0', 'reach is the span of an edge in tokens, at least 1, got 0'),
        ('train_dataloader.dataset.max_length=9', 'a prompt leaves room for an answer'),
        ('train_dataloader.dataset.tokenizer={larger}', 'ids of tokens are 0 to'),
    ],
)
def test_config_that_cannot_run_is_reported_in_a_sentence(folder, tmp_path, capsys, option, sentence):
    config = write_config(tmp_path, folder)
    if '{larger}' in option:
        tokenizer = adapted_model(folder).tokenizer
        tokenizer.add_tokens(['Tell me'])
        tokenizer.save_pretrained(tmp_path / 'larger')
    options = (option.format(larger=tmp_path / 'larger'),)
    assert run_tool('train.py', config, '--work-dir', tmp_path / 'run', options=options) == 1
    error = capsys.readouterr().err
    assert sentence in error and 'Traceback' not in error
    # Missing files are reported before anything is built.
    assert 'does not exist' not in sentence or not (tmp_path / 'run').exists()


def test_missing_package_is_reported_in_a_sentence(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'peft', None)
    monkeypatch.delitem(sys.modules, 'grootv.language.fine_tuning')
    assert run_tool('train.py', ROOT / 'configs/language/grootl-130m_lora_alpaca.py') == 1
    error = capsys.readouterr().err
    assert 'imports what is not installed (import of peft halted' in error and 'Traceback' not in error
