import json
from pydoc_data.topics import topics as help_texts

import pytest

from tests.tools.tiny_run import load_tool, run_tool

TOOL = 'dataset_converters/topics.py'
topics = load_tool(TOOL)


@pytest.fixture(scope='module')
def content() -> dict[str, list[dict]]:
    return topics.records(help_texts)


def test_records_are_of_the_passages_of_their_side(content):
    assert len(content['texts_held-out']) > 100
    for side in ('train', 'held-out'):
        texts = [record['text'] for record in content[f'texts_{side}']]
        assert {record['input'] for record in content[f'name_{side}']} < set(texts)
        for text, record in zip(texts, content[f'continue_{side}'], strict=True):
            assert text.startswith(record['input']) and text.endswith(record['output'])
            assert text.split() == [*record['input'].split(), *record['output'].split()]


def test_questions_are_right_and_not_solved_by_place_or_frequency(content):
    topic = {record['text']: record['topic'] for record in content['texts_held-out']}
    trained = [record['topic'] for record in content['texts_train']]
    often = {title for title in trained if trained.count(title) >= 10}
    questions = content['choices']
    assert len(questions) == len(content['name_held-out']) > 90
    for question in questions:
        assert question['choices'][question['answer']] == topic[question['input']]
        assert len(set(question['choices'])) == 4 and often.issuperset(question['choices'])
    assert {record['output'] for record in content['name_train']} == often < set(trained)
    answers = [question['answer'] for question in questions]
    assert all(answers.count(place) > len(answers) / 8 for place in range(4))
    right = [max(q['choices'], key=trained.count) == q['choices'][q['answer']] for q in questions]
    assert sum(right) / len(right) < 0.4


def test_held_out_passage_that_shares_13_words_is_dropped():
    run = ' '.join(f'word{n}' for n in range(13))
    sides = topics.split(dict(title=[f'{start} {n}' for n in range(50) for start in (run, 'other')]))
    assert len(sides['train']) > 60
    assert {record['text'].split()[0] for record in sides['held-out']} == {'other'}


def test_folder_is_completed_once_and_foreign_files_are_left_alone(content, tmp_path, capsys):
    out = tmp_path / 'topics'
    for removed in ((), ('name_train.json',)):
        for name in removed:
            (out / name).unlink()
        assert run_tool(TOOL, out) == 0
        assert {path.stem: json.loads(path.read_text()) for path in out.iterdir()} == content
    (out / 'train.json').write_text('mine')
    assert run_tool(TOOL, out) == 1
    assert 'train.json' in capsys.readouterr().err and (out / 'train.json').read_text() == 'mine'
