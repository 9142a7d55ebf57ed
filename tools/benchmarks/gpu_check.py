"""Check the CUDA operators on a machine with an NVIDIA GPU and measure them, with one command.

    python tools/benchmarks/gpu_check.py [--out experiments/results/gpu_check.json]

Needs torch and the prebuilt libraries in ops/; no installation. See docs/gpu_check.md.

Exit status: 0 if every section passed or was skipped, 1 if one failed, 2 without a GPU.
"""

import argparse
import importlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_checks.environment import ROOT, NotHere, Options, describe, import_ops
from gpu_checks.report import Figure, Report, sentence, table

OPERATORS = (
    'grid_edge_weight',
    'minimum_spanning_tree',
    'minimum_spanning_tree_from_edges',
    'breadth_first_order',
    'breadth_first_order_from_edges',
    'build_tree',
    'tree_scan',
    'tree_scan_backward',
    'selective_tree_scan',
    'selective_tree_scan_backward',
    'token_edge_weight',
    'token_scan',
    'token_scan_backward',
    'gated_read_out',
    'gated_read_out_backward',
)
# Seconds after which a section is ended. The limit of the whole run may cut the last ones shorter.
SECTIONS = {
    'device': 60,
    'parity': 180,
    'capture': 90,
    'sanitizer': 160,
    'amp': 90,
    'figures': 120,
    'network': 480,
}
SMALL = 'parity-small'  # what compute-sanitizer runs; not part of a whole run


@dataclass
class Result:
    """How a section ended.

    Attributes:
        status: 'passed', 'failed' or 'skipped'.
        seconds: Wall-clock time.
        reasons: Why it failed or was skipped.
        figures: What it found, also if it failed.
    """

    status: str
    seconds: float
    reasons: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


def device(options: Options, report: Report) -> None:
    """The device, the versions and whether every operator has a kernel for it."""
    print(json.dumps(describe(options.device), indent=1), flush=True)
    import_ops()
    key = options.device.upper()
    missing = [
        name
        for name in OPERATORS
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f'grootv::{name}', key)
    ]
    report.check(f'operators without a {key} kernel', len(missing), 'operators', 0, ', '.join(missing))


def run_section(name: str, options: Options, stream: Path | None = None) -> Result:
    """Run a section in this process. Whatever it raises is its failure."""
    report = Report(name, judge=not options.dry_run, stream=stream)
    start = time.monotonic()
    status, reasons = 'passed', []
    try:
        if name == 'device':
            device(options, report)
        else:
            module = importlib.import_module('gpu_checks.' + ('parity' if name == SMALL else name))
            module.run(options, report, *([True] if name == SMALL else []))
    except NotHere as reason:
        status, reasons = 'skipped', [str(reason)]
    except Exception as error:
        traceback.print_exc()
        status, reasons = 'failed', [sentence(error)]
    if report.failures():
        status, reasons = 'failed', reasons + report.failures()
    return Result(status, time.monotonic() - start, reasons, report.figures)


def run_isolated(name: str, options: Options) -> Result:
    """Run a section in a process of its own: one that hangs or breaks the device takes no other along."""
    command = [sys.executable, str(Path(__file__).resolve()), '--sections', name, '--seed', str(options.seed)]
    # Less than until the process is ended: it shall stop by itself, and needs time to start.
    command += ['--time-limit', str(max(options.seconds - 15, 1))]
    command += ['--quick'] * options.quick + ['--dry-run'] * options.dry_run
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / 'records.jsonl'
        process = subprocess.Popen([*command, '--records', str(records)], start_new_session=True)
        try:
            process.wait(options.seconds)
            ending = f'its process ended with status {process.returncode}'
        except subprocess.TimeoutExpired:
            ending = f'not finished within {options.seconds:g} s'
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        lines = records.read_text().splitlines() if records.exists() else []
    figures, end = [], None
    for line in lines:
        record = json.loads(line)
        if 'status' in record:
            end = record
        else:
            figures.append(Figure(**record))
    seconds = time.monotonic() - start
    if end is None:
        report = Report(name)
        report.figures = figures
        return Result('failed', seconds, [ending, *report.failures()], figures)
    return Result(end['status'], seconds, end['reasons'], figures)


def run_recorded(name: str, options: Options, records: Path) -> Result:
    """Run a section for a parent that reads ``records``, of which the last line says how it ended."""
    result = run_section(name, options, records)
    with records.open('a') as file:
        file.write(json.dumps({'status': result.status, 'reasons': result.reasons}) + '\n')
    return result


