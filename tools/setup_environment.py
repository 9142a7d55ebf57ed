"""Install what a target of the Makefile needs into the running Python.

    python tools/setup_environment.py demo

``--help`` lists the targets. Every step looks first and skips what is already there, so a second call takes
seconds. A torch that is already installed is kept, and every other package is resolved against it.
"""

import argparse
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Three equals signs ask for the registry's own build: torchvision's binary fits the torch it was built with.
TORCH_PAIR = ['torch===2.13.0', 'torchvision===0.28.0']
MMCV = 'onedl-mmcv==2.3.6'
# Whether mmcv is needed.
PROFILES = {
    'demo': True,
    'demo-detection': True,
    'demo-segmentation': True,
    'demo-language': False,
    'test': True,
    'app': True,
    'test-app': True,
    'test-ops': False,
    'docs': True,
}
BUILD_TOOLS = ['setuptools>=80', 'wheel', 'ninja', 'psutil', 'packaging', 'numpy']
WHEEL_CACHE = Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'grootv/wheels'


def say(text: str) -> None:
    print(f'[setup] {text}', flush=True)


def fail(text: str) -> None:
    sys.exit(f'[setup] {text}')


def pip(*args: str, **environment: str) -> None:
    command = [sys.executable, '-m', 'pip', '--disable-pip-version-check', *args]
    if subprocess.run(command, env={**os.environ, **environment}).returncode:
        fail(f'this command failed, its own message is above: {" ".join(command)}')


def python(code: str) -> tuple[bool, str]:
    """Run code in a fresh interpreter; whether it worked, and its output or the last line of its error."""
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    said = result.stderr if result.returncode else result.stdout
    return result.returncode == 0, (said.strip().splitlines() or [f'exit status {result.returncode}'])[-1]


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def ensure_build_tools() -> None:
    look = 'import setuptools as s, ninja, psutil, numpy; assert int(s.__version__.split(".")[0]) >= 80'
    if not python(look)[0]:
        pip('install', '-q', *BUILD_TOOLS)


def ensure_torch(vision: bool = True) -> str:
    """Install torch, and torchvision with it, if there are none; return the full version of torch."""
    wanted = TORCH_PAIR if vision else TORCH_PAIR[:1]
    if version('torch') is None:
        say(f'installing {" and ".join(wanted)} (no torch found)')
        pip('install', '-q', *wanted)
    elif vision and version('torchvision') is None:
        say(f'keeping torch {version("torch")} and installing the torchvision that fits')
        pip('install', '-q', 'torchvision', '-c', constraints())
    works, found = python(f'import torch{", torchvision" * vision}; print(torch.__version__)')
    if not works:
        pair = f'torch {version("torch")} and torchvision {version("torchvision")}'
        fail(f'{pair} do not fit together ({found}): install both from one source.')
    say(f'torch {found}, torchvision {version("torchvision")}')
    return found


def constraints() -> str:
    """A pip constraints file that keeps the installed torch, torchvision and mmcv."""
    kept = {name: version(name) for name in ('torch', 'torchvision', 'onedl-mmcv')}
    path = Path(sys.prefix) / 'grootv-constraints.txt'
    path.write_text(''.join(f'{name}=={found}\n' for name, found in kept.items() if found))
    return str(path)


def ensure_mmcv(torch_version: str) -> None:
    """Install mmcv, whose C++ operators are compiled only if GROOTV_COMPILE_MMCV=1 asks for them."""
    compiled = os.environ.get('GROOTV_COMPILE_MMCV') == '1'
    look = f'{"" if compiled else "import grootv; "}from mmcv.ops import nms'
    if python(look)[0]:
        return
    if version('onedl-mmcv'):
        pip('uninstall', '-q', '-y', 'onedl-mmcv')
    wheel = compiled_mmcv(torch_version) if compiled else None
    say(f'installing mmcv {"with" if compiled else "without"} its compiled operators')
    # pip's isolation hides torch, and its cache may have operators for another.
    pip('install', '-q', '--no-cache-dir', '-c', constraints(), str(wheel or MMCV))
    works, message = python(look)
    if not works:
        place = wheel.parent if wheel else f'torch {torch_version}'
        fail(f'mmcv does not work here ({message}): delete {place} and try again.')


def compiled_mmcv(torch_version: str) -> Path:
    """The wheel of mmcv with operators for this torch and Python, built if there is none."""
    key = f'{MMCV.replace("==", "-")}-torch{torch_version}-cp{sys.version_info.major}{sys.version_info.minor}'
    return next((WHEEL_CACHE / key).glob('*.whl'), None) or build_mmcv(WHEEL_CACHE / key)


