from .loading import LoadImageFromFile
from .segmentation import CheckSegLabels, LoadSegAnnotations

__all__ = ['CheckSegLabels', 'LoadImageFromFile', 'LoadSegAnnotations']
