"""GrootV: vision backbones whose state-space scan runs along a minimum spanning tree."""

import sys
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

__version__ = '0.1.0'


def _leave_out_multimodal_models() -> None:
    """Let mmpretrain import its models without the multimodal ones, which need names of transformers 4."""
    try:
        major = int(version('transformers').partition('.')[0])
    except PackageNotFoundError:  # mmpretrain leaves them out by itself
        return
    if major >= 5:
        name = 'mmpretrain.models.multimodal'
        sys.modules.setdefault(name, ModuleType(name))


_leave_out_multimodal_models()
