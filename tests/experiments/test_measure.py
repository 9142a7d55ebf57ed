"""The helper of all experiments: command line, clock, memory, records, tables."""

import multiprocessing
import time

import measure
import pytest
import tables
import torch


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
    assert (about['kind'], about['device']) == ('ops', 'cpu')
    assert {'command', 'commit', 'date', 'processor', 'threads', 'versions', 'quick'} <= set(about)
    assert rows == [dict(name='slow', peer='scipy', value=2.5, target=2.0, verdict='missed')]
    verdicts = [record.judge('x', *pair)['verdict'] for pair in ((2, 2), (2, None), (None, 2))]
    assert verdicts == ['met', 'none', 'none']
    assert measure.Record('ops', None, quick=True).judge('x', 3.0, 2.0)['verdict'] == 'none'


def test_the_recorded_command_can_be_given_to_a_shell(monkeypatch):
    monkeypatch.setattr('sys.argv', ['/somewhere/a.py', '--arms', 'tree, edge', 'tree'])
    assert measure.machine('cpu')['command'] == "python experiments/a.py --arms 'tree, edge' tree"


@pytest.mark.parametrize(
    ('script', 'arguments', 'sentence'),
    [
        ('ops', '--out a.md', '--out takes a file that ends in .jsonl, got a.md'),
        ('model', '--out /dev/null/a/b.jsonl', 'a/b.jsonl: its folder cannot be made: Not a directory'),
        ('scaling', '--threads 0', 'argument --threads: must be 1 or more, got 0'),
        ('tokens', '--device cuda', 'sees no CUDA device'),
    ],
)
def test_bad_arguments_are_reported(script, arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit, match='2'):
        __import__(f'benchmark_{script}').main(arguments.split())
    assert sentence in capsys.readouterr().err


def test_peak_memory_counts_what_a_call_holds_at_once():
    found = measure.peak_memory(two_tensors, 'cpu', dict(count=1), count=2**23)
    assert abs(found - 2**26) < 2**22  # two tensors of 32 MiB
    assert 'TypeError' in measure.peak_memory(two_tensors, 'cpu', dict(name='other'))  # it says why


def two_tensors(device, count):
    return lambda: torch.ones(count, device=device).add(1)


def test_pages_are_made_from_their_records():
    assert len(tables.records()) >= 7
    for path in tables.records():
        assert tables.page_of(path).read_text() == tables.text(path), path


def fail_or_wait(seconds: float) -> float:
    if seconds < 0:
        raise ValueError(f'seconds are 0 or more, got {seconds}')
    time.sleep(seconds)
    return seconds


def test_runs_come_in_their_order_and_a_failure_ends_the_others():
    assert list(measure.in_processes(2, fail_or_wait, [(0.2,), (0.0,)])) == [0.2, 0.0]
    start = time.monotonic()
    with pytest.raises(ValueError, match='got -1'):
        list(measure.in_processes(2, fail_or_wait, [(-1,), (60,), (60,)]))
    assert time.monotonic() - start < 30 and not multiprocessing.active_children()
