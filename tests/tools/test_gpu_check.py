"""The GPU check run dry, on the CPU: its report, its exit status, and that wrong results are found."""

import itertools
import json
import subprocess
import sys

import pytest
import torch

from grootv import ops
from tests.tools.tiny_run import ROOT, load_tool

SCRIPT = ROOT / 'tools/benchmarks/gpu_check.py'
gpu_check = load_tool('benchmarks/gpu_check.py')

from gpu_checks import sanitizer  # noqa: E402  (the script puts its folder on the path)
from gpu_checks.environment import Options  # noqa: E402
from gpu_checks.report import Report  # noqa: E402


def dry_run(out, *arguments: str) -> int:
    return gpu_check.main(['--dry-run', '--seed', '1', '--out', str(out), *arguments])


@pytest.fixture(scope='module')
def report(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp('gpu_check') / 'new' / 'report.json'
    assert dry_run(out) == 0
    return json.loads(out.read_text())


def test_report_names_machine_and_sections(report):
    assert set(report) == {
        *('date', 'commit', 'device', 'versions', 'libraries', 'seed', 'quick', 'dry_run'),
        *('sections', 'figures'),
    }
    assert report['device'] == {'name': 'cpu'}
    assert report['versions']['torch'] == torch.__version__
    assert report['libraries']['_cpu.so'] > 0
    assert report['seed'] == 1
    assert report['dry_run'] is True
    assert list(report['sections']) == list(gpu_check.SECTIONS)
    status = {name: section['status'] for name, section in report['sections'].items()}
    assert {name for name in status if status[name] == 'skipped'} == {'capture', 'sanitizer'}
    assert 'GPU' in report['sections']['capture']['skipped']
    assert 'failed' not in status.values()
    assert all(section['seconds'] >= 0 for section in report['sections'].values())


def test_every_figure_has_a_value_or_a_reason(report):
    for figure in report['figures']:
        assert (figure['value'] is None) == (figure['not_measured'] is not None), figure
        assert figure['name']
    measured = {figure['section'] for figure in report['figures'] if figure['value'] is not None}
    assert measured == {'device', 'parity', 'amp', 'figures', 'network'}


def test_a_dry_run_judges_results_and_no_speed(report):
    for figure in report['figures']:
        assert figure['holds'] is (True if figure['required'] else None), figure
    required = {figure['section'] for figure in report['figures'] if figure['required']}
    assert required == {'device', 'parity', 'amp'}


def test_every_operator_is_compared(report):
    names = ' '.join(figure['name'] for figure in report['figures'] if figure['section'] == 'parity')
    for operator in gpu_check.OPERATORS:
        assert operator.removesuffix('_backward') in names
    for dtype in ('float16', 'bfloat16', 'float32', 'float64'):
        assert f'tree_scan both gradient, {dtype}' in names


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert gpu_check.main(['--out', str(tmp_path / 'report.json')]) == 2
    assert 'sees no CUDA device' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_unknown_sections_list_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        gpu_check.main(['--sections', 'parity,speed'])
    assert stop.value.code == 2
    assert 'speed is none of device, parity' in capsys.readouterr().err


def test_an_inexact_scan_fails_parity(tmp_path, monkeypatch, capsys):
    scan = ops.tree_scan

    def inexact(input, *arguments):
        h = scan(input, *arguments)
        return h * 1.0001 if input.dtype == torch.float32 else h

    monkeypatch.setattr(ops, 'tree_scan', inexact)
    out = tmp_path / 'report.json'
    assert dry_run(out, '--sections', 'device,parity') == 1
    sections = json.loads(out.read_text())['sections']
    assert sections['device']['status'] == 'passed'
    assert any('tree_scan both, float32: 0.0001' in line for line in sections['parity']['failures'])
    assert not any('tree_scan both, float64' in line for line in sections['parity']['failures'])
    assert capsys.readouterr().out.endswith('gpu_check: failed: parity\n')


def test_another_tree_fails_parity(monkeypatch):
    grow, calls = ops.minimum_spanning_tree, itertools.count()

    def changing(*arguments):
        tree_edges = grow(*arguments)
        return tree_edges.flip(1) if next(calls) % 3 == 1 else tree_edges

    monkeypatch.setattr(ops, 'minimum_spanning_tree', changing)
    result = gpu_check.run_section('parity', Options('cpu', dry_run=True, seed=1))
    assert result.status == 'failed'
    failed = {line.split(':')[0] for line in result.reasons}
    assert failed == {'minimum_spanning_tree, exact', 'trees, same bits twice, exact'}


def test_an_error_in_an_operator_fails_its_cases_and_no_others(monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError('illegal memory access')

    monkeypatch.setattr(ops, 'selective_tree_scan', broken)
    result = gpu_check.run_section('parity', Options('cpu', dry_run=True, seed=1))
    assert result.status == 'failed'
    assert any('illegal memory access' in line for line in result.reasons)
    assert any(figure.name == 'tree_scan both, float32' and figure.holds for figure in result.figures)


def test_a_section_in_its_own_process_hands_its_figures_over():
    result = gpu_check.run_isolated('device', Options('cpu', dry_run=True, seconds=60))
    assert result.status == 'passed'
    assert [figure.value for figure in result.figures] == [0]


def test_a_section_that_does_not_end_is_ended():
    result = gpu_check.run_isolated('device', Options('cpu', dry_run=True, seconds=0.1))
    assert result.status == 'failed'
    assert result.reasons == ['not finished within 0.1 s']
    assert result.seconds < 10


def test_torch_and_a_bare_checkout_suffice(tmp_path):
    out = tmp_path / 'report.json'
    code = f"""
import runpy, sys
sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in str(finder).lower()]
for name in ('mmengine', 'mmpretrain', 'mmcv', 'timm', 'rich', 'numpy'):
    sys.modules[name] = None
sys.argv = ['gpu_check.py', '--dry-run', '--sections', 'device,amp,network', '--out', {str(out)!r}]
runpy.run_path({str(SCRIPT)!r}, run_name='__main__')
"""
    result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr + result.stdout
    report = json.loads(out.read_text())
    assert {section['status'] for section in report['sections'].values()} == {'passed'}
    notes = [figure['note'] for figure in report['figures'] if figure['section'] == 'amp']
    assert all('layers only' in note for note in notes)


@pytest.mark.parametrize(
    ('log', 'value', 'reason'),
    [
        ('========= ERROR SUMMARY: 0 errors', 0, None),
        ('========= Invalid __global__ write\n========= ERROR SUMMARY: 3 errors', 3, None),
        ('========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)', 2, None),
        ('========= Error: Device not supported\n========= ERROR SUMMARY: 1 error', None, 'not supported'),
        ('something else', None, 'no summary, exit status 0; last line: something else'),
    ],
)
def test_the_sanitizer_s_summary_is_read(log, value, reason):
    report = Report('sanitizer')
    sanitizer.judge(report, 'memcheck', 0, True, log, 10)
    figure = report.figures[0]
    assert figure.value == value
    assert reason is None or reason in figure.not_measured
    sanitizer.judge(report, 'synccheck', -9, False, log, 10)
    assert report.figures[-1].not_measured == 'not finished within 10 s'
