"""Build the source distribution, from it a wheel, and check what the wheel needs.

python tools/build_wheel.py dist

The wheel has the CUDA library where setup.py builds one; see there for the environment variables.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SDIST = 'import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))'


def build(folder: Path) -> tuple[Path, Path]:
    """Source distribution and wheel of this checkout.

    Args:
        folder: Where they go; made if it does not exist.

    Returns:
        The paths of both.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-c', SDIST, str(folder)]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    sdist = folder / result.stdout.split()[-1]
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', 'wheel', '-v', '--no-cache-dir']
    before = {path: path.stat().st_mtime_ns for path in folder.glob('*.whl')}
    subprocess.run([*pip, '--no-build-isolation', '--no-deps', '-w', folder, sdist], check=True)
    (wheel,) = (path for path in folder.glob('*.whl') if before.get(path) != path.stat().st_mtime_ns)
    return sdist, wheel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path)
    sdist, wheel = build(parser.parse_args().folder)
    subprocess.run([sys.executable, ROOT / 'tools/check_wheel.py', wheel], check=True)
    print(sdist, wheel, sep='\n')


if __name__ == '__main__':
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
