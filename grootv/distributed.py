"""Start the process group on machines without a GPU, where MMEngine cannot."""

import atexit
import ctypes
import os
import signal
import subprocess
import sys

import torch
from mmengine.config import Config
from mmengine.device import get_device

from grootv.errors import UserError

_PORT = '29500'  # torch.distributed's own default
# What each launcher calls the variables that torch.distributed reads.
_RANK_VARIABLES = {
    'pytorch': dict(RANK='RANK', WORLD_SIZE='WORLD_SIZE', LOCAL_RANK='LOCAL_RANK'),
    'slurm': dict(RANK='SLURM_PROCID', WORLD_SIZE='SLURM_NTASKS', LOCAL_RANK='SLURM_LOCALID'),
    'mpi': dict(
        RANK='OMPI_COMM_WORLD_RANK',
        WORLD_SIZE='OMPI_COMM_WORLD_SIZE',
        LOCAL_RANK='OMPI_COMM_WORLD_LOCAL_RANK',
    ),
}


def prepare(cfg: Config) -> None:
    """Make ``cfg.launcher`` work with or without GPUs.

    With GPUs MMEngine starts the process group. Without, this function starts a gloo group before the Runner
    is built and sets DistributedDataParallel to use no device. BatchNorm layers then keep the statistics of
    their own process, whatever ``cfg.sync_bn`` says, because PyTorch joins them on GPUs only.

    Raises:
        UserError: If the launcher's variables are not set, or this process has no GPU of its own.
    """
    if cfg.launcher == 'none':
        return
    names = _RANK_VARIABLES[cfg.launcher]
    absent = [name for name in names.values() if name not in os.environ]
    if absent:
        starter = {'pytorch': 'tools/dist_train.sh', 'slurm': 'tools/slurm_train.sh'}
        raise UserError(
            f'--launcher {cfg.launcher} needs the environment variables {", ".join(absent)}: '
            f'start with {starter.get(cfg.launcher, "mpirun")}, or leave --launcher out'
        )
    if cfg.launcher == 'pytorch':
        end_with_parent()
    ranks = {name: os.environ[source] for name, source in names.items()}
    if 'SLURM_JOB_ID' in os.environ and cfg.launcher == 'slurm':  # jobs may share a node
        os.environ.setdefault('MASTER_PORT', str(10000 + int(os.environ['SLURM_JOB_ID']) % 20000))
    if get_device() != 'cpu':
        count = torch.cuda.device_count()
        if get_device() == 'cuda' and int(ranks['LOCAL_RANK']) >= count:
            raise UserError(
                f'process {ranks["LOCAL_RANK"]} of this machine has no GPU, {count} in sight: '
                'start at most as many processes as GPUs'
            )
        return
    os.environ.update(ranks)
    os.environ.setdefault('MASTER_ADDR', _first_host())
    os.environ.setdefault('MASTER_PORT', _PORT)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
        atexit.register(leave)
    cfg.sync_bn = None
    cfg.model_wrapper_cfg = {
        'type': 'MMDistributedDataParallel',
        'broadcast_buffers': False,
        'find_unused_parameters': cfg.get('find_unused_parameters', False),
        **(cfg.get('model_wrapper_cfg') or {}),
        'device_ids': None,
    }


def end_with_parent() -> None:
    """Ask Linux for SIGTERM when the launcher dies: a killed one would leave its processes behind."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def leave() -> None:
    """End the group: its threads may otherwise abort a process that has finished its work."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def rank() -> int:
    """This process's rank; 0 where no group exists."""
    group = torch.distributed
    return group.get_rank() if group.is_available() and group.is_initialized() else 0


def launched_rank(launcher: str) -> int:
    """This process's rank as :func:`prepare` has found it, where the group may not exist yet."""
    return int(os.environ[_RANK_VARIABLES[launcher]['RANK']]) if launcher in _RANK_VARIABLES else 0


def _first_host() -> str:
    nodes = os.environ.get('SLURM_NODELIST')
    if nodes is None:
        return '127.0.0.1'
    names = subprocess.run(
        ['scontrol', 'show', 'hostname', nodes], capture_output=True, text=True, check=True
    )
    return names.stdout.split()[0]
