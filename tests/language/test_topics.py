import json
from pydoc_data.topics import topics as help_texts

import pytest

from tests.tools.tiny_run import load_tool, run_tool

topics = load_tool('dataset_converters/topics.py')


@pytest.fixture(scope='module')
def content() -> dict[str, list[dict]]:
    return topics.records(help_texts)


def long(words: str) -> str:
    return ' '.join(f'{words}{n}' for n in range(60))


def test_no_passage_is_on_both_sides(content):
    train = ' '.join(' '.join(record['text'].split()) for record in content['texts_train'])
    assert len(content['texts_held-out']) > 100
    for record in content['texts_held-out']:
        words = record['text'].split()
        windows = (words[start : start + 13] for start in range(len(words) - 12))
        assert not any(' '.join(window) in train for window in windows)


def test_nothing_that_is_trained_on_is_made_of_a_held_out_passage(content):
    train = [record['text'] for record in content['texts_train']]
    assert {record['input'] for record in content['name_train']} < set(train)
    starts = [record['input'] for record in content['continue_train']]
    assert len(starts) == len(train)
    assert all(text.startswith(start) for text, start in zip(train, starts, strict=True))


def test_the_topics_that_are_asked_for_have_ten_passages_to_learn_from(content):
    topics_of = [record['topic'] for record in content['texts_train']]
    often = {topic for topic in topics_of if topics_of.count(topic) >= 10}
    assert 10 < len(often) < len(set(topics_of))
    for side in ('train', 'held-out'):
        named = {record['output'] for record in content[f'name_{side}']}
        assert named == often & {record['topic'] for record in content[f'texts_{side}']}
    assert {title for question in content['choices'] for title in question['choices']} <= often


def test_a_paragraph_of_two_topics_stays_in_the_shorter_one():
    shared, own = long('shared'), long('own')
    texts = dict(a=f'Title "A"\n***\n\n{shared}', b=f'Title B\n***\n\n{shared}\n\n{own}')
    assert topics.by_topic(texts) == {'Title A': [shared], 'Title B': [own]}


def test_a_long_paragraph_is_cut_between_its_lines():
    lines = [letter * 120 for letter in 'abcde']
    cut = list(topics.parts('\n'.join(lines)))
    assert cut == ['\n'.join(lines[:2]), '\n'.join(lines[2:4]), lines[4]]


def test_a_held_out_passage_that_shares_a_run_of_words_is_dropped():
    run = ' '.join(f'word{n}' for n in range(13))
    texts = [f'{run} {n}' for n in range(50)] + [f'other {n}' for n in range(50)]
    sides = topics.split(dict(title=texts))
    assert len(sides['train']) > 60
    assert {record['text'].split()[0] for record in sides['held-out']} == {'other'}


def test_a_passage_is_cut_in_the_middle_and_whole_again():
    text = 'one two three four'
    cut = topics.continuation(text)
    assert (cut['input'], cut['output']) == ('one two', 'three four')


def test_the_answer_of_a_question_is_the_topic_of_its_passage(content):
    topic = {record['text']: record['topic'] for record in content['texts_held-out']}
    trained = {record['topic'] for record in content['texts_train']}
    assert all(title[0].isalpha() for title in trained)  # no token of a prompt runs on into its answer
    questions = content['choices']
    assert len(questions) == len(content['name_held-out']) > 90
    for question in questions:
        assert question['choices'][question['answer']] == topic[question['input']]
        assert len(set(question['choices'])) == 4 and set(question['choices']) <= trained
    answers = [question['answer'] for question in questions]
    assert all(answers.count(place) > len(answers) / 8 for place in range(4))


def test_the_most_frequent_topic_is_no_good_guess(content):
    trained = [record['topic'] for record in content['texts_train']]
    right = [max(q['choices'], key=trained.count) == q['choices'][q['answer']] for q in content['choices']]
    assert sum(right) / len(right) < 0.4


def test_the_files_hold_the_records_and_a_second_call_writes_nothing(content, tmp_path, capsys):
    out = tmp_path / 'topics'
    assert run_tool('dataset_converters/topics.py', out) == 0
    assert f'{len(content["texts_train"])} passages' in capsys.readouterr().out
    assert {path.stem: json.loads(path.read_text()) for path in out.iterdir()} == content
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / 'name_train.json').unlink()
    assert run_tool('dataset_converters/topics.py', out) == 0
    assert {path.stem: json.loads(path.read_text()) for path in out.iterdir()} == content
    after = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run_tool('dataset_converters/topics.py', out) == 0
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == after != before


def test_a_folder_with_other_files_is_left_alone(tmp_path, capsys):
    (tmp_path / 'train.json').write_text('mine')
    assert run_tool('dataset_converters/topics.py', tmp_path) == 1
    assert 'train.json' in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ['mine']
