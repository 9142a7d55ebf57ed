import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer

from grootv.errors import UserError
from grootv.language.data import (
    IGNORED,
    InstructionDataset,
    TextDataset,
    pad_right,
    read_items,
    read_texts,
)

from .tiny import END, ITEMS, write_items

RIVERS = """\
Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
Tell me about rivers.

### Response:"""
BREAD = (
    RIVERS.replace('rivers', 'bread')
    .replace('a task. ', 'a task, paired with an input that provides further context. ')
    .replace('### Resp', '### Input:\nBe brief.\n\n### Resp')
)
TEXTS = [dict(text='Bread is made of flour.'), dict(text='Glass is made of sand, and bent while it is hot.')]


@pytest.fixture
def make(folder, tmp_path):
    """A data set of items, or of a file's bytes."""

    def make(items=ITEMS, kind=InstructionDataset, **options):
        content = items if isinstance(items, bytes) else json.dumps(items).encode()
        (tmp_path / 'items.json').write_bytes(content)
        return kind('items.json', str(folder), str(tmp_path), **options)

    return make


def test_item_is_a_prompt_and_the_answer_to_learn(make, folder):
    decode = AutoTokenizer.from_pretrained(folder).decode
    without_input = {key: text for key, text in ITEMS[1].items() if key != 'input'}
    braces = BREAD.replace('Tell me about bread.', 'Write {input}').replace('Be brief.', '{output}')
    expected = [
        (ITEMS[0], BREAD, 'A word on bread.'),
        (ITEMS[1], RIVERS, 'A word on rivers and more.'),
        (without_input, RIVERS, 'A word on rivers and more.'),
        (dict(instruction='Write {input}', input='{output}', output=''), braces, ''),
    ]
    data = make([given for given, *_ in expected])
    assert len(data) == 4
    for number, (_, prompt, answer) in enumerate(expected):
        ids, labels, context = (data[number][key] for key in ('input_ids', 'labels', 'context_length'))
        assert decode(ids[:context]) == prompt
        assert decode(ids[context:]) == answer + END
        assert (labels[:context] == IGNORED).all()
        assert torch.equal(labels[context:], ids[context:])
        assert ids.dtype == labels.dtype == torch.int64


def test_long_item_loses_the_end_of_its_answer(make):
    whole = make()[0]
    context = whole['context_length']
    for max_length in (context + 1, len(whole['input_ids']) - 1, len(whole['input_ids'])):
        item = make(ITEMS[:1], max_length=max_length)[0]
        assert item['context_length'] == context
        assert torch.equal(item['input_ids'], whole['input_ids'][:max_length])
        assert torch.equal(item['labels'], whole['labels'][:max_length])
    with pytest.raises(UserError, match=r'item 0 .from 0.: a prompt leaves room for an answer, got'):
        make(ITEMS[:1], max_length=context)


def test_indices_take_the_first_items_or_the_last(make):
    whole = make()
    for indices, numbers in ((3, (0, 1, 2)), (-2, (6, 7)), (99, range(8))):
        part = make(indices=indices)
        assert len(part) == len(numbers)
        for item, number in zip(part, numbers, strict=False):
            assert torch.equal(item['input_ids'], whole[number]['input_ids'])


def test_json_lines_are_read_as_a_list(make, tmp_path):
    whole, lines = make(), '\n'.join(map(json.dumps, ITEMS)).encode()
    for content in (lines, b'\xef\xbb\xbf' + lines.replace(b'\n', b'\r\n\r\n') + b'\n'):
        found = make(content)
        assert len(found) == len(ITEMS) and torch.equal(found[3]['labels'], whole[3]['labels'])
    (tmp_path / 'one.jsonl').write_bytes(lines.split(b'\n')[0])
    assert read_texts('a', write_items(tmp_path / 'list.json', TEXTS)) == [text['text'] for text in TEXTS]
    assert read_items('a', tmp_path / 'one.jsonl') == ITEMS[:1]
    with pytest.raises(UserError, match=r'items\.json, line 3, is no JSON: '):
        make(lines.replace(b'{"instruction": "Tell me about tides."', b'{"instruction" "Tell me'))


def test_published_prompt_has_no_preamble(make, folder):
    decode = AutoTokenizer.from_pretrained(folder).decode
    prompts = [
        decode(item['input_ids'][: item['context_length']]) for item in make(ITEMS[:2], preamble='none')
    ]
    assert prompts == [text[text.index('### Instruction') :] for text in (BREAD, RIVERS)]
    with pytest.raises(UserError, match="preamble is one of alpaca, none, got 'no'"):
        make(preamble='no')


def test_padding_follows_the_tokens(make):
    items = [make()[0], make()[1]]
    batch = pad_right(items)
    long, short = (len(item['input_ids']) for item in items)
    assert batch['context_length'].tolist() == [item['context_length'] for item in items]
    assert batch['attention_mask'].tolist() == [[1] * long, [1] * short + [0] * (long - short)]
    for key in ('input_ids', 'labels'):
        assert torch.equal(batch[key][0], items[0][key])
        assert torch.equal(batch[key][1, :short], items[1][key])
    assert (batch['labels'][1, short:] == IGNORED).all()


