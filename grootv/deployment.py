"""Networks as deployment formats take them: a plain module from images to tensors."""

import torch
from mmengine.config import Config
from torch import Tensor, nn

from grootv.checkpoint import build_model
from grootv.errors import UserError


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
        trust: As for :func:`grootv.checkpoint.load_checkpoint_file`.

    Returns:
        Image (B, 3, H, W), normalised -> logits of a classifier, or the tuple of maps of another
        model's backbone. No parameter requires a gradient.

    Raises:
        UserError: If the config has no model with a backbone, or the checkpoint is not its own.
    """
    if 'backbone' not in cfg.get('model', {}):
        raise UserError(f'{cfg.filename} has no model with a backbone: give a config that trains a network')
    model = build_model(cfg, checkpoint, trust)
    is_classifier = cfg.model.type.split('.')[-1] == 'ImageClassifier'
    return (Logits(model) if is_classifier else model.backbone).requires_grad_(False)


def random_images(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Images (batch, 3, height, width) of normal noise, the same for the same arguments."""
    return torch.randn((batch, 3, height, width), generator=torch.Generator().manual_seed(seed))
