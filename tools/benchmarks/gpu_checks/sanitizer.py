"""compute-sanitizer over the small parity cases, each tool in a process of its own."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .environment import ROOT, NotHere, Options
from .report import Report

TOOLS = ('memcheck', 'racecheck', 'synccheck')
LIMIT_S = 150
ERRORS = re.compile(r'=+ (?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)')


def run(options: Options, report: Report) -> None:
    if options.device != 'cuda':
        raise NotHere('compute-sanitizer needs a GPU')
    program = find()
    if program is None:
        for tool in TOOLS:
            report.missing(tool, 'errors', 'compute-sanitizer not found', 0)
        raise NotHere('compute-sanitizer not found')
    limit = min(LIMIT_S, options.left() - 5)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        runs = {tool: launch(program, tool, options, Path(folder)) for tool in TOOLS}
        for tool, process in runs.items():
            finished = wait(process, limit - (time.monotonic() - start))
            judge(
                report, tool, process.returncode, finished, (Path(folder) / f'{tool}.log').read_text(), limit
            )
            record = Path(folder) / f'{tool}.jsonl'
            print(f'  {tool}: {len(record.read_text().splitlines()) if record.exists() else 0} checks ran')
    if not report.failures() and all(figure.value is None for figure in report.figures):
        raise NotHere('; '.join(f'{figure.name}: {figure.not_measured}' for figure in report.figures))


def find() -> str | None:
    """The program on PATH, in CUDA_HOME or in the usual place."""
    home = Path(os.environ.get('CUDA_HOME', '/usr/local/cuda'))
    folders = [
        home / 'compute-sanitizer',
        home / 'bin',
        '/usr/local/cuda/compute-sanitizer',
        '/usr/local/cuda/bin',
    ]
    path = os.pathsep.join([os.environ.get('PATH', ''), *map(str, folders)])
    return shutil.which('compute-sanitizer', path=path)


def launch(program: str, tool: str, options: Options, folder: Path) -> subprocess.Popen:
    command = [program, '--tool', tool, '--report-api-errors', 'no', '--print-limit', '20']
    script = ROOT / 'tools/benchmarks/gpu_check.py'
    command += [sys.executable, str(script), '--sections', 'parity-small', '--seed', str(options.seed)]
    command += ['--records', str(folder / f'{tool}.jsonl')]
    environment = dict(os.environ)
    if tool == 'memcheck':  # every tensor allocated by itself, so that a step beyond one is seen
        environment['PYTORCH_NO_CUDA_MEMORY_CACHING'] = '1'
    with (folder / f'{tool}.log').open('w') as log:
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def wait(process: subprocess.Popen, seconds: float) -> bool:
    """Whether the process ended in time; one that did not is ended with its children."""
    try:
        process.wait(max(seconds, 0))
        return True
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False


def judge(report: Report, tool: str, status: int, finished: bool, log: str, limit: float) -> None:
    """Turn a tool's output into a number of errors, or into the reason why there is none."""
    if not finished:
        report.missing(tool, 'errors', f'not finished within {limit:.0f} s', 0)
        return
    lines = log.strip().splitlines()
    found = [match for match in map(ERRORS.search, lines) if match]
    if 'Device not supported' in log:
        report.missing(tool, 'errors', 'compute-sanitizer: Device not supported', 0)
    elif not found:
        reason = f'no summary, exit status {status}; last line: {lines[-1] if lines else ""}'
        report.missing(tool, 'errors', reason, 0, failed=True)
    else:
        match = found[-1]
        errors = int(match[1] or match[2])
        if errors:
            print('\n'.join(line for line in lines if line.startswith('=========')), flush=True)
        report.check(tool, errors, 'errors', 0, match.string.strip('= '))
        report.check(f'{tool}, exit status of the cases', abs(status), '', 0)
