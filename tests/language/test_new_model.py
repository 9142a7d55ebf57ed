import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tools.tiny_run import run_tool

TOOL = 'language/new_model.py'
SIZES = ('--vocabulary', 300, '--layers', 1, '--width', 16, '--states', 4)
TEXT = 'the thistle that thrives there ' * 20


def write_texts(folder):
    path = folder / 'texts.json'
    path.write_text(json.dumps([dict(text=TEXT)]))
    return path


def test_folder_is_one_of_transformers_and_the_seed_decides_its_weights(tmp_path, capsys):
    texts = write_texts(tmp_path)
    for name, seed in (('a', 1), ('b', 1), ('c', 2)):
        assert run_tool(TOOL, texts, tmp_path / 'new' / name, *SIZES, '--seed', seed) == 0
    output = capsys.readouterr().out
    model, same, other = (AutoModelForCausalLM.from_pretrained(tmp_path / 'new' / name) for name in 'abc')
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.state_size) == (1, 16, 4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / 'new/a')
    assert config.vocab_size == len(tokenizer) <= 300
    assert tokenizer.eos_token_id == config.eos_token_id == 0
    tokens = tokenizer(TEXT).input_ids
    assert len(tokens) < len(TEXT) / 3
    assert f'{model.num_parameters():,} parameters' in output and f'have {len(tokens)} tokens' in output
    unseen = '  Unseen: Größe, 木\n\tand "quotes"'  # any text has tokens and comes back
    assert tokenizer.decode(tokenizer(unseen).input_ids) == unseen
    ids = torch.tensor([tokens[:9]])
    assert torch.equal(model(ids).logits, same(ids).logits)
    assert not torch.equal(model(ids).logits, other(ids).logits)


def test_bad_input_is_reported(tmp_path, capsys):
    texts = write_texts(tmp_path)
    assert run_tool(TOOL, texts, tmp_path / 'model', '--vocabulary', 256) == 1
    assert '256 bytes and end-of-text make 257, got 256' in capsys.readouterr().err
    assert run_tool(TOOL, texts, tmp_path) == 1
    assert 'is there already: remove it, or give another folder' in capsys.readouterr().err
    texts.write_text('[{"title": "a"}]')
    assert run_tool(TOOL, texts, tmp_path / 'model') == 1
    assert f'{texts} is a JSON list of objects with a text' in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ['texts.json']
