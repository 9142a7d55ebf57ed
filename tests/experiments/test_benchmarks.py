"""The benchmarks from beginning to end, at tiny sizes."""

from itertools import count

import benchmark_model
import benchmark_ops
import benchmark_scaling
import benchmark_tokens
import measure
import pytest
import tables
import torch


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a benchmark with instant figures of memory; its rows and page."""
    sizes = count(2**20, 2**20)
    monkeypatch.setattr(measure, 'peak_memory', lambda *_, **__: next(sizes))

    def run_benchmark(script, *arguments: str):
        path = tmp_path / 'new/found.jsonl'
        script.main(['--quick', '--out', str(path), *arguments])
        page = tables.write(path)[0].read_text()
        assert 'A quick run' in page
        return measure.read(path)[1], page

    return run_benchmark


def test_operators(run, monkeypatch):
    shapes = [((2, 5, 6, 8), torch.float32, 2.5, 2.5), ((1, 5, 6, 8), torch.bfloat16, 2.5, None)]
    monkeypatch.setattr(benchmark_ops, 'SCANS', dict(cpu=shapes))
    monkeypatch.setattr(benchmark_ops, 'GROWTH', dict(cpu=((3, 6), 4)))
    monkeypatch.setattr(benchmark_ops, 'MAP', (5, 6, 8))
    rows, page = run(benchmark_ops)
    assert all(row['ms'] > 0 and row['value'] > 0 and row['verdict'] == 'none' for row in rows)
    for operator in ('build_tree', 'tree_scan_backward', 'selective_tree_scan', 'per vertex, 6x6'):
        assert operator in page


def test_networks(run):
    arguments = '--arch pico --peers test_convnext --batch 2 --input-size 48 --profile --deploy export'
    rows, page = run(benchmark_model, *arguments.split(), '--modes', 'forward', 'step')
    timed = [row for row in rows if 'ms' in row and row['network'] != 'grootv_narrow']
    assert len(timed) == 3 * 2 * 2 + 1 and all(row['finite'] for row in timed)
    profiles = [row for row in rows if 'parts_ms' in row]
    assert [row['mode'] for row in profiles] == ['forward', 'backward', 'forward']
    for row in profiles:
        assert sum(row['parts_ms'].values()) == pytest.approx(row['profiled_ms'], rel=0.01)
        forward = [row['parts_ms'][name] > 0 for name in (benchmark_model.TREE, benchmark_model.SCAN)]
        assert all(forward) == (row['mode'] == 'forward')
    assert 'grootv_pico, tree per stage' in page and '| grootv::build_tree' in page


def test_layers(run, monkeypatch):
    monkeypatch.setattr(benchmark_scaling, 'CHANNELS', 8)
    rows, page = run(benchmark_scaling, '--sides', '4', '8', '--limit', '0')
    assert [len(row.get('not_measured', ())) for row in rows[:4]] == [0, 3, 0, 3]
    assert 'raster scan: selective_tree_scan' in page
    assert 'Not measured at 8: tree scan, about 0 s a call' in page
    sides = {side: side**2 if 56 <= side <= 512 else 1e9 for side in (14, 56, 128, 512, 1024)}
    squares = [dict(side=side, ms=dict(layer=ms)) for side, ms in sides.items()]
    assert benchmark_scaling.exponent(squares, 'layer', 'ms') == pytest.approx(1)


def test_tokens(run, monkeypatch):
    monkeypatch.setattr(benchmark_tokens, 'CHANNELS', 8)
    monkeypatch.setattr(benchmark_tokens, 'WIDTH', 8)
    rows, page = run(benchmark_tokens, '--lengths', '4', '9')
    assert [len(row['us']) for row in rows if 'us' in row] == [6] * 4
    assert 'layer, chain and tree' in page