def run_all(names: list[str], args: argparse.Namespace) -> dict[str, Result]:
    results, start = {}, time.monotonic()
    for name in names:
        left = args.time_limit - (time.monotonic() - start)
        print(f'== {name}', flush=True)
        if left < 5:
            results[name] = Result('skipped', 0, ['no time left'])
            continue
        options = make_options(args, min(SECTIONS.get(name, 180), left))
        results[name] = (run_section if args.dry_run else run_isolated)(name, options)
        result = results[name]
        print(
            f'== {name} {result.status} in {result.seconds:.1f} s', *result.reasons, sep='\n   ', flush=True
        )
    return results


def make_options(args: argparse.Namespace, seconds: float) -> Options:
    return Options('cpu' if args.dry_run else 'cuda', args.quick, args.dry_run, args.seed, seconds)


def as_json(args: argparse.Namespace, machine: dict, results: dict[str, Result]) -> dict:
    sections = {}
    for name, result in results.items():
        entry = {'status': result.status, 'seconds': round(result.seconds, 1)}
        if result.status == 'failed':
            entry['failures'] = result.reasons
        elif result.status == 'skipped':
            entry['skipped'] = '; '.join(result.reasons)
        sections[name] = entry
    return {
        **machine,
        'seed': args.seed,
        'quick': args.quick,
        'dry_run': args.dry_run,
        'sections': sections,
        'figures': [asdict(figure) for result in results.values() for figure in result.figures],
    }


def print_table(results: dict[str, Result]) -> None:
    rows = []
    for result in results.values():
        for figure in result.figures:
            value = 'not measured' if figure.value is None else f'{figure.value:.4g}'
            limit = '' if figure.limit is None else f'<= {figure.limit:g}'
            holds = {None: '', True: 'yes', False: 'no'}[figure.holds]
            rows.append((figure.section, figure.name, value, figure.unit, limit, holds))
    print(table(rows, ('section', 'what', 'value', 'unit', 'limit', 'holds')))


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--sections', help=f'comma-separated, of {", ".join([*SECTIONS, SMALL])}; default: all'
    )
    parser.add_argument(
        '--out', type=Path, default=ROOT / 'experiments/results/gpu_check.json', help='JSON file to write'
    )
    parser.add_argument(
        '--quick', action='store_true', help='fewer cases, shorter measurements, no compilation'
    )
    parser.add_argument('--dry-run', action='store_true', help='the same code on the CPU at tiny sizes')
    parser.add_argument('--seed', type=int, default=None, help='of the random inputs; default: a new one')
    parser.add_argument('--time-limit', type=float, default=480, help='seconds for all sections together')
    parser.add_argument('--records', type=Path, help='append what is found to this file as lines of JSON')
    args = parser.parse_args(arguments)
    args.seed = secrets.randbelow(2**31) if args.seed is None else args.seed
    args.names = args.sections.split(',') if args.sections else list(SECTIONS)
    unknown = [name for name in args.names if name not in SECTIONS and name != SMALL]
    if unknown:
        parser.error(f'--sections: {", ".join(unknown)} is none of {", ".join([*SECTIONS, SMALL])}')
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    if not args.dry_run and not torch.cuda.is_available():
        print(
            f'gpu_check: torch {torch.__version__} sees no CUDA device; --dry-run runs on the CPU',
            file=sys.stderr,
        )
        return 2
    warnings.filterwarnings('ignore', message='.*deterministic.*')
    if args.records:
        ended = [run_recorded(name, make_options(args, args.time_limit), args.records) for name in args.names]
        return int(any(result.status == 'failed' for result in ended))

    machine = describe('cpu' if args.dry_run else 'cuda')  # before a section can break the device
    results = run_all(args.names, args)
    print_table(results)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(as_json(args, machine, results), indent=1) + '\n')
    print(f'wrote {args.out}')
    missed = [f for r in results.values() for f in r.figures if f.holds is False and not f.required]
    for figure in missed:
        print(f'limit missed: {figure.section}: {figure.line()}')
    failed = [name for name, result in results.items() if result.status == 'failed']
    if failed:
        print(f'gpu_check: failed: {", ".join(failed)}')
    return int(bool(failed))


if __name__ == '__main__':
    sys.exit(main())
