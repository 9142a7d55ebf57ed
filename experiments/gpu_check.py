"""Check the CUDA operators on a machine with an NVIDIA GPU and measure them, with one command.

    python experiments/gpu_check.py --out experiments/results/gpu_check.jsonl

Tests, compute-sanitizer and benchmarks, each in a process of its own; see docs/gpu_check.md.
The exit status is 0 if nothing failed, 1 if something did, 2 without a GPU.
"""

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
import torch

TESTS = [sys.executable, *['-m', 'pytest', 'tests/ops', '--device', 'cuda', '-q', '-p', 'no:cacheprovider']]
SMALL = ['-k', 'drawn or by_hand or gradients_equal', '--maxfail', '1']  # what fits under the sanitizer
SANITIZERS = ('memcheck', 'racecheck', 'synccheck')
REPORT = ['--report-api-errors', 'no', '--error-exitcode', '1', '--print-limit', '20']
BENCHMARKS = {
    'benchmark_ops': '',
    'benchmark_tokens': '--operators',
    'benchmark_model': '--batch 128 --dtype bfloat16 --modes forward step',
}
STEPS = ('tests', *SANITIZERS, *BENCHMARKS)


def sanitizer() -> str | None:
    """compute-sanitizer on PATH or in CUDA_HOME."""
    home = Path(os.environ.get('CUDA_HOME', '/usr/local/cuda'))
    path = os.pathsep.join([os.environ.get('PATH', ''), f'{home}/compute-sanitizer', f'{home}/bin'])
    return shutil.which('compute-sanitizer', path=path)


def steps(folder: Path, quick: bool) -> dict[str, list[str] | str]:
    """Command of each step, or why it cannot run here."""
    found: dict[str, list[str] | str] = {'tests': TESTS}
    program = sanitizer()
    for tool in SANITIZERS:
        command = [str(program), '--tool', tool, *REPORT, *TESTS, *SMALL]
        found[tool] = command if program else 'compute-sanitizer not found'
    for name, options in BENCHMARKS.items():
        command = [sys.executable, f'experiments/{name}.py', '--device', 'cuda', *options.split()]
        found[name] = command + ['--out', str(folder / f'{name}.jsonl')] + ['--quick'] * quick
    missing = [name for name in ('timm', 'mmengine') if importlib.util.find_spec(name) is None]
    return found | (dict(benchmark_model=f'needs {" and ".join(missing)}') if missing else {})


def run(command: list[str], seconds: float) -> str:
    """'passed', 'failed with status N' or 'not finished within N s'; then its whole group is ended."""
    path = os.pathsep.join([str(measure.ROOT), os.environ.get('PYTHONPATH', '')])
    environment = os.environ | dict(PYTHONPATH=path)
    if 'memcheck' in command:  # every tensor allocated by itself, so that a step beyond one is seen
        environment['PYTORCH_NO_CUDA_MEMORY_CACHING'] = '1'
    process = subprocess.Popen(command, cwd=measure.ROOT, env=environment, start_new_session=True)
    try:
        status = process.wait(seconds)
        return 'passed' if status == 0 else f'failed with status {status}'
    except subprocess.TimeoutExpired:
        return f'not finished within {seconds:.0f} s'
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=measure.ROOT / 'experiments/results/gpu_check.jsonl')
    parser.add_argument('--steps', nargs='+', choices=STEPS, default=STEPS, help='default: all')
    parser.add_argument('--quick', action='store_true', help='benchmarks with two turns of each function')
    parser.add_argument('--time-limit', type=float, default=480, help='seconds for all steps together')
    args = parser.parse_args(argv)
    measure.record_path(parser, args.out)
    if not torch.cuda.is_available():
        print(f'gpu_check: torch {torch.__version__} sees no CUDA device', file=sys.stderr)
        return 2
    end, failed = time.monotonic() + args.time_limit, []
    with tempfile.TemporaryDirectory() as folder:
        record = measure.Record('gpu_check', args.out, args.quick, 'cuda')
        for name, command in steps(Path(folder), args.quick).items():
            if name not in args.steps:
                continue
            print(f'== {name}', flush=True)
            start = time.monotonic()
            if isinstance(command, str) or start > end - 5:
                reason = command if isinstance(command, str) else 'no time left'
                record.add(step=name, status=f'skipped: {reason}')
                continue
            status = run(command, end - start)
            failed += [name] if status != 'passed' else []
            record.add(step=name, status=status, seconds=time.monotonic() - start)
            if (rows := Path(folder) / f'{name}.jsonl').exists():
                for row in measure.read(rows)[1]:
                    record.add(step=name, **row)
    if failed:
        print(f'gpu_check: failed: {", ".join(failed)}')
    return int(bool(failed))


if __name__ == '__main__':
    sys.exit(main())
