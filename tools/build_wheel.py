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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path, help='made if it does not exist')
    folder = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    built = subprocess.check_output([sys.executable, '-c', SDIST, folder], cwd=ROOT, text=True)
    sdist = folder / built.split()[-1]
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', 'wheel', '-v', '--no-cache-dir']
    subprocess.run([*pip, '--no-build-isolation', '--no-deps', '-w', folder, sdist], check=True)
    wheel = max(folder.glob('*.whl'), key=lambda path: path.stat().st_mtime_ns)
    subprocess.run([sys.executable, ROOT / 'tools/check_wheel.py', wheel], check=True)
    print(sdist, wheel, sep='\n')


if __name__ == '__main__':
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
