"""A network as its config and checkpoint say, and its input for an image."""

from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import TRANSFORMS
from torch import Tensor, nn

from grootv import checkpoint as checkpoint_module
from grootv.errors import UserError
from grootv.models.backbones import GrootV
from grootv.registry import class_name


def build_model(cfg: Config, checkpoint: str | None = None, trust: bool = False) -> nn.Module:
    """The model of a config with a GrootV backbone; see :func:`grootv.checkpoint.build_model`.

    Raises:
        UserError: If the backbone is another one, or the checkpoint does not fit.
    """
    model = checkpoint_module.build_model(cfg, checkpoint, trust)
    if not isinstance(getattr(model, 'backbone', None), GrootV):
        raise UserError(f'{cfg.filename} has no GrootV backbone: only that one builds trees')
    return model


def test_set(cfg: Config) -> Config:
    """Config of the test data without the wrappers around it."""
    dataset = cfg.test_dataloader.dataset
    while 'pipeline' not in dataset:
        dataset = dataset.dataset
    return dataset


def network_input(cfg: Config, model: nn.Module, path: str | Path) -> tuple[np.ndarray, Tensor]:
    """What the test pipeline makes of an image: the picture (H, W, 3) uint8 and the network's input."""
    labels = ('Annotations', 'SegLabels')
    steps = [step for step in test_set(cfg).pipeline if not class_name(step.type).endswith(labels)]
    data = Compose([TRANSFORMS.build(step) for step in steps])(dict(img_path=str(path), img_id=0))
    preprocessor: Any = model.data_preprocessor
    inputs = preprocessor(pseudo_collate([data]), False)['inputs']
    picture = inputs * preprocessor.std + preprocessor.mean
    return picture[0].permute(1, 2, 0).round().clamp(0, 255).byte().cpu().numpy(), inputs
