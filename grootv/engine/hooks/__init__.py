from .checkpoint import CheckpointHook
from .checkpoint_keys import CheckpointKeysHook
from .data_report import DataReportHook
from .ema import EMAHook
from .epoch_seed import EpochSeedHook
from .progress import ProgressHook, progress_bar
from .resume import ResumeHook

__all__ = [
    'CheckpointHook',
    'CheckpointKeysHook',
    'DataReportHook',
    'EMAHook',
    'EpochSeedHook',
    'ProgressHook',
    'ResumeHook',
    'progress_bar',
]
