"""Data loading that OpenMMLab does not have, each part imported when it is asked for.

Transforms need mmcv, data sets the OpenMMLab library of their task.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .classification import ImageNet
    from .coco import CocoDataset, CocoMetric
    from .segmentation import ADE20KDataset, SegDataset
    from .transforms import CheckSegLabels, LoadImageFromFile, LoadSegAnnotations

_MODULES = {
    'ADE20KDataset': 'segmentation',
    'CheckSegLabels': 'transforms',
    'CocoDataset': 'coco',
    'CocoMetric': 'coco',
    'ImageNet': 'classification',
    'LoadImageFromFile': 'transforms',
    'LoadSegAnnotations': 'transforms',
    'SegDataset': 'segmentation',
}
__all__ = [
    'ADE20KDataset',
    'CheckSegLabels',
    'CocoDataset',
    'CocoMetric',
    'ImageNet',
    'LoadImageFromFile',
    'LoadSegAnnotations',
    'SegDataset',
]


def __getattr__(name: str):
    if name in _MODULES:
        return getattr(import_module(f'{__name__}.{_MODULES[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
