"""What editors and type checkers follow without a build or an import hook."""

import os
import runpy
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_operators_resolve_in_a_bare_checkout():
    assert os.readlink(ROOT / 'grootv/ops') == '../ops'
    spec = PathFinder.find_spec('grootv.ops.tree', [str(ROOT / 'grootv/ops')])
    assert Path(spec.origin).resolve() == ROOT / 'ops/tree.py'


def test_types_are_part_of_the_package():
    assert (ROOT / 'grootv/py.typed').is_file()


def test_no_flag_of_gnu_alone_on_macos(monkeypatch):
    given = {}
    monkeypatch.setattr('setuptools.setup', lambda **options: given.update(options))
    monkeypatch.setattr('sys.platform', 'darwin')
    monkeypatch.setenv('FORCE_CUDA', '0')
    runpy.run_path(str(ROOT / 'setup.py'))
    flags = [flag for e in given['ext_modules'] for flag in [*e.libraries, *e.extra_link_args]]
    assert not {'stdc++', '-Wl,-z,defs'} & {*flags} and not any('version-script' in flag for flag in flags)
