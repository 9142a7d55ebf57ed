"""What editors and type checkers follow without a build or an import hook."""

import os
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_operators_resolve_in_a_bare_checkout():
    assert os.readlink(ROOT / 'grootv/ops') == '../ops'
    spec = PathFinder.find_spec('grootv.ops.tree', [str(ROOT / 'grootv/ops')])
    assert Path(spec.origin).resolve() == ROOT / 'ops/tree.py'


def test_types_are_part_of_the_package():
    assert (ROOT / 'grootv/py.typed').is_file()
