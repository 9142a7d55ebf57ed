"""GrootV as models of timm. Importing this file registers grootv_tiny, grootv_small and grootv_base, and the
same with ``edge_decay`` as grootv_tiny_edge, grootv_small_edge and grootv_base_edge.

Parameters have the names that they have in mmpretrain's ImageClassifier, backbone.* and head.*, so
checkpoints of tools/train.py and of tools/model_converters load as they are, and weights trained
with timm load there.
"""

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    Format,  # pyright: ignore[reportPrivateImportUsage]: timm declares no public names
    SelectAdaptivePool2d,  # pyright: ignore[reportPrivateImportUsage]
    register_notrace_module,  # pyright: ignore[reportPrivateImportUsage]
)
from timm.models import (
    FeatureGraphNet,
    FeatureHookNet,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from grootv.checkpoint import safe_globals
from grootv.models.backbones.grootv import ARCHS, NUM_STAGES, Classifier, GrootV
from grootv.models.layers.tree_ssm import TreeSSM, linear

__all__ = ['TimmGrootV']

register_notrace_module(TreeSSM)  # timm's graphs keep it whole: what it does depends on the map's dtype


class TimmGrootV(nn.Module):
    """:class:`GrootV` and its classifier with the interface of timm's models.

    All maps are (B, C, H, W) and contiguous.

    Args:
        embed_dims: Channels of the first stage; each further one has twice as many.
        depths: Blocks of each stage.
        in_chans: Channels of the image.
        num_classes: Number of classes; 0 returns the pooled features.
        global_pool: 'avg', 'max', 'avgmax', 'catavgmax', 'fast' or, without classes, '' for none.
        drop_rate: Dropout probability before the linear layer.
        drop_path_rate: Drop-path probability of the last block.
        device, dtype: Of the parameters.
        **options: ``metric``, ``tree_per``, ``edge_decay``, ``mlp_ratio``, ``layer_scale_init_value``,
            ``post_norm`` and the like of :class:`GrootV`.
    """

    def __init__(
        self,
        embed_dims: int,
        depths: list[int],
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options,
    ):
        super().__init__()
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.backbone = GrootV(
            dict(embed_dims=embed_dims, depths=depths),
            in_channels=in_chans,
            out_indices=(NUM_STAGES - 1,),
            drop_path_rate=drop_path_rate,
            **options,
        )
        self.feature_info = [
            dict(num_chs=embed_dims * 2**i, reduction=4 * 2**i, module=f'backbone.stages.{i}.norm')
            for i in range(NUM_STAGES)
        ]
        self.num_features = self.feature_info[-1]['num_chs']
        self.head = Classifier(self.num_features, num_classes=0)
        self.reset_classifier(num_classes, global_pool)
        self.to(device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Image (B, in_chans, H, W), any H and W -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, (B, num_features, ceil(H/32), ceil(W/32))."""
        return self.backbone(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map -> logits, or the pooled features (B, head_hidden_size) that they are made of."""
        x = self.global_pool(self.head.project(x))
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.head.fc(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of chosen stages, in the network's order, and with them the last map.

        Args:
            x: Image (B, in_chans, H, W).
            indices: Stages; a number n means the last n, None all.
            norm: Has no effect: every map is the output of its stage's norm.
            stop_early: Run no stage after the last chosen one, whose map then counts as the last.
            output_fmt: 'NCHW'.
            intermediates_only: Return the maps of the chosen stages alone.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f'forward_intermediates: output_fmt must be NCHW, got {output_fmt}')
        count = len(self.backbone.stages)
        chosen = feature_take_indices(count, indices, as_set=True)[0]
        wanted = sorted(chosen if stop_early or intermediates_only else {*chosen, count - 1})
        maps = self.backbone(x, wanted)
        intermediates = [m for index, m in zip(wanted, maps, strict=True) if index in chosen]
        return intermediates if intermediates_only else (maps[-1], intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps of the chosen stages do not need; features_only does.

        Args:
            indices: As for :meth:`forward_intermediates`.
            prune_norm: Has no effect: the norms belong to the maps.
            prune_head: Remove the head even where the last stage stays.

        Returns:
            The stages that were chosen, counted from the first.
        """
        stages = self.backbone.stages
        chosen, last = feature_take_indices(len(stages), indices)
        self.backbone.stages = stages[: last + 1]
        self.backbone.stages[last].downsample = None
        self.backbone.out_indices = (last,)
        self.num_features = self.feature_info[last]['num_chs']
        if prune_head or last + 1 < len(stages):
            self.reset_classifier(0, '', reset_other=True)
        return chosen

    def get_classifier(self) -> nn.Module:
        """The linear layer."""
        return self.head.fc

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None, reset_other: bool = False
    ) -> None:
        """Start over with a new linear layer.

        Args:
            num_classes: Number of classes; 0 leaves the layer out.
            global_pool: As for the class; None keeps the present one.
            reset_other: Remove the head's convolution, norm and activation too.
        """
        head = self.head
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        if num_classes and self.global_pool.is_identity():
            raise ValueError(f"GrootV: global_pool='' needs num_classes=0, got {num_classes}")
        if reset_other:
            head.conv, head.norm, head.act = nn.Identity(), nn.Identity(), nn.Identity()
        width = getattr(head.conv, 'out_channels', self.num_features)
        self.num_classes = num_classes
        self.head_hidden_size = width * self.global_pool.feat_mult()
        like = next(self.backbone.parameters())
        head.fc = linear(self.head_hidden_size, num_classes).to(like) if num_classes else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks again in the backward pass, in place of keeping their activations."""
        for stage in self.backbone.stages:
            stage.with_cp = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay besides the biases and vectors that timm exempts itself: none.

        The published run decays A_log.
        """
        return set()

    def group_matcher(self, coarse: bool = False) -> dict:
        """Depths for timm's layer-wise learning rates, those of :meth:`GrootV.get_layer_depth`.

        Args:
            coarse: One depth a stage in place of one a block.
        """
        stage = r'^backbone\.stages\.(\d+)'
        with_block_before = (99999,)  # timm's mark
        blocks = [(rf'{stage}\.blocks\.(\d+)', None), (rf'{stage}\.(?:norm|downsample)', with_block_before)]
        return dict(stem=r'^backbone\.stem', blocks=stage if coarse else blocks)


# How images are prepared, as in configs/_base_/datasets/imagenet_bs128.py. No weights are published.
CFG = dict(
    num_classes=1000,
    input_size=(3, 224, 224),
    pool_size=(7, 7),
    crop_pct=1.0,
    interpolation='bicubic',
    mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD,
    first_conv='backbone.stem.conv1',
    classifier='head.fc',
    paper_ids='arXiv:2406.02395',
)
default_cfgs = generate_default_cfgs({f'grootv_{arch}{end}': CFG for arch in ARCHS for end in ('', '_edge')})


def create(name: str, pretrained: bool, **options) -> nn.Module:
    arch, *edge = name.removeprefix('grootv_').split('_')
    # timm reads the file of checkpoint_path next, and by itself refuses the log that MMEngine keeps in it.
    torch.serialization.add_safe_globals(safe_globals())
    if (stride := options.pop('output_stride', 32)) != 32:
        raise ValueError(f'{name}: output_stride must be 32, got {stride}')
    model = build_model_with_cfg(
        TimmGrootV,
        name,
        pretrained,
        feature_cfg=dict(out_indices=tuple(range(NUM_STAGES)), feature_cls='getter'),
        **{**ARCHS[arch], 'edge_decay': bool(edge), **options},
    )
    if isinstance(model, (FeatureHookNet, FeatureGraphNet)):
        model.output_fmt = Format.NHWC  # they take the maps where the stages' norms leave them
    return model


@register_model
def grootv_tiny(pretrained: bool = False, **options) -> nn.Module:
    return create('grootv_tiny', pretrained, **options)


@register_model
def grootv_small(pretrained: bool = False, **options) -> nn.Module:
    return create('grootv_small', pretrained, **options)


@register_model
def grootv_base(pretrained: bool = False, **options) -> nn.Module:
    return create('grootv_base', pretrained, **options)


@register_model
def grootv_tiny_edge(pretrained: bool = False, **options) -> nn.Module:
    return create('grootv_tiny_edge', pretrained, **options)


@register_model
def grootv_small_edge(pretrained: bool = False, **options) -> nn.Module:
    return create('grootv_small_edge', pretrained, **options)


@register_model
def grootv_base_edge(pretrained: bool = False, **options) -> nn.Module:
    return create('grootv_base_edge', pretrained, **options)
