"""Courses of a learning rate that MMEngine does not have."""

import math

import mmengine.optim

from grootv.registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class CosineAnnealingLR(mmengine.optim.CosineAnnealingLR):
    """A cosine over the whole run, whose first part a warm-up overrides, as in timm.

    At step t from ``begin`` on it is ``eta_min + (lr - eta_min) * (1 + cos(pi * t / end)) / 2``.
    MMEngine's own cosine starts at ``begin`` and is later for as long as the warm-up takes.

    Args:
        *args: As for :class:`mmengine.optim.CosineAnnealingLR`; ``T_max`` is counted from ``begin``.
        **kwargs: Likewise.
    """

    def _get_value(self) -> list[float]:
        step = (self.begin + self.last_step) / (self.begin + self.T_max)
        share = (1 + math.cos(math.pi * step)) / 2
        ratio, floor = self.eta_min_ratio, self.eta_min
        floors = (floor if ratio is None else ratio * value for value in self.base_values)
        return [low + (value - low) * share for low, value in zip(floors, self.base_values, strict=True)]
