"""Let mmpretrain import its models where transformers 5 is installed.

Its multimodal models import names that transformers 5 no longer has. Importing this file, as
``import grootv`` does, leaves them out.
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
