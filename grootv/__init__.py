"""GrootV: vision backbones whose state-space scan runs along a minimum spanning tree."""

import grootv.integrations.mmcv
import grootv.integrations.mmpretrain  # noqa: F401

__version__ = '0.1.0'
