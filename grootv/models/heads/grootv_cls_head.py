import torch.nn.functional as F
from mmpretrain.models.heads import ClsHead
from torch import Tensor

from grootv.models.backbones.grootv import Classifier
from grootv.registry import MODELS


@MODELS.register_module()
class GrootVClsHead(Classifier, ClsHead):
    """1x1 convolution, BatchNorm, GELU, global average pool and a linear classifier on the last
    map.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the backbone's last map.
        hidden_ratio: Channels after the convolution over ``in_channels``.
        **kwargs: ``loss``, ``topk``, ``cal_acc`` and ``init_cfg`` of mmpretrain's ``ClsHead``.
    """

    def __init__(self, num_classes: int, in_channels: int, hidden_ratio: float = 1.5, **kwargs):
        if num_classes < 1:
            raise ValueError(f'GrootVClsHead: num_classes must be at least 1, got {num_classes}')
        super().__init__(in_channels, num_classes, hidden_ratio, **kwargs)
        self.num_classes = num_classes

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Feature vectors (B, hidden) of the last of the maps (B, in_channels, H, W)."""
        return F.adaptive_avg_pool2d(self.project(feats[-1]), 1).flatten(1)

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Logits (B, num_classes)."""
        return self.fc(self.pre_logits(feats))
