"""The helper of all experiments: command line, clock, memory, records, tables."""

import subprocess
import sys
import time

import measure
import pytest
import torch

from tests.tools.tiny_run import ROOT


def test_calls_take_turns_until_rounds_and_budget_are_spent():
    order = []
    calls = {'one': lambda: order.append('one'), 'two': lambda: (order.append('two'), time.sleep(0.02))}
    turns = measure.take_turns(calls, rounds=3)
    assert [len(seconds) for seconds in turns.values()] == [3, 3]
    assert order[0] == 'one' and order[-1] == 'two' and min(turns['two']) >= 0.02
    assert measure.ratio([3.0, 6.0, 24.0], [1.0, 2.0, 8.0]) == 3  # a machine that slows down changes no ratio
    assert len(measure.take_turns({'sleep': lambda: time.sleep(0.02)}, rounds=1, budget=0.2)['sleep']) > 1


def test_rows_are_judged_rounded_and_written_as_they_come(tmp_path):
    record = measure.Record('ops', tmp_path / 'a.jsonl')
    record.judge('slow', 2.50041, 2.0, peer='scipy')
    about, rows = measure.read(tmp_path / 'a.jsonl')
    assert (
        about['kind'] == 'ops'
        and about['device'] == 'cpu'
        and about['versions']['torch'] == torch.__version__
    )
    assert {'command', 'commit', 'date', 'processor', 'threads', 'quick'} <= set(about)
    assert rows == [dict(name='slow', peer='scipy', value=2.5, target=2.0, verdict='missed')]
    verdicts = [
        record.judge('x', value, target)['verdict'] for value, target in ((2, 2), (2, None), (None, 2))
    ]
    assert verdicts == ['met', 'none', 'none']
    assert measure.Record('ops', None, quick=True).judge('x', 3.0, 2.0)['verdict'] == 'none'


@pytest.mark.parametrize(
    'script', ['benchmark_ops', 'benchmark_model', 'benchmark_scaling', 'benchmark_tokens']
)
@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (['--out', 'a.md'], '--out takes a file that ends in .jsonl, got a.md'),
        (
            ['--out', '/dev/null/a/b.jsonl'],
            '--out /dev/null/a/b.jsonl: its folder cannot be made: Not a directory',
        ),
        (['--threads', '0'], 'argument --threads: must be 1 or more, got 0'),
        (['--device', 'cuda'], 'sees no CUDA device'),
    ],
)
def test_bad_arguments_are_reported_before_anything_is_measured(
    script, arguments, sentence, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit, match='2'):
        __import__(script).main(arguments)
    assert sentence in capsys.readouterr().err


def test_operators_and_gpu_check_need_no_openmmlab():
    code = 'import sys; sys.modules |= dict.fromkeys(("mmengine", "mmcv", "timm", "rich", "matplotlib"))\n'
    code += 'import benchmark_ops, benchmark_tokens, gpu_check, grootv.ops; print(gpu_check.main([]))'
    command = [sys.executable, '-c', code]
    result = subprocess.run(command, cwd=ROOT / 'experiments', capture_output=True, text=True)
    assert result.stdout == ('2\n' if not torch.cuda.is_available() else result.stdout), result.stderr


def test_peak_memory_counts_what_a_call_holds_at_once():
    call = 'lambda: torch.ones(2**23).add(1)'  # two tensors of 32 MiB
    code = f'import measure, torch; print(measure.peak_of({call}, "cpu", measure.held_now("cpu")))'
    found = subprocess.check_output([sys.executable, '-c', code], cwd=ROOT / 'experiments', text=True)
    assert abs(int(found) - 2**26) < 2**22
    said = measure.peak_memory('benchmark_scaling', 'mixer_call', 'cpu', dict(name='convolution'))
    assert 'TypeError' in said  # a process that fails says why


def test_recorded_results_do_not_count_as_changes(tmp_path):
    def git(*words):
        identity = '-c', 'user.name=a', '-c', 'user.email=a@b'
        subprocess.run(['git', '-C', tmp_path, *identity, *words], check=True, capture_output=True)

    result, source = tmp_path / 'experiments/results/ops.jsonl', tmp_path / 'setup.py'
    result.parent.mkdir(parents=True)
    result.touch()
    source.touch()
    git('init')
    git('add', '.')
    git('commit', '-m', 'first')
    result.write_text('{}')
    clean = measure.commit(tmp_path)
    source.write_text('pass')
    assert len(clean) >= 7 and measure.commit(tmp_path) == f'{clean}-dirty'


def test_pages_are_made_from_their_records():
    import tables

    assert len(tables.records()) >= 7
    for path in tables.records():
        assert tables.page_of(path).read_text() == tables.text(path), path
