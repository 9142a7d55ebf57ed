"""The networks. GrootVClsHead is imported when it is asked for: it needs mmpretrain, the others do not."""

from .backbones import GrootV

__all__ = ['GrootV', 'GrootVClsHead']


def __getattr__(name: str):
    if name == 'GrootVClsHead':
        from .heads import GrootVClsHead

        return GrootVClsHead
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
