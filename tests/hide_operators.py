"""Importing this file hides mmcv's compiled operators, as if mmcv had been installed without them."""

from importlib.machinery import PathFinder

_find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name == 'mmcv._ext' else _find(name, *rest)
