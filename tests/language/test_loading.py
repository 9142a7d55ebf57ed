import json
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, MambaForCausalLM, MambaModel, PreTrainedTokenizerFast

from grootv.errors import UserError
from grootv.models.language import TreeMambaMixer, load_language_model, use_tree_scan

from .mambas import mamba, tokens, tree_mamba


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*arguments):
        raise AssertionError(f'a connection to {arguments[1:]}')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)


def settings(model) -> set[tuple]:
    layers = [module for module in model.modules() if isinstance(module, TreeMambaMixer)]
    assert len(layers) == 2
    return {(layer.scale, layer.reach, layer.causal) for layer in layers}


def test_a_saved_folder_remembers_its_tree(tmp_path):
    model, ids, sizes = tree_mamba(scale=0.7, reach=2, causal=True), tokens(2, 9), torch.tensor([9, 4])
    model.save_pretrained(tmp_path)
    loaded, tokenizer = load_language_model(tmp_path)
    assert tokenizer is None and not loaded.training
    assert settings(loaded) == {(0.7, 2, True)}
    assert torch.equal(loaded(ids, context_length=sizes).logits, model(ids, context_length=sizes).logits)
    changed, _ = load_language_model(tmp_path, scale=0.3, causal=False, context_rule='minimum')
    assert settings(changed) == {(0.3, 2, False)}
    assert changed.backbone.context_rule == 'minimum'


def test_a_plain_folder_gets_the_published_tree(tmp_path):
    mamba().save_pretrained(tmp_path, safe_serialization=False)
    assert settings(load_language_model(tmp_path)[0]) == {(0.3, 3, False)}


def test_a_saved_folder_is_a_plain_mamba_to_transformers(tmp_path):
    model = tree_mamba()
    model.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(plain) is MambaForCausalLM and plain.config.architectures == ['MambaForCausalLM']
    state = plain.state_dict()
    assert (
        all(torch.equal(state.pop(name), value) for name, value in model.state_dict().items()) and not state
    )
    ids = tokens(1, 9)
    assert torch.allclose(plain(ids).logits, use_tree_scan(model, scale=0)(ids).logits, atol=1e-5)


def test_a_saved_model_without_a_head_loads(tmp_path):
    model = tree_mamba()
    model.backbone.save_pretrained(tmp_path)
    assert json.loads((tmp_path / 'config.json').read_text())['architectures'] == [MambaModel.__name__]
    ids = tokens(1, 9)
    assert torch.equal(load_language_model(tmp_path)[0](ids).logits, model(ids).logits)


@pytest.mark.parametrize('longest', [None, 20])
def test_the_tokenizer_states_the_context_window(tmp_path, longest):
    mamba().save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({'a': 0, 'b': 1}, unk_token='a'))
    given = {} if longest is None else dict(model_max_length=longest)
    PreTrainedTokenizerFast(tokenizer_object=words, **given).save_pretrained(tmp_path)
    model, tokenizer = load_language_model(tmp_path)
    assert tokenizer('b').input_ids == [1]
    assert getattr(model.config, 'max_position_embeddings', None) == longest


class Payload:
    def __reduce__(self):
        return exec, ('import pathlib; pathlib.Path("ran").touch()',)


def not_there(folder):
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def without_config(folder):
    (folder / 'config.json').unlink()


def without_weights(folder):
    (folder / 'model.safetensors').unlink()


def another_type(folder):
    (folder / 'config.json').write_text('{"model_type": "gpt2"}')


def no_type(folder):
    (folder / 'config.json').write_text('{}')


def damaged_config(folder):
    (folder / 'config.json').write_text('{"model_type": ')


def damaged_weights(folder):
    (folder / 'model.safetensors').write_bytes(b'no weights')


def fewer_weights(folder):
    weights = load_file(folder / 'model.safetensors')
    del weights['backbone.norm_f.weight']
    save_file(weights, folder / 'model.safetensors', dict(format='pt'))


def other_shapes(folder):
    weights = load_file(folder / 'model.safetensors')
    weights['backbone.norm_f.weight'] = torch.zeros(3)
    save_file(weights, folder / 'model.safetensors', dict(format='pt'))


def code_in_weights(folder):
    without_weights(folder)
    torch.save({'backbone.norm_f.weight': Payload()}, folder / 'pytorch_model.bin')


def damaged_tokenizer(folder):
    (folder / 'tokenizer.json').write_text('{}')


def code_in_tokenizer(folder):
    (folder / 'tokenizer_config.json').write_text('{"auto_map": {"AutoTokenizer": ["its.Own", null]}}')
    (folder / 'its.py').write_text('import pathlib; pathlib.Path("ran").touch()')


@pytest.mark.parametrize(
    ('spoil', 'sentence'),
    [
        (not_there, 'does not exist'),
        (without_config, 'has no config.json'),
        (without_weights, 'cannot be read'),
        (another_type, 'is not a Mamba, but of type gpt2'),
        (no_type, 'is not a Mamba, but of type None'),
        (damaged_config, 'cannot be read'),
        (damaged_weights, 'cannot be read'),
        (fewer_weights, 'lacks weights: backbone.norm_f.weight'),
        (other_shapes, 'cannot be read'),
        (code_in_weights, 'cannot be read'),
        (damaged_tokenizer, 'cannot be read'),
        (code_in_tokenizer, 'cannot be read'),
    ],
)
def test_a_folder_that_is_no_mamba_ends_in_one_sentence(tmp_path, monkeypatch, spoil, sentence):
    folder = tmp_path / 'model'
    mamba().save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    spoil(folder)
    with pytest.raises(UserError, match=f'language model {folder} {sentence}') as error:
        load_language_model(folder)
    print(error.value)
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'ran').exists()
