"""Build the CUDA operators as host code (see emulation.h), ``torch.ops.grootv_emulated`` on CPU tensors.

Each kind has a folder of its own, build/emulation-KIND:
    small: small blocks, so that small inputs run every variant of a kernel.
    full_size: the blocks of an H200, as ``torch.ops.grootv_emulated_full_size``.
    address, thread: small, instrumented by a sanitizer; see sanitize.py.
    debug: small, for a debugger; the tests load it with GROOTV_DEBUG=1.
"""

import argparse
import fcntl
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils import cpp_extension

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CSRC = ROOT / 'ops/csrc'
FLAGS = {
    'small': [],
    'full_size': ['-DGROOTV_FULL_SIZE'],
    'address': ['-fsanitize=address,undefined', '-fno-sanitize=vptr', '-fno-sanitize-recover=all'],
    'thread': ['-fsanitize=thread'],
    'debug': ['-O0', '-g', '-DGROOTV_DEBUG'],
}


def namespace(kind: str) -> str:
    return 'grootv_emulated_full_size' if kind == 'full_size' else 'grootv_emulated'


def build(kind: str = 'small') -> Path:
    """Compile what changed since the last call and return the library. Processes take turns."""
    folder = ROOT / 'build' / f'emulation-{kind}'
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(kind, folder)


def _build(kind: str, folder: Path) -> Path:
    kernels = [source for source in sorted(CSRC.glob('cuda/**/*.cu')) if source.stem != 'primitives']
    sources = [CSRC / 'library.cpp', *kernels, HERE / 'emulation.cpp', HERE / 'primitives.cpp']
    headers = [*CSRC.rglob('*.h'), *HERE.glob('*.h'), Path(__file__)]
    newest_header = max(header.stat().st_mtime for header in headers)

    def compile_source(source: Path) -> Path:
        target = folder / f'{source.stem}.o'
        newest = max(newest_header, source.stat().st_mtime)
        if not target.exists() or target.stat().st_mtime < newest:
            subprocess.run([*_compiler(source, kind), '-c', source, '-o', target], check=True)
        return target

    with ThreadPoolExecutor(int(os.environ.get('MAX_JOBS', os.cpu_count()))) as pool:
        objects = list(pool.map(compile_source, sources))
    library = folder / 'emulated.so'
    if not library.exists() or library.stat().st_mtime < max(o.stat().st_mtime for o in objects):
        paths = [f'-L{path}' for path in cpp_extension.library_paths()]
        link = ['g++', '-shared', *FLAGS[kind], *objects, *paths, '-ltorch_cpu', '-ltorch', '-lc10']
        subprocess.run([*link, '-o', f'{library}.new'], check=True)
        os.replace(f'{library}.new', library)
    return library


def _compiler(source: Path, kind: str) -> list:
    flags = ['-O1', '-g1', '-std=c++20', '-fPIC', '-fvisibility=hidden', '-ffp-contract=off']
    flags += ['-Wall', '-Wextra', '-Wno-unused-parameter', '-Wno-unknown-pragmas', '-Wno-psabi']
    flags += ['-Werror'] * (os.environ.get('GROOTV_WERROR') == '1')
    # The names of the real library are taken.
    flags += ['-DGROOTV_EMULATED', f'-Dgrootv={namespace(kind)}', '-DTORCH_TARGET_VERSION=0x020a000000000000']
    flags += [f'-I{path}' for path in (CSRC, HERE)] + [f'-isystem{p}' for p in cpp_extension.include_paths()]
    # The scheduler jumps between stacks: sanitizers must not instrument it, debuggers need not step into it.
    scheduler = source.stem == 'emulation' and kind in ('address', 'thread', 'debug')
    flags += [f'-DGROOTV_{kind.upper()}_SANITIZER'] if scheduler else FLAGS[kind]
    return ['g++', *flags, '-x', 'c++']


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('kind', nargs='?', default='small', choices=FLAGS)
    print(build(parser.parse_args().kind))
