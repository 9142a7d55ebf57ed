"""Operators for an mmcv that was installed without compiled ones.

Importing this file, as ``import grootv`` does, adds a finder that Python asks last, so that ``mmcv._ext`` is
:mod:`grootv.integrations.mmcv_ext` only where mmcv has no file of that name.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

_NAME = 'mmcv._ext'
_IMPORT_OPERATORS = ('mmdet.structures', 'mmdet.utils', 'mmdet.apis', 'mmdet.models', 'mmseg.models')


class _Finder:
    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        if fullname == _NAME:
            return spec_from_file_location(fullname, Path(__file__).with_name('mmcv_ext.py'))


# These libraries keep functions that only raise where they have found no operators.
for _library in _IMPORT_OPERATORS:
    if _library in sys.modules and _NAME not in sys.modules:
        raise ImportError(
            f'grootv provides the operators that mmcv lacks, and {_library} was imported without them: '
            'import grootv first'
        )
sys.meta_path.append(_Finder())
