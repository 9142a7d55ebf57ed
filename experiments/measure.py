"""What the experiments share: command line, clock, peak memory and records.

It needs torch alone, so that operators can be measured where nothing else is installed.
"""

import argparse
import ctypes
import datetime
import gc
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
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
    """Parse, and check device, file and folder before anything is measured."""
    args = parser.parse_args(argv)
    try:
        if args.device == 'cuda' and not torch.cuda.is_available():
            raise ValueError(f'--device cuda: torch {torch.__version__} sees no CUDA device')
        check_out(args.out)
    except ValueError as error:
        parser.error(str(error))
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quick:
        args.rounds, args.budget = 2, 0
    return args


def check_out(out: Path | None) -> None:
    """Check the name of a record and make its folder.

    Raises:
        ValueError: If the name ends otherwise, or the folder cannot be made.
    """
    if out is None:
        return
    if out.suffix != '.jsonl':
        raise ValueError(f'--out takes a file that ends in .jsonl, got {out}')
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f'--out {out}: its folder cannot be made: {error.strerror}') from error


def take_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, budget: float = 0
) -> dict[str, list[float]]:
    """Time functions in turn, so that whatever slows the machine down slows all of them.

    Args:
        calls: What to time, by name.
        rounds: Fewest turns of each.
        budget: Seconds until which turns continue.

    Returns:
        Median seconds of a call in each turn, by name.
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


def verdict(value: float | None, target: float | None) -> str:
    """'met' or 'missed', or 'none' where there is nothing to judge."""
    if value is None or target is None:
        return 'none'
    return 'met' if value <= target else 'missed'


def round_floats(value):
    """Floats of a row with four significant digits."""
    if isinstance(value, float):
        return float(f'{value:.4g}')
    if isinstance(value, dict):
        return {key: round_floats(each) for key, each in value.items()}
    return [round_floats(each) for each in value] if isinstance(value, (list, tuple)) else value


class Record:
    """Rows that are printed and written as they come, one JSON object a line.

    The first line says what was run, where and with what: :func:`machine` and what the experiment adds.

    Attributes:
        rows: The rows so far.
    """

    def __init__(self, kind: str, out: Path | None, quick: bool = False, device: str = 'cpu', **about):
        self.out, self.quick, self.rows = out, quick, []
        self._write('w', dict(kind=kind, **machine(device), quick=quick, **about))

    def add(self, **row) -> dict:
        row = round_floats(row)
        self.rows.append(row)
        print('  '.join(f'{key} {value}' for key, value in row.items() if value is not None), flush=True)
        self._write('a', row)
        return row

    def judge(
        self, name: str, value: float | None, target: float | None = None, note: str = '', **more
    ) -> dict:
        """Add a figure with its target and verdict; a quick run judges nothing."""
        target = None if self.quick else target
        row = dict(name=name, **more, value=value, target=target, verdict=verdict(value, target))
        return self.add(**row | (dict(note=note) if note else {}))

    def _write(self, mode: str, line: dict) -> None:
        if self.out:
            with self.out.open(mode) as file:
                file.write(json.dumps(line, ensure_ascii=False) + '\n')


def read(path: Path) -> tuple[dict, list[dict]]:
    """First line and rows of a record."""
    about, *rows = map(json.loads, path.read_text().splitlines())
    return about, rows


def machine(device: str) -> dict:
    """Command, date, commit, device, processor, threads and versions."""
    name = torch.cuda.get_device_name() if device == 'cuda' else 'cpu'
    versions = dict(python=platform.python_version(), torch=torch.__version__)
    versions |= {package: found for package in PACKAGES if (found := version(package))}
    return dict(
        command=' '.join(['python', f'experiments/{Path(sys.argv[0]).name}', *sys.argv[1:]]),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        commit=commit(),
        device=name,
        processor=f'{cpuinfo("model name") or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}',
        threads=torch.get_num_threads(),
        versions=versions,
    )


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpuinfo(key: str) -> str:
    """An entry of Linux's /proc/cpuinfo, empty where there is none."""
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(':')[2].strip() for line in lines if line.split(':')[0].strip() == key), '')


def commit(root: Path = ROOT) -> str:
    """Of the checkout, with '-dirty' if tracked files other than recorded results have changed."""

    def git(*words: str) -> str:
        result = subprocess.run(['git', '-C', str(root), *words], capture_output=True, text=True)
        return result.stdout.strip() if result.returncode == 0 else ''

    changed = git('status', '--porcelain', '--untracked-files=no', '--', '.', ':!experiments/results')
    return (git('describe', '--always') or 'unknown') + '-dirty' * bool(changed)


def peak_memory(module: str, function: str, device: str, warm_up: dict, **arguments) -> int | str:
    """Bytes at the peak of a call, measured in a process of its own, or why there is no figure.

    On the CPU: the greatest resident memory during a call that is not the first one, less the pages of files
    (libraries) and less what the process held before. Weights, gradients, optimizer, activations and
    scratch memory count, Python and libraries do not. On a GPU: the most that PyTorch's allocator held.

    Args:
        module: A script of this folder.
        function: Its function that builds something and returns the call; ``device`` is its first argument.
        device: 'cpu' or 'cuda'.
        warm_up: Arguments for a small call before, which imports what any such call imports.
        arguments: Arguments for the call that is measured, as JSON can hold them.
    """
    request = dict(module=module, function=function, device=device, threads=torch.get_num_threads())
    command = [sys.executable, __file__, json.dumps(request | dict(warm_up=warm_up, arguments=arguments))]
    child = subprocess.run(command, env=os.environ | GIVE_BACK, capture_output=True, text=True)
    if child.returncode == 0:
        return int(child.stdout.splitlines()[-1])
    said = child.stderr.strip().splitlines()[-1:] if child.returncode > 0 else []
    return said[0] if said else f'ended with status {child.returncode}'


def peak_of(call: Callable[[], object], device: str, before: int) -> int:
    """Bytes at the peak of a call, beyond the bytes ``before``."""
    call()
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    Path('/proc/self/clear_refs').write_text('5')  # the kernel forgets the peak so far
    call()
    held = status()
    return held['VmHWM'] - held['RssFile'] - held['RssShmem'] - before


def held_now(device: str) -> int:
    """Bytes that the process holds, once everything unused is given back."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), 'malloc_trim'):
        libc.malloc_trim(0)
    return torch.cuda.memory_allocated() if device == 'cuda' else status()['RssAnon']


def status() -> dict[str, int]:
    """Bytes by the names of Linux's /proc/self/status."""
    lines = (line.split() for line in Path('/proc/self/status').read_text().splitlines())
    return {words[0].rstrip(':'): int(words[1]) * 1024 for words in lines if words[-1] == 'kB'}


def main() -> None:
    """The child process of :func:`peak_memory`."""
    request = json.loads(sys.argv[1])
    device = request['device']
    torch.set_num_threads(request['threads'])
    make = getattr(importlib.import_module(request['module']), request['function'])
    make(device, **request['warm_up'])()
    before = held_now(device)
    print(peak_of(make(device, **request['arguments']), device, before))


if __name__ == '__main__':
    main()
