"""The parts of the backbone. Maps are (B, H, W, C), contiguous, from the stem to the last stage."""

from .block import Block
from .downsample import Downsample
from .mlp import MLP
from .stage import Stage
from .stem import Stem
from .tree_ssm import TreeSSM

__all__ = ['MLP', 'Block', 'Downsample', 'Stage', 'Stem', 'TreeSSM']
