"""Data loading that OpenMMLab does not have, each part imported when it is asked for.

Transforms need mmcv, ``grootv.datasets.coco`` needs mmdet.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .transforms import CheckSegLabels, LoadImageFromFile, LoadSegAnnotations

__all__ = ['CheckSegLabels', 'LoadImageFromFile', 'LoadSegAnnotations']


def __getattr__(name: str):
    if name in __all__:
        from . import transforms

        return getattr(transforms, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
