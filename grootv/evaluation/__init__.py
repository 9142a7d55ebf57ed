"""Metrics that OpenMMLab does not have. Importing this package registers them."""

from .perplexity import Perplexity

__all__ = ['Perplexity']
