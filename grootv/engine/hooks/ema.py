"""The average of the weights under every runner."""

from mmengine.hooks import EMAHook as _EMAHook
from mmengine.runner import Runner

from grootv.registry import HOOKS


@HOOKS.register_module()
class EMAHook(_EMAHook):
    """MMEngine's hook, for FlexibleRunner too, which loads a checkpoint before it calls ``before_run``.

    Args:
        **kwargs: As for :class:`mmengine.hooks.EMAHook`.
    """

    def before_run(self, runner: Runner) -> None:
        if not hasattr(self, 'ema_model'):
            super().before_run(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self.before_run(runner)
        super().after_load_checkpoint(runner, checkpoint)
