"""What the experiments share: command line, clock, peak memory and records.

It needs torch alone, so that operators can be measured where nothing else is installed.
"""

import argparse
import ctypes
import datetime
import gc
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # grootv of this checkout, where none is installed
PACKAGES = ('numpy', 'timm', 'transformers', 'mmengine')
TURN_S = 0.02  # shortest time that a function gets in each of its turns
MOST_ROUNDS = 300
GIVE_BACK = {'MALLOC_MMAP_THRESHOLD_': str(2**18)}  # bytes from which glibc returns a block when it is freed


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'must be 1 or more, got {number}')
    return number


def positive_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f'must be a number above 0, got {text}')
    return number


def record_path(parser: argparse.ArgumentParser, out: Path) -> Path:
    """Check before anything is measured that a record can be written, and make its folder."""
    if out.suffix != '.jsonl':
        parser.error(f'--out takes a file that ends in .jsonl, got {out}')
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f'--out {out}: its folder cannot be made: {error.strerror}')
    return out


def make_parser(doc: str, rounds: int = 5, budget: float = 10) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark; the first line of ``doc`` describes it."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--threads', type=positive, help="default: PyTorch's own choice")
    parser.add_argument('--rounds', type=positive, default=rounds, help='fewest turns of each function')
    parser.add_argument('--budget', type=float, default=budget, help='seconds for each table of turns')
    parser.add_argument('--quick', action='store_true', help='two turns of each; no target is judged')
    parser.add_argument('--out', type=Path, help='record to write, a file that ends in .jsonl')
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    args = parser.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error(f'--device cuda: torch {torch.__version__} sees no CUDA device')
    if args.out:
        record_path(parser, args.out)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quick:
        args.rounds, args.budget = 2, 0
    return args


def take_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, budget: float = 0
) -> dict[str, list[float]]:
    """Median seconds of a call in each turn, by name.

    Functions take turns, so that whatever slows the machine down slows all of them: at least ``rounds``
    turns of each, and more until ``budget`` seconds are over.
    """
    threads = torch.get_num_threads()
    timers = {
        name: Timer('call()', globals=dict(call=call), num_threads=threads) for name, call in calls.items()
    }
    turns: dict[str, list[float]] = {name: [] for name in calls}
    start, done = time.monotonic(), 0
    while done < rounds or (time.monotonic() - start < budget and done < MOST_ROUNDS):
        for name, timer in timers.items():
            turns[name].append(timer.blocked_autorange(min_run_time=TURN_S if budget else 0).median)
        done += 1
    return turns


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' quotients: what slows both turns of a round down cancels."""
    return statistics.median(our / their for our, their in zip(ours, theirs, strict=True))


class Record:
    """Rows that are printed and written as they come, one JSON object a line; floats with four digits.

    The first line says what was run, where and with what: :func:`machine` and what the experiment adds.
    """

    def __init__(self, kind: str, out: Path | None, quick: bool = False, device: str = 'cpu', **about):
        self.out, self.quick, self.rows = out, quick, []
        self._write('w', json.dumps(dict(kind=kind, **machine(device), quick=quick, **about)))

    def add(self, **row) -> dict:
        row = json.loads(json.dumps(row), parse_float=lambda text: float(f'{float(text):.4g}'))
        self.rows.append(row)
        print('  '.join(f'{key} {value}' for key, value in row.items() if value is not None), flush=True)
        self._write('a', json.dumps(row, ensure_ascii=False))
        return row

    def judge(self, name: str, value: float | None, target: float | None = None, **more) -> dict:
        """Add a figure with its target and whether it is met; a quick run judges nothing."""
        target = None if self.quick else target
        judged = value is not None and target is not None
        verdict = ('met' if value <= target else 'missed') if judged else 'none'
        return self.add(name=name, value=value, target=target, verdict=verdict, **more)

    def _write(self, mode: str, line: str) -> None:
        if self.out:
            with self.out.open(mode) as file:
                file.write(line + '\n')


def read(path: Path) -> tuple[dict, list[dict]]:
    """First line and rows of a record."""
    about, *rows = map(json.loads, path.read_text().splitlines())
    return about, rows


def machine(device: str) -> dict:
    """Command, date, commit, device, processor, threads and versions."""
    packages = [found for name in PACKAGES for found in importlib.metadata.distributions(name=name)]
    cpu = re.search(r'^model name\s*: (.*)', cpuinfo(), re.MULTILINE)
    return dict(
        command=shlex.join(['python', f'experiments/{Path(sys.argv[0]).name}', *sys.argv[1:]]),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        commit=commit(),
        device=torch.cuda.get_device_name() if device == 'cuda' else 'cpu',
        processor=f'{cpu[1] if cpu else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}',
        threads=torch.get_num_threads(),
        versions=dict(python=platform.python_version(), torch=torch.__version__)
        | {found.name: found.version for found in packages},
    )


def cpuinfo() -> str:
    """Linux's /proc/cpuinfo, empty where there is none."""
    path = Path('/proc/cpuinfo')
    return path.read_text() if path.exists() else ''


def commit(root: Path = ROOT) -> str:
    """Of the checkout, with '-dirty' if tracked files other than recorded results have changed."""
    git = ['git', '-C', str(root)]
    name = subprocess.run([*git, 'describe', '--always'], capture_output=True, text=True).stdout.strip()
    difference = [*git, 'diff', '--quiet', 'HEAD', '--', '.', ':!experiments/results']
    changed = name and subprocess.run(difference, capture_output=True).returncode == 1
    return (name or 'unknown') + '-dirty' * bool(changed)


def in_processes(jobs: int, run: Callable, todo: Iterable[Sequence]) -> Iterator:
    """Results of ``run`` for the arguments of each item, in their order, ``jobs`` at a time in processes.

    A signal, or a run that fails, ends the others too, and what they raised is raised.
    """
    with ProcessPoolExecutor(jobs) as pool:
        runs = [pool.submit(run, *arguments) for arguments in todo]
        try:
            for one in runs:
                yield one.result()
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.kill()
            raise


def peak_memory(make: Callable, device: str, warm_up: dict, **arguments) -> int | str:
    """Bytes at the peak of a call, measured in a process of its own, or why there is no figure.

    On the CPU: the greatest resident memory during a call that is not the first one, less the pages of files
    (libraries) and less what the process held before. Weights, gradients, optimizer, activations and
    scratch memory count, Python and libraries do not. On a GPU: the most that PyTorch's allocator held.

    Args:
        make: Function of a module that builds something and returns the call; its first argument is a device.
        device: 'cpu' or 'cuda'.
        warm_up: Arguments for a small call before, which imports what any such call imports.
        arguments: Arguments for the call that is measured.
    """
    os.environ.update(GIVE_BACK)
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as child:
        try:
            threads = torch.get_num_threads()
            return child.submit(peak_of, make, device, threads, warm_up, arguments).result()
        except Exception as error:
            return f'{type(error).__name__}: {error}'


def peak_of(make: Callable, device: str, threads: int, warm_up: dict, arguments: dict) -> int:
    torch.set_num_threads(threads)
    make(device, **warm_up)()
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), 'malloc_trim'):
        libc.malloc_trim(0)
    before = torch.cuda.memory_allocated() if device == 'cuda' else status('RssAnon')
    call = make(device, **arguments)
    call()
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    Path('/proc/self/clear_refs').write_text('5')  # the kernel forgets the peak so far
    call()
    return status('VmHWM') - status('RssFile') - status('RssShmem') - before


def status(key: str) -> int:
    """Bytes of an entry of Linux's /proc/self/status."""
    return int(re.search(rf'{key}:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) * 1024
