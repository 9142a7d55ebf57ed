"""The distributions of ``make wheel``: what they need, and the operators' tests where only torch is."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.system.wheel import environment
from tests.tools.tiny_run import ROOT, load_tool

OPERATORS = ('__init__', 'cases', 'conftest', 'devices', 'test_differentiable', 'test_operators')
OPERATORS += ('test_scan', 'test_tokens', 'test_tree')
TOOLS = ('pip', 'pytest', 'hypothesis', 'scipy')  # to install and to test, not to run
check_wheel = load_tool('check_wheel.py')


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from the source distribution, without the CUDA library, which takes minutes."""
    folder = tmp_path_factory.mktemp('dist')
    command = [sys.executable, ROOT / 'tools/build_wheel.py', folder]
    subprocess.run(command, env={**os.environ, 'FORCE_CUDA': '0'}, check=True)
    (sdist,) = folder.glob('*.tar.gz')
    with tarfile.open(sdist) as archive:
        packed = {name.partition('/')[2] for name in archive.getnames()}
    assert packed >= {str(path.relative_to(ROOT)) for path in ROOT.glob('ops/csrc/**/*.*')}
    return next(folder.glob('*.whl'))


def unpacked(wheel: Path, folder: Path) -> Path:
    """Folder of the wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return next(folder.glob('*.dist-info'))


def run(python: Path, *args: object, **options) -> str:
    outside = {name: value for name, value in os.environ.items() if not name.startswith('PYTHON')}
    result = subprocess.run(
        [python, *map(str, args)], env=outside, capture_output=True, text=True, timeout=600, **options
    )
    assert result.returncode == 0, f'{result.stdout[-3000:]}\n{result.stderr[-3000:]}'
    return result.stdout


def test_it_needs_no_more_than_is_stated(wheel):
    assert {'grootv/ops/_cpu.so', 'grootv/ops/_onnxruntime.so'} <= check_wheel.check(wheel).keys()


@pytest.mark.skipif(os.environ.get('FORCE_CUDA') != '1', reason='the CUDA library is not asked for')
def test_the_cuda_library_needs_no_more_than_is_stated():
    check_wheel.needs(ROOT / 'ops/_cuda.so')


def test_the_operators_where_only_torch_is(wheel, tmp_path):
    python = environment.create(tmp_path / 'environment', ['torch', 'numpy', *TOOLS])
    run(python, '-m', 'pip', 'install', '--no-index', '--no-deps', wheel)
    tests = tmp_path / 'tests'
    (tests / 'ops').mkdir(parents=True)
    for name in ('__init__.py', 'conftest.py', *(f'ops/{name}.py' for name in OPERATORS)):
        shutil.copy(ROOT / 'tests' / name, tests / name)

    where = 'import importlib.util as u, grootv.ops as o; print(o.__file__, u.find_spec("mmengine"))'
    found, mmengine = run(python, '-c', where, cwd=tmp_path).split()
    assert Path(found).is_relative_to(tmp_path) and mmengine == 'None'
    options = ('-q', '-p', 'no:cacheprovider', '--device=cpu')
    summary = run(python, '-m', 'pytest', *options, tests, cwd=tmp_path).splitlines()[-1]
    assert 'passed' in summary and 'failed' not in summary


TRAIN = """
import timm, torch
import grootv.integrations.timm
model = timm.create_model('grootv_tiny', num_classes=2, embed_dims=8, depths=[1, 1, 1, 1])
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 2
for _ in range(30):
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
"""


def test_it_trains_with_timm_where_only_its_requirements_are(wheel, tmp_path):
    needed = [Requirement(line) for line in Distribution.at(unpacked(wheel, tmp_path / 'unpacked')).requires]
    names = [requirement.name for requirement in needed if requirement.marker is None]
    assert 'timm' in names and 'onedl-mmcv' not in names
    python = environment.create(tmp_path / 'environment', [*names, 'pip'])
    run(python, '-m', 'pip', 'install', '--no-index', '--no-deps', wheel)
    run(python, '-m', 'pip', 'check')
    assert float(run(python, '-c', TRAIN, cwd=tmp_path).splitlines()[-1]) < 0.1


def compiled(folder: Path, source: str, *options: object, name: str = 'library') -> Path:
    (folder / 'source.cpp').write_text(source)
    library = folder / f'{name}.so'
    command = ['g++', '-shared', '-fPIC', f'-Wl,-soname,{name}.so', folder / 'source.cpp', *options]
    subprocess.run([*map(str, command), '-o', library], check=True)
    return library


def test_a_foreign_symbol_or_library_and_a_newer_libc_are_refused(tmp_path, monkeypatch):
    other = compiled(tmp_path, 'int g() { return 1; }', name='libpython3.11')
    for found, source, *options in (
        ('PyList_Size', 'extern "C" int PyList_Size(void*); int f() { return PyList_Size(0); }'),
        ('_ZN2at4sizeEv', 'namespace at { int size(); } int f() { return at::size(); }'),
        (r'libpython3\.11\.so', 'int f();', '-Wl,--no-as-needed', other),
    ):
        with pytest.raises(ValueError, match=f'library.so needs {found}: link it with less'):
            check_wheel.needs(compiled(tmp_path, source, *options))

    library = compiled(tmp_path, '#include <cstdlib>\nint f() { return atoi(getenv("A")); }')
    assert check_wheel.needs(library)['GLIBC'] == (2, 2, 5)
    monkeypatch.setitem(check_wheel.NEWEST, 'GLIBC', (2, 1))
    with pytest.raises(ValueError, match=r'getenv of GLIBC 2\.2\.5'):
        check_wheel.needs(library)