@pytest.mark.parametrize('length', [2, 3, 5, 1000])
def test_windows_predict_every_token_but_the_first_once(make, folder, length):
    dataset = make(TEXTS, TextDataset, length=length)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = (tokenizer(item['text']).input_ids for item in TEXTS)
    tokens = [token for text in texts for token in (*text, tokenizer.eos_token_id)]
    windows = [dataset[index] for index in range(len(dataset))]
    assert [token for window in windows for token in window['labels'][1:].tolist()] == tokens[1:]
    assert [window['input_ids'][0].item() for window in windows] == tokens[:-1][:: length - 1]
    assert all(torch.equal(window['input_ids'], window['labels']) for window in windows)
    assert max(len(window['labels']) for window in windows) <= length
    assert pad_right(windows)['context_length'].tolist() == len(windows) * [0]
    with pytest.raises(IndexError, match='items are 0 to'):
        dataset[len(dataset)]


@pytest.mark.parametrize(
    ('kind', 'items', 'sentence'),
    [
        (InstructionDataset, {}, 'holds a list of items, or one a line in a .jsonl, got a dict'),
        (InstructionDataset, 100000 * b'[', 'is no JSON'),
        (InstructionDataset, [], 'has no item'),
        (InstructionDataset, [ITEMS[0], 'a'], 'item 1 (from 0): an item has instruction, input and output,'),
        (InstructionDataset, [dict(instruction='a')], 'item 0 (from 0): an item has an output, got instruct'),
        (InstructionDataset, [dict(ITEMS[0], input=None)], 'item 0 (from 0): input is a text, got None'),
        (InstructionDataset, b'\xff\xfe\x00', 'is no JSON'),
        (TextDataset, [dict(text=3)], 'item 0 (from 0): an item has a text'),
        (TextDataset, ['a'], 'item 0 (from 0): an item has a text'),
        (TextDataset, [], 'has 0 tokens, nothing to predict'),
        (TextDataset, [dict(text='')], 'has 1 tokens, nothing to predict'),
    ],
)
def test_bad_files_are_reported(make, tmp_path, kind, items, sentence):
    with pytest.raises(UserError) as caught:
        make(items, kind)
    assert f'{kind.__name__}: {tmp_path}/items.json' in str(caught.value)
    assert sentence in str(caught.value)


def test_text_that_no_tokenizer_takes_is_reported(make):
    with pytest.raises(UserError, match='a text holds half a character, which no tokenizer takes'):
        make([dict(ITEMS[0], output='bread \ud800')])


def test_bad_options_are_reported(make, folder, tmp_path):
    with pytest.raises(UserError, match='max_length is a whole number of at least 2, got 1'):
        make(max_length=1)
    with pytest.raises(UserError, match='TextDataset: length is a whole number of at least 2, got 1'):
        make(TEXTS, TextDataset, length=1)
    for options in (dict(max_length=96.5), dict(max_length='96'), dict(indices='2x'), dict(indices=True)):
        (name,) = options
        with pytest.raises(UserError, match=f'InstructionDataset: {name} is a whole number'):
            make(**options)
    for options in (dict(preamble=['none']), dict(preamble={})):
        with pytest.raises(UserError, match='preamble is one of alpaca, none, got'):
            make(**options)
    with pytest.raises(UserError, match='data_root and ann_file are texts, got None'):
        InstructionDataset('items.json', str(folder), None)
    with pytest.raises(UserError, match=f'{tmp_path} cannot be read: Is a directory'):
        InstructionDataset('.', str(folder), str(tmp_path))
    with pytest.raises(UserError, match=r'none\.json does not exist'):
        InstructionDataset('none.json', str(folder), str(tmp_path))
    settings = json.loads((folder / 'tokenizer_config.json').read_text())
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps({**settings, 'eos_token': None}))
    (tmp_path / 'tokenizer.json').write_bytes((folder / 'tokenizer.json').read_bytes())
    with pytest.raises(UserError, match='has no end-of-text token'):
        TextDataset(str(write_items(tmp_path / 'texts.json', TEXTS)), str(tmp_path))


@pytest.mark.parametrize(
    ('missing', 'modules', 'code'),
    [
        (
            'mmdet mmseg transformers peft tokenizers lm_eval',
            'datasets.transforms models.backbones',
            "MODELS.get('grootv.GrootV') and TRANSFORMS.get('grootv.CheckSegLabels')",
        ),
        ('mmcv mmdet mmseg mmpretrain timm', 'language.fine_tuning', "MODELS.get('grootv.LanguageModel')"),
    ],
)
def test_tasks_do_not_need_the_packages_of_each_other(missing, modules, code):
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({missing.split()}))  # not installed
for name in 'engine cli {modules}'.split():
    importlib.import_module(f'grootv.{{name}}')
from mmengine.registry import MODELS, TRANSFORMS
assert {code}
"""
    subprocess.run([sys.executable, '-c', code], check=True, timeout=300)
