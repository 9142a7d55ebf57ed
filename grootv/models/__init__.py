"""The networks, each imported when it is asked for: they need different packages."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backbones import GrootV
    from .heads import GrootVClsHead

_MODULES = {'GrootV': 'backbones', 'GrootVClsHead': 'heads'}
__all__ = ['GrootV', 'GrootVClsHead']


def __getattr__(name: str):
    if name in _MODULES:
        return getattr(importlib.import_module(f'.{_MODULES[name]}', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
