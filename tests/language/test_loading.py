import json
import socket
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MambaForCausalLM

from grootv.errors import UserError
from grootv.language import TreeMambaMixer, load_language_model, use_tree_scan

from .tiny import mamba, tokens, tree_mamba


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


def test_saved_folder_remembers_its_tree(tmp_path):
    model, ids, sizes = tree_mamba(scale=0.7, reach=2, causal=True), tokens(2, 9), torch.tensor([9, 4])
    model.save_pretrained(tmp_path)
    loaded, tokenizer = load_language_model(tmp_path)
    assert tokenizer is None and not loaded.training
    assert settings(loaded) == {(0.7, 2, True)}
    assert torch.equal(loaded(ids, context_length=sizes).logits, model(ids, context_length=sizes).logits)
    changed, _ = load_language_model(tmp_path, scale=0.3, causal=False, context_rule='minimum')
    assert settings(changed) == {(0.3, 2, False)}
    assert changed.backbone.context_rule == 'minimum'


def test_saved_folder_is_a_plain_mamba_to_transformers(tmp_path):
    model, ids = tree_mamba(), tokens(1, 9)
    logits = model(ids).logits
    model.save_pretrained(tmp_path / 'whole')
    model.backbone.save_pretrained(tmp_path / 'headless')
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / 'whole')
    assert type(plain) is MambaForCausalLM and plain.config.architectures == ['MambaForCausalLM']
    assert torch.allclose(plain(ids).logits, use_tree_scan(model, scale=0)(ids).logits, atol=1e-5)
    config = json.loads((tmp_path / 'headless/config.json').read_text())
    assert config['architectures'] == ['MambaModel']
    assert torch.equal(load_language_model(tmp_path / 'headless')[0](ids).logits, logits)


@pytest.mark.parametrize('longest', [None, 20])
def test_tokenizer_states_the_context_window(folder, tmp_path, longest):
    mamba().save_pretrained(tmp_path)
    given = {} if longest is None else dict(model_max_length=longest)
    AutoTokenizer.from_pretrained(folder, **given).save_pretrained(tmp_path)
    model, tokenizer = load_language_model(tmp_path)
    assert settings(model) == {(0.3, 3, False)}  # the published tree
    assert tokenizer.decode(tokenizer('bread').input_ids) == 'bread'
    assert getattr(model.config, 'max_position_embeddings', None) == longest


class Payload:
    def __reduce__(self):
        return exec, ('import pathlib; pathlib.Path("ran").touch()',)


CONFIG, WEIGHTS = 'config.json', 'model.safetensors'
RUNS = {  # a tokenizer whose class is code of the folder
    'tokenizer_config.json': '{"auto_map": {"AutoTokenizer": ["its.Own", null]}}',
    'its.py': 'import pathlib; pathlib.Path("ran").touch()',
}


def pickle_code(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({'backbone.norm_f.weight': Payload()}, folder / 'pytorch_model.bin')


def change_norm(folder: Path, **norm: torch.Tensor) -> None:
    weights = load_file(folder / WEIGHTS)
    weights.pop('backbone.norm_f.weight')
    save_file(weights | {f'backbone.norm_f.{name}': value for name, value in norm.items()}, folder / WEIGHTS)


def write(texts: dict[str, str], folder: Path) -> None:
    for name, text in texts.items():
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ('spoil', 'sentence'),
    [
        (lambda folder: (folder / CONFIG).unlink(), 'has no config.json'),
        (lambda folder: (folder / WEIGHTS).unlink(), 'cannot be read'),
        (partial(write, {CONFIG: '{"model_type": "gpt2"}'}), 'is not a Mamba, but of type gpt2'),
        (change_norm, 'lacks weights: backbone.norm_f.weight'),
        (partial(change_norm, weight=torch.zeros(3)), 'cannot be read'),
        (pickle_code, 'cannot be read'),
        (partial(write, {'tokenizer.json': '{}'}), 'cannot be read'),
        (partial(write, RUNS), 'cannot be read'),
    ],
)
def test_folder_that_is_no_mamba_raises_one_sentence(tmp_path, monkeypatch, spoil, sentence):
    folder = tmp_path / 'model'
    mamba().save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    spoil(folder)
    with pytest.raises(UserError, match=f'(language model|tokenizer) {folder} {sentence}') as error:
        load_language_model(folder)
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'ran').exists()
    with pytest.raises(UserError, match=f'language model {tmp_path}/none does not exist'):
        load_language_model(tmp_path / 'none')


def test_code_and_kernels_of_a_folder_are_left_alone(tmp_path, monkeypatch):
    folder = tmp_path / 'model'
    mamba().save_pretrained(folder)
    (folder / 'custom_generate').mkdir()
    (folder / 'custom_generate/generate.py').write_text(RUNS['its.py'] + '\ndef generate(model): pass')
    config = json.loads((folder / CONFIG).read_text())
    hooks = dict(_attn_implementation='kernels-community/attention', auto_map=dict(AutoConfig='its.Own'))
    hooks |= dict(attn_implementation=hooks['_attn_implementation'])
    write({CONFIG: json.dumps(config | hooks), 'its.py': RUNS['its.py']}, folder)
    kernels = []

    def record(name: str, **_options) -> None:
        kernels.append(name)

    monkeypatch.setattr('transformers.modeling_utils.lazy_import_flash_attention', record)
    monkeypatch.chdir(tmp_path)
    model, _ = load_language_model(folder)
    assert model.generate(tokens(1, 4), max_new_tokens=2).shape == (1, 6)
    assert not kernels and not (tmp_path / 'ran').exists()
