import importlib
import json
import os
import sys
from functools import partial

import pytest
from mmengine.config import Config
from PIL import Image

from tests.tools.tiny_run import ROOT

VARIANTS = ('no-tree', 'published-tree', 'causal-tree')
TASKS = ('continue', 'name')
PERPLEXITY = {'continue-no-tree': 31.5, 'continue-published-tree': 30.25, 'continue-causal-tree': 30.5}
ACCURACY = {'mamba': 30.0, 'name-no-tree': 50.0, 'name-published-tree': 61.0, 'name-causal-tree': 55.0}


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """The demo below an empty folder, with tools that only write results: (its module, commands, root)."""
    monkeypatch.syspath_prepend(str(ROOT / 'demo'))
    steps, language = importlib.import_module('steps'), importlib.import_module('train_language')
    calls: list[list[str]] = []

    def step(title: str, *command: object, show: str = '', label: str = '') -> None:
        command = [str(part) for part in command]
        calls.append(command)
        assert (ROOT / command[0]).is_file()
        tool = command[0].split('/')[-1]
        options = command[command.index('--cfg-options') + 1 :] if '--cfg-options' in command else []
        if tool == 'train.py':
            work_dir = tmp_path / command[command.index('--work-dir') + 1]
            seed = int(dict(option.split('=') for option in options)['randomness.seed'])
            value = PERPLEXITY.get(work_dir.name, 40) + seed
            records = [dict(loss=3.0, step=1), dict(loss=2.0, step=2), dict(perplexity=value, step=2)]
            (work_dir / '20300101/vis_data').mkdir(parents=True)
            lines = '\n'.join(map(json.dumps, records))
            (work_dir / '20300101/vis_data/scalars.json').write_text(lines)
            (work_dir / steps.Run(command[1], options=tuple(options)).checkpoint.name).touch()
        elif tool == 'merge_lora.py':
            assert not (tmp_path / command[3]).exists()
            (tmp_path / command[3]).mkdir()
            (tmp_path / command[3] / 'tokenizer.json').touch()
        elif tool == 'new_model.py':
            (tmp_path / command[2]).mkdir(parents=True)
        elif tool == 'evaluate.py':
            models = [part for part in command if part.endswith('/model')]
            figures = [dict(tasks=dict(topic=dict(value=ACCURACY[m.split('/')[-2]]))) for m in models]
            (tmp_path / command[command.index('--out') + 1]).write_text(json.dumps(dict(measured=figures)))

    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    for module in (steps, language):
        monkeypatch.setattr(module, 'step', step)
        monkeypatch.setattr(module, 'ROOT', tmp_path)
    yield language, calls, tmp_path
    for module in (steps, language):
        sys.modules.pop(module.__name__)


def run(demo, *arguments: str) -> list[list[str]]:
    """The commands of a run."""
    language, calls, _ = demo
    calls.clear()
    sys.argv[1:] = arguments
    language.main()
    return list(calls)


@pytest.fixture(autouse=True)
def _arguments(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['train_language.py'])


def test_three_seeds_are_compared(demo, capsys):
    run(demo)
    language, _, root = demo
    folder = root / 'work_dirs/language'
    record = json.loads((folder / 'language_demo.json').read_text())
    assert record['command'] == 'make demo-language'
    assert set(record['seeds']) == {'0', '1', '2'}
    assert record['seeds']['2']['published tree'] == dict(accuracy=61.0, perplexity=32.25)
    page = (folder / 'language_demo.md').read_text()
    table = language.table(record['seeds'])
    assert table in page and 'mean and standard deviation over 3 seeds' in page
    assert '| not fine-tuned |  | 30.00 ± 0.00 |' in table
    assert '| no tree | 32.50 ± 1.00 | 50.00 ± 0.00 |' in table
    assert '| causal tree | 31.50 ± 1.00 | 55.00 ± 0.00 |' in table
    assert '| published tree | -1.25, -1.25, -1.25 | +11.00, +11.00, +11.00 |' in page
    assert table in capsys.readouterr().out
    picture = Image.open(folder / 'language_demo.png').convert('L')
    assert picture.width > 900 and picture.getextrema()[0] < 50


def test_variants_differ_in_the_tree_alone_and_start_from_one_model(demo):
    trainings = {
        command[3].removeprefix('work_dirs/language/'): command
        for command in run(demo)
        if command[0] == 'tools/train.py'
    }
    assert len(trainings) == 3 * (1 + len(TASKS) * len(VARIANTS))
    for seed in range(3):
        assert f'model.pretrained=work_dirs/language/seed-{seed}/start' in trainings[f'seed-{seed}/mamba']
        for task in TASKS:
            trees, others = [], []
            for name in VARIANTS:
                command = trainings[f'seed-{seed}/{task}-{name}']
                assert command[1] == f'configs/demo/language/grootl-pico_lora_{task}.py'
                assert f'model.pretrained=work_dirs/language/seed-{seed}/mamba/model' in command
                assert f'randomness.seed={seed}' in command
                trees.append([part for part in command if part.startswith('model.tree.')])
                others.append(
                    [part for part in command if not part.startswith(('model.tree.', 'work_dirs/'))]
                )
            assert trees == [['model.tree.scale=0.0'], ['model.tree.scale=0.3'], ['model.tree.causal=True']]
            assert others[0] == others[1] == others[2]


def test_a_second_call_skips_what_is_done(demo, capsys):
    run(demo, '--short')
    first = (demo[2] / 'work_dirs/short-language/language_demo.md').read_text()
    assert [command[0].split('/')[-1] for command in run(demo, '--short')] == ['topics.py']
    assert (demo[2] / 'work_dirs/short-language/language_demo.md').read_text() == first
    assert not (demo[2] / 'work_dirs/language').exists()


def test_a_folder_that_is_not_whole_or_too_old_is_written_again(demo):
    run(demo, '--short')
    written_last = demo[2] / 'work_dirs/short-language/seed-0/name-no-tree/model/tokenizer.json'
    for spoil in (written_last.unlink, partial(os.utime, written_last, (1, 1))):
        spoil()
        commands = [command[0].split('/')[-1] for command in run(demo, '--short')]
        assert commands == ['topics.py', 'merge_lora.py']


def test_the_pages_show_the_committed_record(demo):
    language, results = demo[0], ROOT / 'experiments/results'
    record = json.loads((results / 'language_demo.json').read_text())
    assert (results / 'language_demo.md').read_text() == language.page(record)
    assert language.table(record['seeds']) in (ROOT / 'docs/language.md').read_text()


def test_what_is_held_out_is_never_trained_on():
    files = {
        'mamba-pico_topics': 'texts',
        'grootl-pico_lora_continue': 'continue',
        'grootl-pico_lora_name': 'name',
    }
    for name, kind in files.items():
        config = Config.fromfile(ROOT / f'configs/demo/language/{name}.py')
        assert config.train_dataloader.dataset.ann_file == f'{kind}_train.json'
        assert config.val_dataloader.dataset.ann_file == f'{kind}_held-out.json'
        assert config.test_dataloader == config.val_dataloader


@pytest.mark.parametrize('task', TASKS)
def test_fine_tuning_adapts_what_the_published_run_does(task):
    ours, published = (
        Config.fromfile(ROOT / f'configs/{name}.py').model
        for name in (f'demo/language/grootl-pico_lora_{task}', 'language/grootl-130m_lora_alpaca')
    )
    assert ours.lora == published.lora and ours.tree == published.tree
