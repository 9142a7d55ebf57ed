"""The GPU check without a GPU: what it runs, and how a step ends."""

import sys

import gpu_check
import measure
import pytest
import torch


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert gpu_check.main(['--out', str(tmp_path / 'found.jsonl')]) == 2
    assert 'sees no CUDA device' in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Run the check with given steps in place of its own; exit status and rows."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'a GPU')

    def run_check(steps, *arguments):
        monkeypatch.setattr(gpu_check, 'steps', lambda folder, quick: steps(folder))
        status = gpu_check.main(['--out', str(tmp_path / 'found.jsonl'), *arguments])
        about, rows = measure.read(tmp_path / 'found.jsonl')
        assert about['device'] == 'a GPU'
        return status, rows

    return run_check


def test_steps_are_collected_in_one_record(check):
    def steps(folder):
        rows = '{"kind": "ops"}\n{"value": 2.5}\n'
        write = f'open({str(folder / "benchmark_ops.jsonl")!r}, "w").write({rows!r})'
        return dict(
            benchmark_ops=[sys.executable, '-c', write], benchmark_model='needs timm', tests=['false']
        )

    status, rows = check(steps)
    assert status == 1
    assert [(row['step'], row.get('status'), row.get('value')) for row in rows] == [
        ('benchmark_ops', 'passed', None),
        ('benchmark_ops', None, 2.5),
        ('benchmark_model', 'skipped: needs timm', None),
        ('tests', 'failed with status 1', None),
    ]
    assert check(steps, '--steps', 'benchmark_ops')[0] == 0


def test_a_step_that_hangs_is_ended(check):
    status, rows = check(lambda folder: dict(tests=['sleep', '60']), '--time-limit', '6')
    assert status == 1 and rows[0]['status'] == 'not finished within 6 s' and rows[0]['seconds'] < 30


def test_steps_name_what_they_need(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, 'sanitizer', lambda: None)
    monkeypatch.setattr(measure, 'version', lambda package: None)
    steps = gpu_check.steps(tmp_path, quick=True)
    assert steps['memcheck'] == 'compute-sanitizer not found'
    assert steps['benchmark_model'] == 'needs timm' and '--quick' in steps['benchmark_ops']
