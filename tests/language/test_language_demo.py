import importlib
import json
import os
import sys

import pytest
from PIL import Image

from tests.tools.tiny_run import ROOT

VARIANTS = ('no-tree', 'published-tree', 'causal-tree')
TREES = [['model.tree.scale=0.0'], ['model.tree.scale=0.3'], ['model.tree.causal=True']]
PERPLEXITY = {'continue-no-tree': 31.5, 'continue-published-tree': 30.25, 'continue-causal-tree': 30.5}
ACCURACY = {'mamba': 30.0, 'name-no-tree': 50.0, 'name-published-tree': 61.0, 'name-causal-tree': 55.0}
RESULTS = ROOT / 'experiments/results'


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """The demo below an empty folder, with tools that only write results: (its module, run, root)."""
    monkeypatch.syspath_prepend(str(ROOT / 'demo'))
    steps, language = importlib.import_module('steps'), importlib.import_module('train_language')
    calls: list[list[str]] = []

    def step(title: str, *command: object, show: str = '', label: str = '') -> None:
        tool, *rest = command = [str(part) for part in command]
        calls.append(command)
        assert (ROOT / tool).is_file()
        options = rest[rest.index('--cfg-options') + 1 :] if '--cfg-options' in rest else []
        if tool == 'tools/train.py':
            work_dir = tmp_path / rest[rest.index('--work-dir') + 1]
            seed = int(dict(option.split('=') for option in options)['randomness.seed'])
            value = PERPLEXITY.get(work_dir.name, 40) + seed
            records = [dict(loss=3.0, step=1), dict(loss=2.0, step=2), dict(perplexity=value, step=2)]
            (work_dir / '20300101/vis_data').mkdir(parents=True)
            lines = '\n'.join(map(json.dumps, records))
            (work_dir / '20300101/vis_data/scalars.json').write_text(lines)
            (work_dir / steps.Run(rest[0], options=tuple(options)).checkpoint.name).touch()
        elif tool == 'tools/language/merge_lora.py':
            (tmp_path / rest[2]).mkdir()
            (tmp_path / rest[2] / 'tokenizer.json').touch()
        elif tool == 'tools/language/new_model.py':
            (tmp_path / rest[1]).mkdir(parents=True)
        elif tool == 'tools/language/evaluate.py':
            models = [part for part in rest if part.endswith('/model')]
            figures = [dict(tasks=dict(topic=dict(value=ACCURACY[m.split('/')[-2]]))) for m in models]
            (tmp_path / rest[rest.index('--out') + 1]).write_text(json.dumps(dict(measured=figures)))

    def run(*arguments: str) -> list[list[str]]:
        """The commands of a run of the demo."""
        calls.clear()
        monkeypatch.setattr(sys, 'argv', ['train_language.py', *arguments])
        language.main()
        return list(calls)

    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    for module in (steps, language):
        monkeypatch.setattr(module, 'step', step)
        monkeypatch.setattr(module, 'ROOT', tmp_path)
    yield language, run, tmp_path
    for module in (steps, language):
        sys.modules.pop(module.__name__)


def test_demo_compares_three_seeds_and_the_tree_alone(demo, capsys):
    language, run, root = demo
    commands = run()
    folder = root / 'work_dirs/language'
    record = json.loads((folder / 'language_demo.json').read_text())
    assert record['command'] == 'make demo-language' and set(record['seeds']) == {'0', '1', '2'}
    assert record['seeds']['2']['published tree'] == dict(accuracy=61.0, perplexity=32.25)
    cells = [line.split('|')[1:-1] for line in language.table(record['seeds']).splitlines()]
    rows = {name.strip(): [cell.strip() for cell in row] for name, *row in cells}
    assert rows['no tree'] == ['32.50 ± 1.00', '50.00 ± 0.00'] and rows['not fine-tuned'][0] == ''
    page = (folder / 'language_demo.md').read_text()
    assert 'mean and standard deviation over 3 seeds' in page and '-1.25, -1.25, -1.25' in page
    assert language.table(record['seeds']) in page
    assert language.table(record['seeds']) in capsys.readouterr().out
    picture = Image.open(folder / 'language_demo.png').convert('L')
    assert picture.width > 900 and picture.getextrema()[0] < 50

    trainings = {command[3]: command for command in commands if command[0] == 'tools/train.py'}
    assert len(trainings) == 3 * (1 + 2 * len(VARIANTS))
    for seed in range(3):
        place = f'work_dirs/language/seed-{seed}'
        assert f'model.pretrained={place}/start' in trainings[f'{place}/mamba']
        for task in ('continue', 'name'):
            own = [trainings[f'{place}/{task}-{name}'] for name in VARIANTS]
            assert [[part for part in command if 'model.tree' in part] for command in own] == TREES
            first, *others = ([part for part in c if 'model.tree' not in part and c[3] != part] for c in own)
            assert others == [first, first]
            assert first[1] == f'configs/demo/language/grootl-pico_lora_{task}.py'
            assert {f'model.pretrained={place}/mamba/model', f'randomness.seed={seed}'} < set(first)


def test_second_call_makes_what_is_missing_or_too_old(demo):
    _, run, root = demo
    run('--short')
    folder = root / 'work_dirs/short-language'
    first = (folder / 'language_demo.md').read_text()
    assert [command[0] for command in run('--short')] == ['tools/dataset_converters/topics.py']
    assert (folder / 'language_demo.md').read_text() == first
    assert not (root / 'work_dirs/language').exists()
    os.utime(folder / 'seed-0/name-no-tree/model/tokenizer.json', (1, 1))
    assert [command[0] for command in run('--short')][1:] == ['tools/language/merge_lora.py']


def test_pages_show_the_committed_record(demo):
    language = demo[0]
    record = json.loads((RESULTS / 'language_demo.json').read_text())
    assert (RESULTS / 'language_demo.md').read_text() == language.page(record)
    assert language.table(record['seeds']) in (ROOT / 'docs/language.md').read_text()
