import os
import subprocess
import sys
import time

import pytest
import torch
from mmengine.config import Config

from grootv import distributed
from grootv.errors import UserError

SLURM = {'SLURM_PROCID': '3', 'SLURM_NTASKS': '4', 'SLURM_LOCALID': '1'}
MPI = {'OMPI_COMM_WORLD_RANK': '3', 'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_LOCAL_RANK': '1'}
JOB = {**SLURM, 'SLURM_NODELIST': 'node[7-8]', 'SLURM_JOB_ID': '20007'}


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """Backends of the process groups that ``prepare`` asks for; none is started."""
    groups = []
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT', *JOB, *MPI):
        monkeypatch.setenv(name, '')  # so that monkeypatch restores what the code sets
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.distributed, 'init_process_group', groups.append)
    monkeypatch.setattr(distributed, 'get_device', lambda: 'cpu')
    return groups


def prepared(launcher: str, **settings) -> Config:
    cfg = Config(dict(launcher=launcher, sync_bn='torch', **settings))
    distributed.prepare(cfg)
    return cfg


@pytest.mark.parametrize(
    'launcher, variables, master',
    [
        ('mpi', MPI, ['127.0.0.1', '29500']),
        ('slurm', SLURM, ['127.0.0.1', '29500']),
        ('slurm', JOB, ['node7', '10007']),  # jobs may share a node
        ('slurm', {**JOB, 'MASTER_PORT': '29501'}, ['node7', '29501']),
    ],
)
def test_gloo_starts_with_the_ranks_of_the_launcher(
    started, monkeypatch, tmp_path, launcher, variables, master
):
    (tmp_path / 'scontrol').write_text('#!/bin/sh\nprintf "node7\\nnode8\\n"\n')
    (tmp_path / 'scontrol').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cfg = prepared(launcher, model_wrapper_cfg=dict(find_unused_parameters=True))
    assert started == ['gloo']
    found = [os.environ[name] for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')]
    assert found == ['3', '4', '1', *master]
    assert cfg.model_wrapper_cfg.device_ids is None
    assert cfg.model_wrapper_cfg.find_unused_parameters
    assert cfg.sync_bn is None  # SyncBatchNorm refuses to train on the CPU


def test_with_gpus_mmengine_starts_the_group_of_as_many_processes(started, monkeypatch):
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert prepared('slurm').sync_bn == 'torch' and os.environ['MASTER_PORT'] == '10007'
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(UserError, match='process 1 of this machine has no GPU, 1 in sight'):
        prepared('slurm')
    assert started == []


@pytest.mark.parametrize(
    'launcher, sentence',
    [
        ('pytorch', 'RANK, WORLD_SIZE, LOCAL_RANK: start with tools/dist_train.sh'),
        ('slurm', 'SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID: start with tools/slurm_train.sh'),
        ('mpi', 'OMPI_COMM_WORLD_LOCAL_RANK: start with mpirun'),
    ],
)
def test_launcher_without_its_variables_is_refused_and_one_process_starts_no_group(
    started, launcher, sentence
):
    with pytest.raises(UserError, match=sentence):
        prepared(launcher)
    cfg = prepared('none')
    assert 'model_wrapper_cfg' not in cfg and cfg.sync_bn == 'torch' and started == []


@pytest.mark.skipif(torch.cuda.is_available(), reason='MMEngine starts the group where there is a GPU')
def test_group_ends_before_the_process():
    """Threads of gloo that are left at the end abort a process now and then."""
    code = """
import atexit, torch
from mmengine.config import Config
from grootv import distributed
atexit.register(lambda: print(torch.distributed.is_initialized()))  # runs last
distributed.prepare(Config(dict(launcher='pytorch')))
print(torch.distributed.is_initialized())
"""
    variables = dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='1', MASTER_PORT='0')
    command, environment = [sys.executable, '-c', code], {**os.environ, **variables}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.stdout.split() == ['True', 'False'], result.stderr


@pytest.mark.skipif(sys.platform != 'linux', reason='a signal of Linux')
def test_process_ends_with_a_killed_launcher():
    child = 'import time\nfrom grootv import distributed\ndistributed.end_with_parent()\n'
    child += 'print("ready", flush=True)\ntime.sleep(60)'
    parent = f'import subprocess, sys\nprocess = subprocess.Popen([sys.executable, "-c", {child!r}])\n'
    parent += 'process.wait()'
    launcher = subprocess.Popen([sys.executable, '-c', parent], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout.readline() == 'ready\n'
    launcher.kill()
    begin = time.monotonic()
    assert launcher.stdout.read() == ''  # at the end of both processes, which hold the pipe's other end
    assert time.monotonic() - begin < 30
    launcher.wait()
