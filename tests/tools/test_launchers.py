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
    environment = {'OMP_NUM_THREADS': '1', **os.environ, 'PYTHON': sys.executable, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture
def written(tmp_path):
    """Start a launcher whose srun or Python writes its arguments, one a line; these."""
    script = tmp_path / 'bin/srun'
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\n')
    script.chmod(0o755)
    path = f'{script.parent}:{os.environ["PATH"]}'

    def run(name: str, *args: object, **environment: str) -> list[str]:
        python = 'python' if name.startswith('slurm') else str(script)
        result = start(name, *args, PATH=path, PYTHON=python, **environment)
        assert result.returncode == 0, result.stderr
        return (tmp_path / 'arguments').read_text().splitlines()

    return run


def test_slurm_train_passes_everything_on(tmp_path, written):
    resources = {'GPUS': '16', 'CPUS_PER_TASK': '7', 'SRUN_ARGS': '--quotatype=spot --mem=9G'}
    work_dir = tmp_path / 'a folder'
    args = ('config.py', work_dir, '--resume', '--cfg-options', 'a.b=[1, 2]')
    found = written('slurm_train.sh', 'part', 'job', *args, **resources)
    expected = '-p part --job-name=job --gres=gpu:8 --ntasks=16 --ntasks-per-node=8 --cpus-per-task=7 '
    expected += '--kill-on-bad-exit=1 --quotatype=spot --mem=9G python -u'
    tool = [f'{ROOT}/tools/train.py', 'config.py', f'--work-dir={work_dir}', '--launcher=slurm']
    assert found == [*expected.split(), *tool, '--resume', '--cfg-options', 'a.b=[1, 2]']


def test_launchers_of_tests_take_the_checkpoint_after_the_config(written):
    found = written('slurm_test.sh', 'part', 'job', 'config.py', 'model.pth', '--tta', GPUS='2')
    expected = '--gres=gpu:2 --ntasks=2 --ntasks-per-node=2 --cpus-per-task=5 --kill-on-bad-exit=1 python -u'
    tool = [f'{ROOT}/tools/test.py', 'config.py', 'model.pth']
    assert found[3:] == [*expected.split(), *tool, '--launcher=slurm', '--tta']
    nodes = dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='node7', PORT='29501')
    found = written('dist_test.sh', 'config.py', 'model.pth', 4, '--tta', **nodes)
    expected = f'{ROOT}/tools/torchrun.py --nnodes=2 --node-rank=1 --master-addr=node7 --master-port=29501'
    assert found == [*expected.split(), '--nproc-per-node=4', *tool, '--launcher', 'pytorch', '--tta']


@pytest.mark.parametrize(
    'restarts, saved, resumes', [('1', True, True), ('1', False, False), ('0', True, False)]
)
def test_requeued_job_resumes_if_there_is_a_checkpoint(tmp_path, written, restarts, saved, resumes):
    if saved:
        (tmp_path / 'last_checkpoint').touch()
    args = ('part', 'job', 'config.py', tmp_path, '--resume', 'other.pth')
    found = written('slurm_train.sh', *args, SLURM_RESTART_COUNT=restarts)
    end = ['--launcher=slurm', '--resume', 'other.pth']
    end += ['--resume'] if resumes else []
    assert found[-len(end) :] == end


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'])
def test_too_few_arguments_print_the_usage(script):
    result = start(script, 'config.py')
    assert result.returncode == 1
    assert result.stderr.startswith('usage:') and len(result.stderr.splitlines()) == 1


def test_failed_process_is_one_sentence(tmp_path):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    result = start('dist_train.sh', tmp_path / 'none.py', 1, PORT=port)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert f'train.py: config {tmp_path}/none.py does not exist' in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last == 'torchrun: process 0 ended with status 1 first, which stopped the others'


@pytest.mark.skipif(torch.cuda.is_available(), reason='the processes would use the GPU')
def test_two_processes_train_without_a_gpu(tmp_path):
    config = write_config(tmp_path, write_images(tmp_path / 'data'))
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    result = start('dist_train.sh', config, 2, '--work-dir', tmp_path / 'run', PORT=port)
    assert result.returncode == 0, result.stderr[-2000:]
    # 20 images, 2 processes with batches of 8: two iterations an epoch, not three.
    assert load_checkpoint_file(tmp_path / 'run/epoch_2.pth')['meta']['iter'] == 4
