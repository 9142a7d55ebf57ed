import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, MambaForCausalLM

from grootv.datasets.instructions import InstructionDataset, load_tokenizer, pad_right
from grootv.models.language import load_language_model
from grootv.models.language.fine_tuning import LanguageModel
from tests.tools.tiny_run import run_tool

from .tiny import ITEMS, LORA, ROOT, write_config

TOOL = 'language/merge_lora.py'


@pytest.fixture(scope='module')
def trained(tmp_path_factory, folder):
    """A config, a checkpoint whose adapters are large, and its model."""
    place = tmp_path_factory.mktemp('trained')
    model = LanguageModel(str(folder), dict(scale=0.3), LORA)
    for name, parameter in model.named_parameters():
        if 'lora_' in name:
            nn.init.normal_(parameter, std=0.2)
    torch.save(dict(state_dict=model.state_dict()), place / 'model.pth')
    return write_config(place, folder), place / 'model.pth', model


@pytest.fixture(scope='module')
def merged(tmp_path_factory, trained):
    config, checkpoint, _ = trained
    place = tmp_path_factory.mktemp('merged') / 'new'
    assert run_tool(TOOL, config, checkpoint, place) == 0
    return place


@pytest.fixture(scope='module')
def batch(trained, folder):
    data = InstructionDataset('items.json', str(folder), str(trained[0].parent))
    return pad_right([data[0], data[1]])


def test_a_merged_folder_computes_what_the_adapters_did(trained, merged, batch, folder):
    """Sums of other order: 1e-5 of logits up to 10."""
    names = ('input_ids', 'attention_mask', 'context_length')
    with torch.no_grad():
        expected = trained[2](**batch)
        found = load_language_model(merged)[0](**{name: batch[name] for name in names}).logits
        before = load_language_model(folder)[0](**{name: batch[name] for name in names}).logits
    mask = batch['attention_mask'].bool()
    assert (found - expected)[mask].abs().max() < 1e-4
    assert (before - expected)[mask].abs().max() > 1


def test_transformers_alone_loads_it(merged, trained, batch):
    stock, info = MambaForCausalLM.from_pretrained(merged, output_loading_info=True)
    assert not any(info.values())
    assert type(stock) is MambaForCausalLM
    assert stock.config.architectures == ['MambaForCausalLM']
    # Without its tree, which only grootv builds.
    model = trained[2]
    scale = [m.scale for m in model.modules() if hasattr(m, 'reach')]
    mixers = [m for m in model.modules() if hasattr(m, 'reach')]
    try:
        for mixer in mixers:
            mixer.scale = 0.0
        with torch.no_grad():
            expected = model(**batch)
            found = stock(batch['input_ids'], attention_mask=batch['attention_mask']).logits
    finally:
        for mixer, before in zip(mixers, scale, strict=True):
            mixer.scale = before
    mask = batch['attention_mask'].bool()
    assert (found - expected)[mask].abs().max() < 1e-4


def test_the_output_layer_keeps_what_it_shared_with_the_embeddings(merged, folder):
    """The adapter of the embeddings is not one of the output layer."""
    before, after = (MambaForCausalLM.from_pretrained(place) for place in (folder, merged))
    assert before.config.tie_word_embeddings and not after.config.tie_word_embeddings
    assert torch.equal(after.lm_head.weight, before.lm_head.weight)
    assert not torch.equal(after.get_input_embeddings().weight, before.get_input_embeddings().weight)


def test_the_folder_remembers_tree_and_tokenizer(merged, folder):
    model, _ = load_language_model(merged)
    assert model.config.tree['scale'] == 0.3 and model.config.tree['reach'] == 3
    text = ITEMS[0]['output']
    assert AutoTokenizer.from_pretrained(merged)(text) == load_tokenizer(str(folder))(text)


def test_embeddings_without_adapter_stay_tied(folder):
    model = LanguageModel(str(folder), lora=dict(LORA, target_modules=['in_proj'])).merge()
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_a_model_without_adapters_is_saved_as_it_is(folder, batch, tmp_path):
    model = LanguageModel(str(folder))
    with torch.no_grad():
        assert torch.equal(model.merge()(batch['input_ids']).logits, model.model(batch['input_ids']).logits)


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (('{config}', 'none.pth', '{place}/new'), 'checkpoint none.pth does not exist'),
        (('{config}', '{checkpoint}', '{place}'), 'is there already: give a folder that is new or empty'),
        (
            (f'{ROOT}/configs/demo/grootv-pico_digits.py', '{checkpoint}', '{place}/new'),
            'has no grootv.LanguageModel',
        ),
        (('{config}', '{other}', '{place}/new'), 'checkpoint does not fit the model LanguageModel'),
    ],
)
def test_bad_input_is_told_in_a_sentence(trained, tmp_path, capsys, arguments, sentence):
    torch.save(dict(state_dict=dict(weight=torch.zeros(1))), tmp_path / 'other.pth')
    places = dict(config=trained[0], checkpoint=trained[1], place=tmp_path, other=tmp_path / 'other.pth')
    assert run_tool(TOOL, *(argument.format(**places) for argument in arguments)) == 1
    error = capsys.readouterr().err
    assert sentence in error and 'Traceback' not in error
    assert not (tmp_path / 'new').exists()
