import json
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, FUNCTIONS

from grootv.datasets.instructions import IGNORED, InstructionDataset, load_tokenizer, pad_right
from grootv.errors import UserError

from .tiny import END, ITEMS, write_items

BREAD = """\
Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
Tell me about bread.

### Input:
Be brief.

### Response:"""
RIVERS = """\
Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
Tell me about rivers.

### Response:"""


@pytest.fixture
def make(folder, tmp_path):
    """A data set of items, or of the text of its file."""

    def make(items=ITEMS, **options) -> InstructionDataset:
        write_items(tmp_path / 'items.json', items)
        return InstructionDataset('items.json', str(folder), str(tmp_path), **options)

    return make


@pytest.fixture
def decode(folder):
    return load_tokenizer(str(folder)).decode


def test_an_item_is_a_prompt_and_the_answer_to_learn(make, decode):
    data = make()
    assert len(data) == len(ITEMS)
    for item, prompt, answer in (
        (data[0], BREAD, 'A word on bread.'),
        (data[1], RIVERS, 'A word on rivers and more.'),
    ):
        ids, labels, context = item['input_ids'], item['labels'], item['context_length']
        assert decode(ids[:context]) == prompt
        assert decode(ids[context:]) == answer + END
        assert (labels[:context] == IGNORED).all()
        assert torch.equal(labels[context:], ids[context:])
        assert ids.dtype == labels.dtype == torch.int64


def test_an_item_without_input_needs_no_key_for_it(make):
    item = {key: text for key, text in ITEMS[1].items() if key != 'input'}
    assert torch.equal(make([item])[0]['input_ids'], make()[1]['input_ids'])


def test_braces_of_a_text_are_no_places_of_the_template(make, decode):
    item = make([dict(instruction='Write {input}', input='{output}', output='{}')])[0]
    assert 'Write {input}\n\n### Input:\n{output}\n' in decode(item['input_ids'])


def test_an_empty_answer_is_the_end_alone(make, decode):
    item = make([dict(ITEMS[0], output='')])[0]
    assert decode(item['labels'][item['context_length'] :]) == END


def test_a_long_item_loses_the_end_of_its_answer(make):
    whole = make()[0]
    context = whole['context_length']
    for max_length in (context + 1, len(whole['input_ids']) - 1, len(whole['input_ids'])):
        item = make(ITEMS[:1], max_length=max_length)[0]
        assert item['context_length'] == context
        assert torch.equal(item['input_ids'], whole['input_ids'][:max_length])
        assert torch.equal(item['labels'], whole['labels'][:max_length])
    with pytest.raises(UserError, match='a prompt leaves room for an answer'):
        make(ITEMS[:1], max_length=context)


def test_the_first_items_or_the_last(make):
    whole = make()
    for indices, numbers in ((3, (0, 1, 2)), (-2, (6, 7)), (99, range(8))):
        part = make(indices=indices)
        assert len(part) == len(numbers)
        for item, number in zip(part, numbers, strict=False):
            assert torch.equal(item['input_ids'], whole[number]['input_ids'])


def test_padding_stands_at_the_end(make):
    items = [make()[0], make()[1]]
    batch = pad_right(items)
    long, short = (len(item['input_ids']) for item in items)
    assert batch['context_length'].tolist() == [item['context_length'] for item in items]
    assert batch['attention_mask'].tolist() == [[1] * long, [1] * short + [0] * (long - short)]
    for key in ('input_ids', 'labels'):
        assert torch.equal(batch[key][0], items[0][key])
        assert torch.equal(batch[key][1, :short], items[1][key])
    assert (batch['labels'][1, short:] == IGNORED).all()


