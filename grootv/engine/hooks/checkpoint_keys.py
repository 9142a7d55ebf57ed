"""Refuse a checkpoint that does not belong to the model."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from grootv.checkpoint import check_keys, check_names
from grootv.registry import HOOKS


@HOOKS.register_module()
class CheckpointKeysHook(Hook):
    """Compare a checkpoint with the model and the data before it is loaded; MMEngine itself only warns.

    Args:
        strict: Every weight must match by name and shape (testing, resuming). Otherwise one match
            is enough (fine-tuning from another task), and a warning tells what is not loaded.
    """

    priority = 'VERY_HIGH'

    def __init__(self, strict: bool = True):
        self.strict = strict

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if 'state_dict' not in checkpoint:  # other hooks look for it
            weights = dict(checkpoint)
            checkpoint.clear()
            checkpoint['state_dict'] = weights
        if not self.strict:
            # Its state_dict is the average already. mmpretrain's EMAHook would swap the two, start from
            # the weights behind the average, and refuse an average of other shapes.
            checkpoint.pop('ema_state_dict', None)
        data = runner.visualizer.dataset_meta or {}  # every loop notes it there
        check_keys(runner.model, checkpoint, self.strict, data.get('classes'))
        if self.strict:
            check_names(checkpoint, data.get('classes'))
