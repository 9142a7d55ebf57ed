"""What every network of the configs computes with the operators of mmcv that this process finds.

    python -m tests.configs.record SCENES FILE [hidden]

``hidden`` hides mmcv's compiled operators, as if mmcv had been installed without them.
"""

import random
import sys
from pathlib import Path

import numpy as np
import torch

import grootv  # noqa: F401 # before mmdet


def record(scenes: Path, name: str) -> dict:
    """Losses and gradients of one batch, and the predictions for one image."""
    from mmengine.runner import Runner

    from . import parts
    from .small import small

    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    config = small(scenes, name)
    model = parts.start(config.model).train()
    batch = next(iter(Runner.build_dataloader(config.train_dataloader, seed=0)))
    loss, losses = model.parse_losses(model(**model.data_preprocessor(batch, training=True), mode='loss'))
    loss.backward()
    gradients = {
        key: parameter.grad for key, parameter in model.named_parameters() if parameter.requires_grad
    }
    batch = next(iter(Runner.build_dataloader(config.test_dataloader)))
    with torch.no_grad():
        (sample,) = model.eval().test_step(batch)
    if name in parts.SEGMENTORS:
        found = dict(labels=sample.pred_sem_seg.data)
    else:
        found = {key: torch.as_tensor(value) for key, value in sample.pred_instances.items()}
    return dict(losses=losses, gradients=gradients, found=found)


if __name__ == '__main__':
    if 'hidden' in sys.argv:
        import tests.hide_operators  # noqa: F401
    from . import parts

    folder, file = sys.argv[1:3]
    names = [*parts.DETECTORS, *parts.SEGMENTORS]
    results = {name: record(Path(folder), name) for name in names}
    extension = sys.modules['mmcv._ext'].__file__
    torch.save(dict(results, extension=extension), file)
