import importlib.util
import json
import os
from pathlib import Path

import pytest

from tests.tools.tiny_run import ROOT


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """The demo below an empty folder, with tools that only write their results."""
    spec = importlib.util.spec_from_file_location('demo_tool', ROOT / 'demo/train_digits.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.calls = []

    def step(title: str, *command: object, show: str = '') -> None:
        module.calls.append(title)
        work_dir = tmp_path / module.WORK_DIR
        if title == 'Data':
            (tmp_path / module.IMAGE).mkdir(parents=True, exist_ok=True)
            (tmp_path / module.IMAGE / '0008.png').touch()
        if title == 'Training':
            (work_dir / '20300101').mkdir(parents=True)
            (work_dir / '20300101/20300101.log').touch()
            (tmp_path / module.CHECKPOINT).touch()
        if '--out' in command:
            out = tmp_path / command[command.index('--out') + 1]
            out.write_text(json.dumps({'accuracy/top1': 98.765}))

    monkeypatch.setattr(module, 'ROOT', tmp_path)
    monkeypatch.setattr(module, 'step', step)
    return module


STEPS = ['Data', 'Training', 'Evaluation', 'Curves', 'Confusion matrix', 'Spanning tree']


def test_a_second_call_skips_what_is_done_and_prints_the_same(demo, capsys):
    demo.main()
    assert demo.calls == STEPS
    first = capsys.readouterr().out
    assert '98.77 % top-1' in first and str(demo.CHECKPOINT) in first

    demo.calls.clear()
    demo.main()
    assert demo.calls == ['Data']
    assert first.strip() in capsys.readouterr().out


def test_results_older_than_the_checkpoint_are_made_again(demo):
    demo.main()
    demo.calls.clear()
    metrics = demo.ROOT / demo.WORK_DIR / 'metrics.json'
    os.utime(metrics, (1, 1))
    demo.main()
    assert demo.calls == ['Data', 'Evaluation']


def test_the_tools_it_starts_are_there():
    text = (ROOT / 'demo/train_digits.py').read_text()
    tools = {word.strip("'(),") for word in text.split() if word.strip("'(),").startswith('tools/')}
    assert len(tools) == 6
    for tool in tools:
        assert (ROOT / Path(tool)).is_file(), tool
