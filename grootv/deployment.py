"""Networks as deployment formats take them: a plain module from images to tensors."""

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from grootv.utils import pretrained
from grootv.utils.checkpoint import load_weights
from grootv.utils.errors import UserError


class Logits(nn.Module):
    """A classifier without preprocessing and loss: image (B, 3, H, W), normalised -> logits (B, classes)."""

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.backbone = classifier.backbone
        self.neck = nn.Identity() if classifier.neck is None else classifier.neck
        self.head = classifier.head

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.neck(self.backbone(image)))


def deployable(cfg: Config, checkpoint: str | None = None, trust: bool = False) -> nn.Module:
    """The part of a config's model that is deployed, in evaluation mode and on the CPU.

    Args:
        cfg: Config of a classifier, detector or segmentor.
        checkpoint: Weights of the whole model; None leaves them random.
        trust: As for :func:`grootv.utils.checkpoint.load_checkpoint_file`.

    Returns:
        Image (B, 3, H, W), normalised -> logits of a classifier, or the tuple of maps of another
        model's backbone. No parameter requires a gradient.

    Raises:
        UserError: If the config has no model with a backbone, or the checkpoint is not its own.
    """
    pretrained.drop(cfg)
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    if 'backbone' not in cfg.get('model', {}):
        raise UserError(f'{cfg.filename} has no model with a backbone: give a config that trains a network')
    model = MODELS.build(cfg.model)
    if checkpoint is not None:
        load_weights(model, checkpoint, trust)
    is_classifier = cfg.model.type.split('.')[-1] == 'ImageClassifier'
    return (Logits(model) if is_classifier else model.backbone).eval().requires_grad_(False)


def random_images(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Images (batch, 3, height, width) of normal noise, the same for the same arguments."""
    return torch.randn((batch, 3, height, width), generator=torch.Generator().manual_seed(seed))