@pytest.mark.parametrize(
    ('items', 'sentence'),
    [
        ({}, 'holds a list of items, got a dict'),
        ([], 'has no item'),
        ([ITEMS[0], 'text'], 'item 1 (from 0): an item has instruction, input and output, got a str'),
        ([{}], 'item 0 (from 0): an item has an instruction, got an empty one'),
        ([dict(instruction='a', input='')], 'item 0 (from 0): an item has an output, got instruction, input'),
        ([dict(output='a', input='')], 'item 0 (from 0): an item has an instruction, got output, input'),
        ([dict(instruction='a', output=3)], 'item 0 (from 0): output is a text, got 3'),
        ([dict(instruction='a', input=None, output='b')], 'item 0 (from 0): input is a text, got None'),
        (
            [ITEMS[0], dict(ITEMS[0], instruction='word ' * 99)],
            'item 1 (from 0): a prompt leaves room for an answer, got',
        ),
    ],
)
def test_a_file_of_another_form_is_told(make, tmp_path, items, sentence):
    with pytest.raises(UserError) as caught:
        make(items, max_length=90)
    assert f'InstructionDataset: {tmp_path}/items.json' in str(caught.value)
    assert sentence in str(caught.value)


@pytest.mark.parametrize('content', [b'[{"instruction": "a"', b'\xff\xfe\x00', b''])
def test_a_file_that_is_no_json_is_told(folder, tmp_path, content):
    (tmp_path / 'items.json').write_bytes(content)
    with pytest.raises(UserError, match=r'items\.json is no JSON'):
        InstructionDataset('items.json', str(folder), str(tmp_path))


def test_a_missing_file_and_a_missing_room_are_told(folder, tmp_path):
    with pytest.raises(UserError, match=r'none\.json does not exist'):
        InstructionDataset('none.json', str(folder), str(tmp_path))
    with pytest.raises(UserError, match='max_length is at least 2, got 1'):
        InstructionDataset('none.json', str(folder), str(tmp_path), max_length=1)


def test_a_tokenizer_without_end_and_a_folder_without_tokenizer_are_told(folder, tmp_path):
    with pytest.raises(UserError, match=r'tokenizer .*none does not exist'):
        load_tokenizer(str(tmp_path / 'none'))
    with pytest.raises(UserError, match=r'tokenizer .* cannot be read'):
        load_tokenizer(str(tmp_path))
    settings = json.loads((folder / 'tokenizer_config.json').read_text())
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps({**settings, 'eos_token': None}))
    (tmp_path / 'tokenizer.json').write_bytes((folder / 'tokenizer.json').read_bytes())
    with pytest.raises(UserError, match='has no end-of-text token'):
        load_tokenizer(str(tmp_path))


def test_a_config_names_them(folder, tmp_path):
    write_items(tmp_path / 'items.json')
    config = Config(dict(type='grootv.InstructionDataset', ann_file='items.json', data_root=str(tmp_path)))
    assert len(DATASETS.build(dict(config, tokenizer=str(folder)))) == len(ITEMS)
    assert FUNCTIONS.get('grootv.pad_right') is pad_right


def test_the_other_tasks_are_not_needed():
    code = """
import sys
others = ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'timm')
sys.modules.update(dict.fromkeys(others))  # not installed
import grootv.datasets.instructions, grootv.engine, grootv.evaluation, grootv.models.language.fine_tuning
from mmengine.registry import DATASETS, FUNCTIONS, METRICS, MODELS
assert MODELS.get('grootv.LanguageModel') and DATASETS.get('grootv.InstructionDataset')
assert METRICS.get('grootv.Perplexity') and FUNCTIONS.get('grootv.pad_right')
"""
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120)


def test_the_other_tasks_do_not_need_this_one():
    code = """
import sys
sys.modules.update(dict.fromkeys(('transformers', 'peft', 'tokenizers', 'lm_eval')))  # not installed
import grootv.datasets.transforms, grootv.engine, grootv.evaluation, grootv.models.backbones, grootv.cli
from mmengine.registry import METRICS, MODELS, TRANSFORMS
assert MODELS.get('grootv.GrootV') and TRANSFORMS.get('grootv.LoadImageFromFile')
assert METRICS.get('grootv.Perplexity')
"""
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120)
