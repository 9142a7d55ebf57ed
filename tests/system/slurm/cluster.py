"""A Slurm cluster of one node on the loopback interface, with its own ports, folders and munge socket."""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.system.waiting import wait_for

DAEMONS = ('munged', 'slurmctld', 'slurmd')
PARTITION = 'here'
# The two GPUs are files, so that the launchers can ask for them as anywhere else. A credential expires, and a
# requeued job starts again, after 5 s, the least that Slurm takes; its default is 120 s.
CONF = """
ClusterName=grootv
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1
JobRequeue=1
KillWait=2
ReturnToService=2
GresTypes=gpu
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:2 State=UNKNOWN
PartitionName={partition} Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def daemon(name: str) -> str | None:
    """Path of a daemon, which a user's PATH may leave out."""
    return shutil.which(name, path=f'{os.environ["PATH"]}:/usr/sbin:/usr/local/sbin')


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(('127.0.0.1', 0))
        return [probe.getsockname()[1] for probe in probes]


@contextmanager
def started(folder: Path, name: str, *args: object) -> Iterator[None]:
    """A daemon in the foreground; its output goes to a log in ``folder``."""
    with open(folder / f'{name}.log', 'w') as log:
        process = subprocess.Popen([daemon(name), *map(str, args)], stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_idle(environment: dict[str, str]) -> None:
    def is_idle() -> bool:
        state = subprocess.run(['sinfo', '-h', '-o', '%T'], capture_output=True, text=True, env=environment)
        return state.stdout.strip() == 'idle'

    wait_for(is_idle, 'an idle node')


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """A running cluster; yields the environment in which Slurm's commands reach it."""
    with ExitStack() as stack:
        # A socket's path is short, and munge wants everyone to reach its own.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='slurm-')))
        folder.chmod(0o755)
        controller_port, node_port = free_ports(2)
        conf = folder / 'slurm.conf'
        names = dict(user=getpass.getuser(), host=socket.gethostname().partition('.')[0], partition=PARTITION)
        ports = dict(controller_port=controller_port, node_port=node_port)
        conf.write_text(CONF.format(folder=folder, **names, **ports))
        (folder / 'gres.conf').write_text(f'NodeName=localhost Name=gpu File={folder}/gpu[0-1]\n')
        for index in range(2):
            (folder / f'gpu{index}').touch()
        key = folder / 'munge.key'
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        for name in ('state', 'spool'):
            (folder / name).mkdir()

        files = {'key-file': key, **{f'{kind}-file': folder / f'munge.{kind}' for kind in ('pid', 'seed')}}
        options = [f'--{name}={path}' for name, path in files.items()]
        options += ['--foreground', f'--socket={folder}/munge.socket']
        stack.enter_context(started(folder, 'munged', *options))
        stack.enter_context(started(folder, 'slurmctld', '-D', '-f', conf))
        stack.enter_context(started(folder, 'slurmd', '-D', '-f', conf))
        outside = {name: value for name, value in os.environ.items() if not name.startswith('SLURM_')}
        environment = {**outside, 'SLURM_CONF': str(conf)}
        wait_until_idle(environment)
        try:
            yield environment
        finally:
            for state in ('RUNNING', 'PENDING'):
                subprocess.run(['scancel', f'--state={state}'], env=environment)
            wait_until_idle(environment)
