import pytest
import torch
from transformers import AutoTokenizer, MambaForCausalLM

from grootv.errors import UserError
from grootv.language import load_language_model
from grootv.language.data import InstructionDataset, pad_right
from grootv.language.fine_tuning import LanguageModel
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


SHARED = [
    dict(target_modules=['lm_head']),
    dict(target_modules=['lm_head', 'embeddings', 'in_proj']),
    dict(target_modules=['embeddings'], use_dora=True),
    dict(target_modules=['in_proj'], modules_to_save=['lm_head']),
    dict(target_modules=['in_proj'], trainable_token_indices={'embeddings': [1, 7]}),
]


def changed_model(folder, lora, **options):
    """A model whose trained parameters are not those that it began with."""
    model = adapted_model(folder, dict(LORA, **lora), **options).eval()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and 'lora_' not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@torch.no_grad()
@pytest.mark.parametrize('lora', SHARED)
def test_adapters_of_shared_weights_compute_the_same_once_merged(folder, tmp_path, lora):
    model, ids, sizes = changed_model(folder, lora), torch.randint(1, 200, (2, 9)), torch.tensor([4, 5])
    expected = model(ids, ids, torch.ones_like(ids), sizes)
    model.merge().save_pretrained(tmp_path)
    found = load_language_model(tmp_path)[0](ids, context_length=sizes).logits
    assert (found - expected).abs().max() < 1e-4
    assert (load_language_model(folder)[0](ids, context_length=sizes).logits - expected).abs().max() > 0.1


def test_output_layer_carries_the_adapter_of_the_embeddings_where_it_stays_tied(folder, tmp_path):
    """As peft merges the published run's adapters."""
    config = write_config(tmp_path, folder, 'model.update(keep_tied=True)')
    model = adapted_model(folder)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    with torch.no_grad():
        adapted = model.model.get_input_embeddings()(torch.arange(model.model.config.vocab_size))
    assert run_tool(TOOL, config, tmp_path / 'model.pth', tmp_path / 'new') == 0
    merged = MambaForCausalLM.from_pretrained(tmp_path / 'new')
    assert merged.config.tie_word_embeddings
    assert merged.lm_head.weight is merged.get_input_embeddings().weight
    torch.testing.assert_close(merged.lm_head.weight, adapted)
    copied = dict(target_modules=['in_proj'], modules_to_save=['embeddings'])
    model = changed_model(folder, copied).merge()
    assert not model.config.tie_word_embeddings
    tied = LanguageModel(str(folder), lora=copied, keep_tied=True).merge()
    assert tied.lm_head.weight is tied.get_input_embeddings().weight
    with pytest.raises(UserError, match='keep_tied is for an output layer without an adapter'):
        LanguageModel(str(folder), lora=dict(target_modules=['lm_head']), keep_tied=True)


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
