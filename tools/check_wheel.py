"""Report what the libraries of a wheel need from the machine, and refuse what would tie them to one.

python tools/check_wheel.py dist/grootv-*.whl

Allowed are torch's C interface, which keeps its functions from one release to the next, and the C and C++
libraries of Linux distributions since 2022. Nothing of Python is: one wheel serves every Python.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

TORCH_INTERFACE = re.compile(r'(aoti_torch|torch)_[a-z]\w*')
SHARED_LIBRARIES = re.compile(
    r'lib(c10|torch|torch_cpu|stdc\+\+|gcc_s|m|c|dl|rt|pthread)\.so[.\d]*|ld-linux-[\w-]+\.so[.\d]*'
)
# glibc and gcc of RHEL 9, Ubuntu 22.04 and Debian 12
NEWEST = {'GLIBC': (2, 34), 'GLIBCXX': (3, 4, 29), 'CXXABI': (1, 3, 13), 'GCC': (12, 0)}


def output(*command: str | Path) -> str:
    return subprocess.check_output(command, text=True)


def needs(library: Path) -> dict[str, tuple[int, ...]]:
    """The newest version that a library needs of each set of symbols, for example ``{'GLIBC': (2, 34)}``.

    Raises:
        ValueError: If it needs a shared library, a symbol or a version that is not allowed.
    """
    shared = re.findall(r'\(NEEDED\).*\[(.+)\]', output('readelf', '--dynamic', '--wide', library))
    foreign = sorted(name for name in shared if not SHARED_LIBRARIES.fullmatch(name))
    newest: dict[str, tuple[int, ...]] = {}
    for line in output('nm', '--dynamic', '--undefined-only', library).splitlines():
        kind, symbol = line.split()
        name, _, version = symbol.partition('@')
        if version:
            group, _, numbers = version.strip('@').partition('_')
            found = tuple(map(int, numbers.split('.')))
            newest[group] = max(newest.get(group, ()), found)
            if found > NEWEST[group]:
                foreign.append(f'{name} of {group} {numbers}')
        elif kind not in 'wv' and not TORCH_INTERFACE.fullmatch(name):
            foreign.append(name)
    if foreign:
        raise ValueError(
            f'{library.name} needs {", ".join(foreign)}: link it with less, or on an older system'
        )
    return newest


def check(wheel: Path) -> dict[str, dict[str, tuple[int, ...]]]:
    """What each library of a wheel needs, by name; ValueError if it is too much, or there is none."""
    if '-py3-none-' not in wheel.name:
        raise ValueError(f'{wheel.name} is not for every Python: its tag must be py3-none')
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith('.so')]
        if not names:
            raise ValueError(f'{wheel.name} has no compiled library')
        return {name: needs(Path(archive.extract(name, folder))) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('wheel', type=Path)
    try:
        libraries = check(parser.parse_args().wheel)
    except ValueError as error:
        sys.exit(f'check_wheel.py: {error}')
    for name, versions in libraries.items():
        print(name, *(f'{group} {".".join(map(str, found))}' for group, found in sorted(versions.items())))


if __name__ == '__main__':
    main()