def build_mmcv(folder: Path) -> Path:
    """Build mmcv with operators and keep its wheel in ``folder``, outside the checkout."""
    jobs = os.environ.get('MAX_JOBS', str(os.cpu_count()))
    say(f'building the operators of {MMCV} with {jobs} jobs, once: 9 to 18 minutes on two cores')
    WHEEL_CACHE.mkdir(parents=True, exist_ok=True)
    # Without isolation the build sees torch; with it, or from pip's cache, there would be no operators.
    options = ['--no-cache-dir', '--no-build-isolation', '--no-deps']
    with tempfile.TemporaryDirectory(dir=WHEEL_CACHE) as build:
        # FORCE_CUDA is for our operators: mmcv's setup fails by it where torch sees no GPU.
        pip('wheel', '-q', *options, MMCV, '-w', build, CFLAGS='-g0', MAX_JOBS=jobs, FORCE_CUDA='0')
        folder.mkdir(exist_ok=True)
        return Path(shutil.move(next(Path(build).glob('*.whl')), folder))


def digest_of(*patterns: str) -> str:
    """Fingerprint of the files that a step depends on."""
    digest = hashlib.sha256(str(ROOT).encode())
    for path in sorted(path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def requirements(name: str) -> set[str]:
    """Lines of requirements/NAME.txt and of the files that it includes."""
    lines = (ROOT / f'requirements/{name}.txt').read_text().splitlines()
    included = [line.split()[1].removesuffix('.txt') for line in lines if line.startswith('-r ')]
    own = {line for line in lines if line and not line.startswith('-r ')}
    return own.union(*map(requirements, included))


def ensure_requirements(profile: str) -> None:
    """Install requirements/PROFILE.txt unless all its lines have been installed before."""
    stamp, wanted = Path(sys.prefix) / 'grootv-requirements.txt', requirements(profile)
    installed = set(stamp.read_text().splitlines()) if stamp.exists() else set()
    if wanted <= installed:
        return
    say(f'installing requirements/{profile}.txt')
    # Some of them come as sources, which need setuptools to build and no second copy of torch.
    options = ['--no-build-isolation', '-c', constraints()]
    pip('install', '-q', '-r', str(ROOT / f'requirements/{profile}.txt'), *options)
    stamp.write_text('\n'.join(sorted(installed | wanted)))


def skip_cuda_of_demo() -> None:
    """Leave the CUDA library out where a demo could not use it: its build takes longer than the demo."""
    if 'FORCE_CUDA' in os.environ or (ROOT / 'ops/_cuda.so').exists() or shutil.which('nvcc') is None:
        return
    if python('import torch; print(torch.cuda.is_available())')[1] == 'False':
        say('leaving the CUDA library out, as there is no GPU here: FORCE_CUDA=1 builds it')
        os.environ['FORCE_CUDA'] = '0'


def start_operator() -> Callable[[], None]:
    """Begin to build the operator libraries in the checkout, if need be; the result waits for their end."""
    require = 'from grootv.ops import _library; _library.require()'
    # The libraries serve every Python and torch, so environments share them.
    stamp, digest = ROOT / 'build/operators.stamp', digest_of('setup.py', 'pyproject.toml', 'ops/csrc/**/*')
    digest += ''.join(os.environ.get(name, '') for name in ('FORCE_CUDA', 'GROOTV_DEBUG'))
    if stamp.exists() and stamp.read_text() == digest and python(require)[0]:
        return lambda: None
    say('building the tree-scan operators: a minute on two cores, with the CUDA library six more')
    build = subprocess.Popen([sys.executable, 'setup.py', '-q', 'build_ext', '--inplace'], cwd=ROOT)

    def finish() -> None:
        if build.wait():
            fail("the operators do not build, the compiler's own message is above")
        works, message = python(require)
        if not works:
            fail(f'the operators were built but do not load: {message}')
        say(f'built {" and ".join(sorted(library.name for library in ROOT.glob("ops/*.so")))}')
        stamp.parent.mkdir(exist_ok=True)
        stamp.write_text(digest)

    return finish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('profile', choices=[*PROFILES, 'lint', 'wheel'])
    profile = parser.parse_args().profile
    if profile == 'lint':
        ensure_requirements(profile)
        return
    ensure_build_tools()
    torch_version = ensure_torch(vision=profile != 'test-ops')
    if profile == 'wheel':
        return
    if profile.startswith('demo'):
        skip_cuda_of_demo()
    finish_operator = start_operator()  # next to the downloads
    if PROFILES[profile]:
        ensure_mmcv(torch_version)
    ensure_requirements(profile)
    finish_operator()
    if profile != 'test-ops' and version('grootv') is None:
        options = ['--no-build-isolation', '--no-deps']
        pip('install', '-q', *options, '-e', str(ROOT), GROOTV_PREBUILT='1')


if __name__ == '__main__':
    main()
