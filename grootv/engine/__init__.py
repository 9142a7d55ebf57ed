"""Training parts that OpenMMLab does not have. Importing this package registers them."""

from .hooks import (
    CheckpointHook,
    CheckpointKeysHook,
    DataReportHook,
    EMAHook,
    EpochSeedHook,
    ProgressHook,
    ResumeHook,
    progress_bar,
)
from .optimizers import BFloat16OptimWrapper, LayerDecayOptimWrapperConstructor

__all__ = [
    'BFloat16OptimWrapper',
    'CheckpointHook',
    'CheckpointKeysHook',
    'DataReportHook',
    'EMAHook',
    'EpochSeedHook',
    'LayerDecayOptimWrapperConstructor',
    'ProgressHook',
    'ResumeHook',
    'progress_bar',
]
