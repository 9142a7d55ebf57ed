"""Data loading that OpenMMLab does not have. Importing this package registers it.

``grootv.datasets.coco`` is imported only when a config asks for it: it needs mmdet.
"""

from .transforms import CheckSegLabels, LoadImageFromFile, LoadSegAnnotations

__all__ = ['CheckSegLabels', 'LoadImageFromFile', 'LoadSegAnnotations']
