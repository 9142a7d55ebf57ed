"""Data loading that OpenMMLab does not have. Importing this package registers it."""

from .transforms import LoadImageFromFile

__all__ = ['LoadImageFromFile']
