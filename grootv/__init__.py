"""GrootV: vision backbones whose state-space scan runs along a minimum spanning tree."""

__version__ = '0.1.0'
