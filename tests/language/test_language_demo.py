import importlib
import json
import sys
from pathlib import Path

import pytest

from tests.tools.tiny_run import ROOT

RESULTS = ROOT / 'experiments/results'


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'demo'))
    yield importlib.import_module('train_language')
    for name in ('steps', 'train_language'):
        sys.modules.pop(name)


def test_runs_of_a_seed_differ_in_the_tree_alone(demo):
    seed = demo.Seed(2, Path('runs'), demo.Lengths())
    assert 'model.pretrained=runs/start' in seed.base.options
    assert len({run.work_dir for run in seed.runs.values()}) == len(seed.runs) == 6
    for task in ('continue', 'name'):
        runs = [run for (of, _), run in seed.runs.items() if of == task]
        assert {run.config for run in runs} == {f'configs/demo/language/grootl-pico_lora_{task}.py'}
        trees = [[option for option in run.options if 'model.tree' in option] for run in runs]
        assert trees == [['model.tree.scale=0.0'], ['model.tree.scale=0.3'], ['model.tree.causal=True']]
        others = [{*run.options} - {*tree} for run, tree in zip(runs, trees, strict=True)]
        assert others == 3 * [others[0]]
        assert {'model.pretrained=runs/mamba/model', 'randomness.seed=2'} < others[0]


def test_pages_show_the_committed_record(demo):
    record = json.loads((RESULTS / 'language_demo.json').read_text())
    assert (RESULTS / 'language_demo.md').read_text() == demo.page(record)
    assert demo.table(record['seeds']) in (ROOT / 'docs/language.md').read_text()
