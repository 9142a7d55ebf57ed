import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tools.tiny_run import run_tool

SIZES = ('--vocabulary', 300, '--layers', 1, '--width', 16, '--states', 4)
TEXT = 'the thistle that thrives there ' * 20


def test_new_model_loads_and_depends_on_its_seed_and_bad_input_is_reported(tmp_path, capsys):
    texts, new = tmp_path / 'texts.json', tmp_path / 'new'
    texts.write_text(json.dumps([dict(text=TEXT)]))

    def run(*arguments: object) -> int:
        return run_tool('language/new_model.py', texts, *arguments)

    for name, seed in (('a', 1), ('b', 1), ('c', 2)):
        assert run(new / name, *SIZES, '--seed', seed) == 0
    model, same, other = (AutoModelForCausalLM.from_pretrained(new / name) for name in 'abc')
    config, tokenizer = model.config, AutoTokenizer.from_pretrained(new / 'a')
    assert (config.num_hidden_layers, config.hidden_size, config.state_size) == (1, 16, 4)
    assert config.vocab_size == len(tokenizer) <= 300
    assert tokenizer.eos_token_id == config.eos_token_id == 0
    unseen = '  Unseen: Größe, 木\n\tand "quotes"'  # any text has tokens and comes back
    assert tokenizer.decode(tokenizer(unseen).input_ids) == unseen
    ids = torch.tensor([tokenizer(TEXT).input_ids])
    assert ids.shape[1] < len(TEXT) / 3
    assert f'have {ids.shape[1]} tokens' in capsys.readouterr().out
    assert torch.equal(model(ids).logits, same(ids).logits)
    assert not torch.equal(model(ids).logits, other(ids).logits)
    assert run(tmp_path / 'model', '--vocabulary', 256) == run(new) == 1
    error = capsys.readouterr().err
    assert '256 bytes and end-of-text make 257, got 256' in error
    assert 'is there already: remove it, or give another folder' in error
    texts.write_text('[{"title": "a"}]')
    assert run(tmp_path / 'model') == 1
    assert f'{texts}, item 0 (from 0): an item has a text' in capsys.readouterr().err
