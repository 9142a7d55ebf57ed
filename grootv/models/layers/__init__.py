"""The parts of the networks. Maps are (B, H, W, C), contiguous, from the stem to the last stage."""

from .block import Block
from .classifier import Classifier
from .downsample import Downsample
from .mlp import MLP
from .stage import Stage
from .stem import Stem
from .tree_ssm import TreeSSM

__all__ = ['MLP', 'Block', 'Classifier', 'Downsample', 'Stage', 'Stem', 'TreeSSM']
