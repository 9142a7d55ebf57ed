import json
from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval.tasks import TaskManager
from lm_eval.tasks.race import preprocess_race as race
from mmengine.config import Config

from grootv.errors import UserError
from grootv.language import instruction_prompt
from grootv.language.lm_eval_model import GrootLM
from grootv.language.lm_eval_tasks import SETTINGS, race_as_published
from tests.tools.tiny_run import ROOT, load_tool, run_tool

TOOL, TASKS = 'language/evaluate.py', Path(lm_eval.tasks.__file__).parent
SEVEN = ROOT / 'configs/language/zero-shot.yml'
TOPICS = ROOT / 'configs/language/topics.yml'
CHOICES = dict(text=['salt', 'wool', 'glass', 'bees'], label=['A', 'B', 'C', 'D'])
PROBLEM = dict(question='What is it?', answer='C', options=CHOICES['text'])
ITEMS = {
    'piqa': dict(goal='Bake bread', sol1='Use flour.', sol2='Use sand.', label=0),
    'arc_easy': dict(question='Who makes honey?', choices=CHOICES, answerKey='D'),
    'sst2': dict(sentence='A fine film.', label=1, idx=0),
    'winogrande': dict(sentence='The _ is salt water.', option1='sea', option2='lake', answer='1'),
    'lambada_openai': dict(text='After the ebb comes the tide'),
    'race': dict(article='Wool comes from sheep.', problems=str([PROBLEM, PROBLEM])),
    'openbookqa': dict(question_stem='Sand becomes', choices=CHOICES, answerKey='C'),
}
QUESTION = dict(instruction='Which topic?', input='Dough rises.', choices=list('abcd'), answer=2)


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr('datasets.config.HF_DATASETS_CACHE', tmp_path / 'cache')


def write_lines(path: Path, items: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(map(json.dumps, items)))


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """Three items a task; one data set is a repository, whose other configuration has one item."""
    root = tmp_path_factory.mktemp('data')
    for name, task in Config.fromfile(SEVEN).tasks.items():
        if task.data != name:  # another task's
            continue
        write_lines(root / name / f'{task.split}.jsonl', 3 * [ITEMS[name]])
    (root / 'openbookqa/main').mkdir()
    (root / 'openbookqa/test.jsonl').rename(root / 'openbookqa/main/test.jsonl')
    write_lines(root / 'openbookqa/additional/test.jsonl', [ITEMS['openbookqa']])
    configs = [
        dict(config_name=name, data_files=[dict(split='test', path=f'{name}/test.jsonl')])
        for name in ('additional', 'main')
    ]
    (root / 'openbookqa/README.md').write_text(f'---\n{json.dumps(dict(configs=configs))}\n---\n')
    return root


