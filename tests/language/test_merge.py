import pytest
import torch
from transformers import AutoTokenizer, MambaForCausalLM

from grootv.language import load_language_model
from grootv.language.data import InstructionDataset, pad_right
from tests.tools.tiny_run import run_tool

from .tiny import ITEMS, LORA, ROOT, adapted_model, write_config

TOOL = 'language/merge_lora.py'


@pytest.fixture(scope='module')
def trained(tmp_path_factory, folder):
    """A config, a checkpoint whose adapters are large, and its model."""
    place = tmp_path_factory.mktemp('trained')
    model = adapted_model(folder, scale=0.3)
    torch.save(dict(state_dict=model.state_dict()), place / 'model.pth')
    return write_config(place, folder), place / 'model.pth', model


@pytest.fixture(scope='module')
def merged(tmp_path_factory, trained):
    config, checkpoint, _ = trained
    place = tmp_path_factory.mktemp('merged') / 'new'
    assert run_tool(TOOL, config, checkpoint, place) == 0
    return place


@torch.no_grad()
def test_merged_folder_computes_what_the_adapters_did(trained, merged, folder):
    """Sums of other order: 1e-5 of logits up to 10."""
    data = InstructionDataset('items.json', str(folder), str(trained[0].parent))
    batch = pad_right([data[0], data[1]])
    given = {name: value for name, value in batch.items() if name != 'labels'}
    mask = batch['attention_mask'].bool()
    expected = trained[2](**batch)
    loaded, tokenizer = load_language_model(merged)
    assert (loaded(**given).logits - expected)[mask].abs().max() < 1e-4
    assert (load_language_model(folder)[0](**given).logits - expected)[mask].abs().max() > 1
    assert loaded.config.tree == dict(scale=0.3, reach=3, causal=False)
    text = ITEMS[0]['output']
    assert tokenizer(text) == AutoTokenizer.from_pretrained(folder)(text)
    _, info = MambaForCausalLM.from_pretrained(merged, output_loading_info=True)
    assert not any(info.values())


def test_output_layer_keeps_what_it_shared_with_the_embeddings_unless_they_have_no_adapter(merged, folder):
    before, after = (MambaForCausalLM.from_pretrained(place) for place in (folder, merged))
    assert before.config.tie_word_embeddings and not after.config.tie_word_embeddings
    assert torch.equal(after.lm_head.weight, before.lm_head.weight)
    assert not torch.equal(after.get_input_embeddings().weight, before.get_input_embeddings().weight)
    model = adapted_model(folder, dict(LORA, target_modules=['in_proj'])).merge()
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_bad_input_is_reported_in_a_sentence(trained, tmp_path, capsys):
    (config, checkpoint, _), new, other = trained, tmp_path / 'new', tmp_path / 'other.pth'
    torch.save(dict(state_dict=dict(weight=torch.zeros(1))), other)
    for arguments, sentence in (
        ((config, checkpoint, tmp_path), 'is there already: give a folder that is new or empty'),
        ((f'{ROOT}/configs/demo/grootv-pico_digits.py', checkpoint, new), 'has no grootv.LanguageModel'),
        ((config, other, new), 'checkpoint does not fit the model LanguageModel'),
    ):
        assert run_tool(TOOL, *arguments) == 1
        error = capsys.readouterr().err
        assert sentence in error and 'Traceback' not in error
    assert not new.exists()
