import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tools.tiny_run import run_tool

SIZES = ('--vocabulary', 300, '--layers', 1, '--width', 16, '--states', 4)
TEXT = 'the thistle that thrives there ' * 20


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / 'texts.json'
    path.write_text(json.dumps([dict(text=TEXT)]))
    return path


def new_model(*arguments: object) -> int:
    return run_tool('language/new_model.py', *arguments)


def test_the_folder_is_one_of_transformers(texts, tmp_path, capsys):
    assert new_model(texts, tmp_path / 'a/model', *SIZES) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / 'a/model')
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.state_size) == (1, 16, 4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / 'a/model')
    assert config.vocab_size == len(tokenizer) <= 300
    assert tokenizer.eos_token_id == config.eos_token_id == 0
    tokens = tokenizer(TEXT).input_ids
    assert len(tokens) < len(TEXT) / 3
    told = capsys.readouterr().out
    assert f'{model.num_parameters():,} parameters' in told and f'have {len(tokens)} tokens' in told


def test_any_text_has_tokens_and_comes_back(texts, tmp_path):
    new_model(texts, tmp_path / 'model', *SIZES)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / 'model')
    text = '  Unseen: Größe, 木\n\tand "quotes"'
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_seed_alone_decides_the_weights(texts, tmp_path):
    for name, seed in (('a', 1), ('b', 1), ('c', 2)):
        new_model(texts, tmp_path / name, *SIZES, '--seed', seed)
    a, b, c = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in 'abc')
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_bad_input_is_told(texts, tmp_path, capsys):
    assert new_model(texts, tmp_path / 'model', '--vocabulary', 256) == 1
    assert '256 bytes and end-of-text make 257, got 256' in capsys.readouterr().err
    assert new_model(texts, tmp_path) == 1
    assert 'is there already: remove it, or give another folder' in capsys.readouterr().err
    texts.write_text('[{"title": "a"}]')
    assert new_model(texts, tmp_path / 'model') == 1
    assert f'{texts} is a JSON list of objects with a text' in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ['texts.json']
