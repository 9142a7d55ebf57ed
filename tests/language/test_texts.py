import json

import pytest
import torch
from transformers import AutoTokenizer

from grootv.datasets.instructions import pad_right
from grootv.datasets.texts import TextDataset
from grootv.errors import UserError
from tests.tools.tiny_run import ROOT, losses, run_tool

TEXTS = ['Bread is made of flour.', 'Glass is made of sand, and bent while it is hot.']


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'texts.json'
    path.write_text(json.dumps([dict(text=text, topic='x') for text in TEXTS]))
    return path


@pytest.mark.parametrize('length', [2, 3, 5, 1000])
def test_windows_predict_every_token_but_the_first_once(file, folder, length):
    dataset = TextDataset(file.name, str(folder), data_root=str(file.parent), length=length)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = [token for text in TEXTS for token in (*tokenizer(text).input_ids, tokenizer.eos_token_id)]
    windows = [dataset[index] for index in range(len(dataset))]
    assert [token for window in windows for token in window['labels'][1:].tolist()] == tokens[1:]
    assert [window['input_ids'][0].item() for window in windows] == tokens[:-1][:: length - 1]
    assert all(torch.equal(window['input_ids'], window['labels']) for window in windows)
    assert max(len(window['labels']) for window in windows) <= length
    batch = pad_right(windows)
    assert batch['context_length'].tolist() == len(windows) * [0]
    with pytest.raises(IndexError, match='items are 0 to'):
        dataset[len(dataset)]


@pytest.mark.parametrize(
    ('content', 'length', 'sentence'),
    [
        ('[{"text": "a"}]', 1, 'TextDataset: length is at least 2, got 1'),
        ('[{"text": 3}]', 9, 'item 0 .from 0.: an item has a text'),
        ('["a"]', 9, 'item 0 .from 0.: an item has a text'),
        ('[]', 9, 'has 0 tokens, nothing to predict'),
        ('[{"text": ""}]', 9, 'has 1 tokens, nothing to predict'),
    ],
)
def test_bad_texts_are_told(file, folder, content, length, sentence):
    file.write_text(content)
    with pytest.raises(UserError, match=sentence):
        TextDataset(str(file), str(folder), length=length)


def test_the_demos_config_learns_texts(file, folder, tmp_path):
    sides = ('train', 'val')
    options = [f'{side}_dataloader.dataset.ann_file={file}' for side in sides]
    options += [f'{side}_dataloader.dataset.tokenizer={folder}' for side in sides]
    options += [f'{side}_dataloader.dataset.data_root=' for side in sides]
    options += [f'model.pretrained={folder}', 'train_cfg.max_iters=40', 'train_cfg.val_interval=40']
    options += ['default_hooks.logger.interval=1']
    config = ROOT / 'configs/demo/language/mamba-pico_topics.py'
    assert run_tool('train.py', config, '--work-dir', tmp_path / 'run', options=tuple(options)) == 0
    found = list(losses(tmp_path / 'run').values())
    assert found[-1] < 0.5 * found[0]
