"""The launchers on a real Slurm: two tasks train the demo's network over gloo."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from grootv.checkpoint import load_checkpoint_file
from tests.system.slurm.cluster import DAEMONS, PARTITION, cluster, daemon
from tests.system.waiting import wait_for
from tests.tools.tiny_run import ROOT, load_tool, losses, scalars

pytestmark = [
    pytest.mark.skipif(not all(map(daemon, DAEMONS)), reason='Slurm is not installed: make test-slurm'),
    pytest.mark.skipif(torch.cuda.is_available(), reason='the processes would use the GPU'),
]
CONFIG = 'configs/demo/grootv-pico_digits.py'
# srun returns the highest status of its tasks: often that of one which Slurm ended because another failed.
ENDED = 128 + signal.SIGTERM
ITERATIONS = 11  # an epoch: 1,438 images, 2 processes with batches of 64, the last ones left out


@dataclass
class Slurm:
    """A cluster, and the demo's images in a folder."""

    environment: dict[str, str]
    images: Path

    def run(self, *command: object) -> str:
        options = dict(capture_output=True, text=True, env=self.environment, timeout=60, cwd=ROOT)
        result = subprocess.run(list(map(str, command)), **options)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def start(self, script: str, *args: object, **environment: str) -> subprocess.Popen:
        """A launcher of tools/ on two tasks."""
        command = ['bash', f'tools/{script}', PARTITION, 'job', *map(str, args)]
        environment = {**self.environment, 'GPUS': '2', 'CPUS_PER_TASK': '1', **environment}
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)

    def options(self, epochs: int) -> list[str]:
        """Arguments of train.py: a short run on the images of this cluster."""
        settings = {f'train_cfg.max_epochs={epochs}'}
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            settings |= {f'{loader}.dataset.data_root={self.images}', f'{loader}.num_workers=0'}
            settings.add(f'{loader}.persistent_workers=False')
        return ['--cfg-options', *settings]

    def job(self, number: str) -> dict[str, str]:
        """What the controller says of a job."""
        words = self.run('scontrol', 'show', 'job', number).split()
        return dict(word.split('=', 1) for word in words if '=' in word)

    def processes(self, number: str) -> dict[str, int]:
        """Process of each task of a job's only step."""
        rows = [line.split() for line in self.run('scontrol', 'listpids', number).splitlines()[1:]]
        return {local: int(pid) for pid, _, step, local, _ in rows if step == '0' and local.isdigit()}


@pytest.fixture(scope='module')
def slurm(tmp_path_factory) -> Iterator[Slurm]:
    images = tmp_path_factory.mktemp('images')
    load_tool('dataset_converters/digits.py').export(images)
    with cluster() as environment:
        yield Slurm({**environment, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}, images)


def finish(process: subprocess.Popen, timeout: float = 300) -> tuple[int, str]:
    """Exit status and messages of a launcher."""
    try:
        output, messages = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        raise
    return process.returncode, messages or output


def last_checkpoint(work_dir: Path) -> str:
    """Name of the newest checkpoint; empty before there is one."""
    note = work_dir / 'last_checkpoint'
    return Path(note.read_text()).name if note.exists() else ''


def test_training_and_testing_on_two_tasks(slurm, tmp_path):
    work_dir, out = tmp_path / 'run', tmp_path / 'metrics.json'
    status, messages = finish(slurm.start('slurm_train.sh', CONFIG, work_dir, *slurm.options(3)))
    assert status == 0, messages
    checkpoint = work_dir / 'epoch_3.pth'
    assert load_checkpoint_file(checkpoint)['meta']['iter'] == 3 * ITERATIONS
    trained = scalars(work_dir)[-1]
    assert trained['accuracy/top1'] > 60

    args = ('--work-dir', tmp_path / 'test', '--out', out, *slurm.options(3))
    status, messages = finish(slurm.start('slurm_test.sh', CONFIG, checkpoint, *args))
    assert status == 0, messages
    assert f'{trained["accuracy/top1"]:.4f}' in out.read_text()


def test_error_and_exit_status_of_a_task_reach_the_caller(slurm, tmp_path):
    status, messages = finish(slurm.start('slurm_train.sh', 'absent.py', tmp_path))
    assert status in (1, ENDED)
    assert 'train.py: config absent.py does not exist' in messages

    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\nif [ "$SLURM_PROCID" = 0 ]; then exit 0; fi; sleep 1; exit 7\n')
    python.chmod(0o755)
    status, _ = finish(slurm.start('slurm_train.sh', CONFIG, tmp_path, PYTHON=str(python)))
    assert status == 7


def test_killed_rank_ends_the_job(slurm, tmp_path):
    """Even if the other one hangs."""
    launcher = slurm.start('slurm_train.sh', CONFIG, tmp_path, *slurm.options(1000))
    wait_for(lambda: last_checkpoint(tmp_path) or launcher.poll() is not None, 'the first checkpoint', 300)
    assert launcher.poll() is None, launcher.communicate()[1]
    number = slurm.run('squeue', '--noheader', '--states=RUNNING', '--format=%A')
    ranks = slurm.processes(number)
    assert ranks.keys() == {'0', '1'}
    os.kill(ranks['0'], signal.SIGSTOP)
    os.kill(ranks['1'], signal.SIGKILL)
    status, messages = finish(launcher, timeout=60)
    assert status in (128 + signal.SIGKILL, ENDED), messages
    wait_for(lambda: slurm.job(number)['JobState'] == 'FAILED', 'the end of the job')
    for pid in ranks.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_requeued_job_resumes_from_its_last_checkpoint(slurm, tmp_path):
    """The template requeues itself when a signal says that the time limit is near."""
    epochs, log, work_dir = 4, tmp_path / 'log', tmp_path / 'run'
    options = ['--parsable', f'--partition={PARTITION}', f'--output={log}', '--nodes=1', '--gres=gpu:2']
    options += ['--ntasks-per-node=2', '--cpus-per-task=1']
    script = ('tools/slurm_train.sbatch', CONFIG, work_dir, *slurm.options(epochs))
    number = slurm.run('sbatch', *options, *script)
    wait_for(lambda: last_checkpoint(work_dir), 'the first checkpoint', 300)
    saved = int(last_checkpoint(work_dir).removeprefix('epoch_').removesuffix('.pth'))
    slurm.run('scancel', '--batch', '--signal=USR1', number)
    wait_for(lambda: slurm.job(number)['Restarts'] == '1', 'the restart', 300)
    wait_for(lambda: slurm.job(number)['JobState'] in ('COMPLETED', 'FAILED'), 'the end', 300)

    assert slurm.job(number)['JobState'] == 'COMPLETED', log.read_text()[-4000:]
    assert load_checkpoint_file(work_dir / f'epoch_{epochs}.pth')['meta']['iter'] == epochs * ITERATIONS
    assert len(list(work_dir.glob('*/vis_data/scalars.json'))) == 2
    assert min(losses(work_dir)) > saved * ITERATIONS
