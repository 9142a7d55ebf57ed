"""A network as its config and checkpoint say, and what it gets to see of an image."""

from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from torch import Tensor, nn

from grootv.models.backbones import GrootV
from grootv.utils.checkpoint import load_weights
from grootv.utils.errors import UserError


def build_model(cfg: Config, checkpoint: str | None, trust: bool = False) -> nn.Module:
    """The network of a config, in evaluation mode.

    Args:
        cfg: Config with a GrootV backbone.
        checkpoint: Its weights; None leaves the initial ones, the same at every call.
        trust: See :func:`grootv.utils.checkpoint.load_checkpoint_file`.

    Raises:
        UserError: If the backbone is another one, or the checkpoint does not fit.
    """
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))  # as the Runner does
    if checkpoint is not None:
        cfg.model.backbone.init_cfg = None  # replaced by the checkpoint anyway
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    if not isinstance(getattr(model, 'backbone', None), GrootV):
        raise UserError(f'{cfg.filename} has no GrootV backbone: only that one builds trees')
    if checkpoint is not None:
        load_weights(model, checkpoint, trust)
    return model


def test_set(cfg: Config) -> Config:
    """Config of the test data without the wrappers around it."""
    dataset = cfg.test_dataloader.dataset
    while 'pipeline' not in dataset:
        dataset = dataset.dataset
    return dataset


def network_input(cfg: Config, model: nn.Module, path: str | Path) -> tuple[np.ndarray, Tensor]:
    """What the test pipeline makes of an image: the picture (H, W, 3) uint8 and the network's input."""
    steps = [step for step in test_set(cfg).pipeline if not step.type.endswith(('Annotations', 'SegLabels'))]
    data = Compose([TRANSFORMS.build(step) for step in steps])(dict(img_path=str(path), img_id=0))
    preprocessor = model.data_preprocessor
    inputs = preprocessor(pseudo_collate([data]), False)['inputs']
    picture = inputs * preprocessor.std + preprocessor.mean
    return picture[0].permute(1, 2, 0).round().clamp(0, 255).byte().cpu().numpy(), inputs
