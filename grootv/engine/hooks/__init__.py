from .checkpoint import CheckpointHook
from .checkpoint_keys import CheckpointKeysHook
from .epoch_seed import EpochSeedHook

__all__ = ['CheckpointHook', 'CheckpointKeysHook', 'EpochSeedHook']