def test_published_tasks_run_on_data_of_this_machine(folder, data, tmp_path, monkeypatch, capsys):
    contexts = set()
    forward = GrootLM._continuation_logits

    def record(self, batch):
        contexts.update(self.tok_decode(tokens[:length]) for tokens, length, _ in batch)
        return forward(self, batch)

    # The seven folders alone: lm-eval reads thousands of files to know all its tasks.
    folders = ('piqa', 'arc', 'glue/sst2', 'winogrande', 'lambada', 'race', 'openbookqa')
    own = TaskManager(include_defaults=False, include_path=[TASKS / name for name in folders])
    monkeypatch.setattr('lm_eval.tasks.TaskManager', lambda include_defaults: {True: own}[include_defaults])
    monkeypatch.setattr(GrootLM, '_continuation_logits', record)
    out = tmp_path / 'new/zero-shot.json'
    options = ('--causal', '--limit', 2, '--dtype', 'float16')
    assert run_tool(TOOL, folder, '--data-root', data, '--out', out, *options) == 0
    record = json.loads(out.read_text())
    (measured,) = record['measured']
    assert measured['tree'] == dict(scale=0.3, reach=3, causal=True)
    assert measured['tasks'].keys() == {*ITEMS, 'race_as_published'}
    for name, figures in measured['tasks'].items():
        assert figures['items'] == 2
        # Two equal items: all right or all wrong.
        assert figures['value'] > 1 if name == 'lambada_openai' else figures['value'] in (0, 100)
    assert contexts >= {'Question: Bake bread\nAnswer:', 'After the ebb comes the', 'The sea', 'The lake'}
    measured_part, published_part = out.with_suffix('.md').read_text().split('Published')
    assert 'GrootL' not in measured_part and '19.2' in published_part
    assert str(folder) in measured_part and str(folder) not in published_part
    assert measured_part in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ((), 'the data of task piqa are missing: {root}/piqa does not exist, put them there or give'),
        (('--tasks', 'squad'), '--tasks: squad is none of piqa, arc_easy, sst2'),
        (('--config', TOPICS), 'the data of task topic are missing: {root}/choices.json does not exist'),
        (('--tasks', 'race'), 'the data of task race cannot be read: {root}/race'),
        (('--tasks', 'sst2'), 'the data of task sst2 have no split validation, but train'),
    ],
)
def test_unusable_data_are_reported_before_a_model_is_loaded(arguments, sentence, tmp_path, capsys):
    (tmp_path / 'race').mkdir()
    write_lines(tmp_path / 'sst2/train.jsonl', [ITEMS['sst2']])
    assert run_tool(TOOL, 'no-model', '--data-root', tmp_path, *arguments) == 1
    assert sentence.format(root=tmp_path) in capsys.readouterr().err.splitlines()[-1]


def test_published_prompt_of_race_keeps_of_a_cloze_question_its_blank():
    questions = ('What is it?', 'Sheep give  _  .', 'Who knits?')
    problems = [dict(PROBLEM, question=question) for question in questions]
    item = dict(article='Wool comes from sheep.', problems=str(problems))
    start = 'Article: Wool comes from sheep.\n\nQuestion: What is it?\nAnswer: glass\n'
    assert race_as_published(item) == f'{start} _  .glass\nWho knits?'
    assert race.doc_to_text(item) == f'{start}Sheep give glass\nWho knits?'
    settings = SETTINGS['race_as_published']
    for name in ('doc_to_choice', 'doc_to_target'):
        assert settings[name](item) == getattr(race, name)(item)


@pytest.mark.parametrize('change', [dict(answer='a'), dict(answer=''), dict(options=list('ab')), None, 'x'])
def test_articles_that_are_not_those_of_race_are_reported(change):
    problems = str([PROBLEM, {**PROBLEM, **change}]) if isinstance(change, dict) else change
    with pytest.raises(UserError, match='RACE: problems of an article are a list of question, four options'):
        race_as_published(dict(article='Wool.', problems=problems))


def test_unknown_settings_are_reported(tmp_path, capsys):
    config = tmp_path / 'tasks.yml'
    config.write_text('tasks: {a: {data: a, split: test, metric: acc, settings: race}}')
    assert run_tool(TOOL, 'no-model', '--config', config) == 1
    assert "settings of task a: 'race' is none of race_as_published" in capsys.readouterr().err


def test_question_on_topics_is_asked_as_in_fine_tuning_and_its_label_is_right(tmp_path):
    write_lines(tmp_path / 'choices.json', [QUESTION])
    tool, config = load_tool(TOOL), Config.fromfile(TOPICS)
    data = {'topic': tool.data_of('topic', config.tasks.topic, tmp_path)}
    specification, manager = tool.lm_eval_tasks(config.tasks, data)
    task = manager.load(specification)['tasks']['topic']
    task.build_all_requests()
    prompt = instruction_prompt(QUESTION['instruction'], QUESTION['input'])
    assert [request.args for request in task.instances] == [(prompt, choice) for choice in 'abcd']
    (document,) = task.test_docs()
    for chosen in range(4):
        scores = [(float(place == chosen), False) for place in range(4)]
        assert task.process_results(document, scores)['acc'] == (chosen == 2)
