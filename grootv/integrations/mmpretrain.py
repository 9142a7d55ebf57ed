"""mmpretrain beside transformers 5, which dropped names that its multimodal models import.

Importing this file, as ``import grootv`` does, lets mmpretrain import its other models without them.
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

_NAME = 'mmpretrain.models.multimodal'

try:
    if int(version('transformers').partition('.')[0]) >= 5:
        sys.modules.setdefault(_NAME, ModuleType(_NAME))
except PackageNotFoundError:  # mmpretrain leaves them out by itself
    pass
