"""The networks. Importing this package registers them."""

from .backbones import GrootV
from .heads import GrootVClsHead

__all__ = ['GrootV', 'GrootVClsHead']
