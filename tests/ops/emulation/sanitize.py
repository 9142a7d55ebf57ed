"""Run the tests of the CUDA operators on kernels that sanitizers instrument.

    python -m tests.ops.emulation.sanitize [--only address]

'address' finds accesses beyond an array and undefined behaviour, 'thread' data races: between threads that
no barrier orders, and between blocks.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .build import ROOT

# Watched for races, a test takes ten times as long: every kernel, but in fewer shapes and types.
TESTS = {
    'address': ['bad_input.py', 'tree.py', 'tokens.py', 'differentiable.py', 'cuda.py'],
    'thread': [
        'tree.py',
        'tokens.py::test_trees_equal_the_reference',
        'cuda.py',
        'differentiable.py::test_results_equal_the_reference',
        'differentiable.py::test_large_grids',
        'differentiable.py::test_deep_and_wide_trees[emulated-random]',
    ],
}
RUNTIMES = {'address': ['libasan.so', 'libubsan.so'], 'thread': ['libtsan.so']}
OPTIONS = {'address': ('ASAN_OPTIONS', 'detect_leaks=0'), 'thread': ('TSAN_OPTIONS', 'exitcode=0')}


def runtime(name: str) -> str:
    """Path of a sanitizer's library, which has to be loaded before Python."""
    return subprocess.check_output(['g++', f'-print-file-name={name}'], text=True).strip()


def run(sanitizer: str) -> bool:
    """Whether the tests pass and the sanitizer has nothing to report."""
    print(f'== {sanitizer} sanitizer', flush=True)
    subprocess.run([sys.executable, ROOT / 'tests/ops/emulation/build.py', sanitizer], check=True)
    with tempfile.TemporaryDirectory() as folder:
        name, options = OPTIONS[sanitizer]
        environment = dict(os.environ, GROOTV_SANITIZER=sanitizer, OMP_NUM_THREADS='1')
        environment |= {name: f'{options}:log_path={folder}/report'}
        environment |= {'LD_PRELOAD': ' '.join(map(runtime, RUNTIMES[sanitizer]))}
        files = [f'tests/ops/test_{name}' for name in TESTS[sanitizer]]
        tests = [sys.executable, '-m', 'pytest', '-q', *files, '--device=emulated']
        status = subprocess.run(tests, cwd=ROOT, env=environment).returncode
        reports = [path.read_text() for path in sorted(Path(folder).glob('report*'))]
        print(*reports, sep='\n')
    return status == 0 and not reports


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--only', choices=RUNTIMES, help='one of them; both otherwise')
    only = parser.parse_args().only
    failed = [name for name in RUNTIMES if name == (only or name) and not run(name)]
    sys.exit(f'failed: {", ".join(failed)}' if failed else 0)
