"""The GPU check without a GPU: what it runs, and how a step ends."""

import subprocess
import sys

import gpu_check
import measure
import torch

from tests.tools.tiny_run import ROOT


def test_operators_and_gpu_check_need_no_openmmlab():
    code = 'import sys; sys.modules |= dict.fromkeys(("mmengine", "mmcv", "timm", "rich", "matplotlib"))\n'
    code += 'import benchmark_ops, benchmark_tokens, gpu_check, grootv.ops; print("imported")'
    command = [sys.executable, '-c', code]
    result = subprocess.run(command, cwd=ROOT / 'experiments', capture_output=True, text=True)
    assert result.stdout == 'imported\n', result.stderr


def test_steps_are_collected_in_one_record(tmp_path, monkeypatch, capsys):
    out = tmp_path / 'found.jsonl'
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert gpu_check.main(['--out', str(out)]) == 2
    assert 'sees no CUDA device' in capsys.readouterr().err and not out.exists()
    assert '--quick' in gpu_check.steps(tmp_path, quick=True)['benchmark_ops']

    def steps(folder, quick):
        write = f'printf \'{{}}\\n{{"value": 2.5}}\\n\' > {folder}/benchmark_ops.jsonl'
        return dict(benchmark_ops=['sh', '-c', write], benchmark_model='needs timm', tests=['false'])

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'a GPU')
    monkeypatch.setattr(gpu_check, 'steps', steps)
    assert gpu_check.main(['--out', str(out)]) == 1
    about, rows = measure.read(out)
    assert about['device'] == 'a GPU'
    assert [(row['step'], row.get('status') or row['value']) for row in rows] == [
        ('benchmark_ops', 'passed'),
        ('benchmark_ops', 2.5),
        ('benchmark_model', 'skipped: needs timm'),
        ('tests', 'failed with status 1'),
    ]
    assert gpu_check.main(['--out', str(out), '--steps', 'benchmark_ops']) == 0
    assert gpu_check.run(['sleep', '60'], 0.1) == 'not finished within 0 s'
