import os
import socket
import subprocess
import sys

import pytest
import torch

from grootv.checkpoint import load_checkpoint_file
from tests.tools.tiny_run import ROOT, write_config, write_images


def start(script: str, *args: object, **environment: str) -> subprocess.CompletedProcess:
    command = ['bash', str(ROOT / 'tools' / script), *map(str, args)]
    inherited = {'OMP_NUM_THREADS': '1', **os.environ, 'PYTHON': sys.executable}
    environment = {**inherited, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def srun(tmp_path):
    """Start a launcher with an srun on the PATH that writes its arguments, one a line; these."""
    script = tmp_path / 'bin/srun'
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\n')
    script.chmod(0o755)
    path = {'PATH': f'{script.parent}:{os.environ["PATH"]}', 'PYTHON': 'python'}

    def run(name: str, *args: object, **environment: str) -> list[str]:
        result = start(name, 'part', 'job', *args, **path, **environment)
        assert result.returncode == 0, result.stderr
        return (tmp_path / 'arguments').read_text().splitlines()

    return run


def test_slurm_train_passes_everything_on(tmp_path, srun):
    resources = {'GPUS': '16', 'CPUS_PER_TASK': '7', 'SRUN_ARGS': '--quotatype=spot --mem=9G'}
    work_dir = tmp_path / 'a folder'
    args = ('config.py', work_dir, '--resume', '--cfg-options', 'a.b=[1, 2]')
    found = srun('slurm_train.sh', *args, **resources)
    expected = '-p part --job-name=job --gres=gpu:8 --ntasks=16 --ntasks-per-node=8 --cpus-per-task=7 '
    expected += '--kill-on-bad-exit=1 --quotatype=spot --mem=9G python -u'
    tool = [f'{ROOT}/tools/train.py', 'config.py', f'--work-dir={work_dir}', '--launcher=slurm']
    assert found == [*expected.split(), *tool, '--resume', '--cfg-options', 'a.b=[1, 2]']


def test_slurm_test_takes_the_checkpoint_fourth(srun):
    found = srun('slurm_test.sh', 'config.py', 'model.pth', '--tta', GPUS='2')
    expected = '--gres=gpu:2 --ntasks=2 --ntasks-per-node=2 --cpus-per-task=5 --kill-on-bad-exit=1 python -u'
    tool = [f'{ROOT}/tools/test.py', 'config.py', 'model.pth', '--launcher=slurm', '--tta']
    assert found[3:] == [*expected.split(), *tool]


@pytest.mark.parametrize(
    'restarts, saved, resumes', [('1', True, True), ('1', False, False), ('0', True, False)]
)
def test_requeued_job_resumes_if_there_is_a_checkpoint(tmp_path, srun, restarts, saved, resumes):
    if saved:
        (tmp_path / 'last_checkpoint').touch()
    args = ('config.py', tmp_path, '--resume', 'other.pth')
    found = srun('slurm_train.sh', *args, SLURM_RESTART_COUNT=restarts)
    end = ['--launcher=slurm', '--resume', 'other.pth']
    end += ['--resume'] if resumes else []
    assert found[-len(end) :] == end


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'])
def test_too_few_arguments_print_the_usage(script):
    result = start(script, 'config.py')
    assert result.returncode == 1
    assert result.stderr.startswith('usage:') and len(result.stderr.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason='the processes would use the GPU')
def test_two_processes_train_and_test_without_a_gpu(tmp_path):
    config = write_config(tmp_path, write_images(tmp_path / 'data'))
    work_dir = tmp_path / 'run'
    options = ('--work-dir', work_dir, '--cfg-options', 'train_cfg.max_epochs=2')
    result = start('dist_train.sh', config, 2, *options, PORT=free_port())
    assert result.returncode == 0, result.stderr[-2000:]
    # 20 images, 2 processes with batches of 8: two iterations an epoch, not three.
    assert load_checkpoint_file(work_dir / 'epoch_2.pth')['meta']['iter'] == 4

    out = tmp_path / 'metrics.json'
    options = ('--work-dir', tmp_path / 'test', '--out', out)
    checkpoint = work_dir / 'epoch_2.pth'
    result = start('dist_test.sh', config, checkpoint, 2, *options, PORT=free_port())
    assert result.returncode == 0, result.stderr[-2000:]
    assert 'accuracy/top1' in out.read_text()
