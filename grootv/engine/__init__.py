"""Training parts that OpenMMLab does not have. Importing this package registers them."""

from .hooks import CheckpointHook, CheckpointKeysHook, EpochSeedHook
from .optimizers import BFloat16OptimWrapper, LayerDecayOptimWrapperConstructor

__all__ = [
    'BFloat16OptimWrapper',
    'CheckpointHook',
    'CheckpointKeysHook',
    'EpochSeedHook',
    'LayerDecayOptimWrapperConstructor',
]
