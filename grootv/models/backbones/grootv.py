"""The network: stem, four stages of blocks, classifier. The scan of the blocks is in layers/tree_ssm.py."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from grootv.models.layers.tree_ssm import TreeSSM, convolve, linear, recompute
from grootv.ops import METRICS, Tree
from grootv.registry import MODELS

ARCHS = {
    'tiny': dict(embed_dims=80, depths=[2, 2, 9, 2]),
    'small': dict(embed_dims=96, depths=[2, 2, 13, 2]),
    'base': dict(embed_dims=128, depths=[2, 2, 13, 2]),
}
NUM_STAGES = 4


@MODELS.register_module()
class GrootV(BaseModule):
    """The backbone of GrootV (arXiv 2406.02395): a stem, then four stages.

    Stage i works at 1 / (4 * 2**i) of the image's height and width, rounded up, with C * 2**i
    channels.

    Args:
        arch: 'tiny', 'small', 'base' or ``dict(embed_dims=C, depths=[blocks of each stage])``.
        in_channels: Channels of the image.
        out_indices: Stages whose feature maps are returned, ascending. Stages after the last one
            are not run.
        drop_path_rate: Drop-path probability of the last block; it grows linearly from 0 at the
            first one.
        metric: Distance that the spanning trees minimise, one of ``grootv.ops.METRICS``.
        tree_per: 'block' builds a tree in every block, 'stage' one in each stage's first block.
        edge_decay: Let the decay of an edge depend on the distance of its ends, as :class:`TreeSSM`
            describes; False is the published network.
        mlp_ratio: Width of the MLPs' hidden layer over their input's.
        layer_scale_init_value: Initial value of a learned factor per channel on every branch; None
            leaves it out.
        post_norm: Normalise the output of every branch in place of its input.
        frozen_stages: -1 trains everything, 0 freezes the stem, k also the first k stages: their
            parameters get no gradient, and they stay in evaluation mode.
        norm_eval: Keep all normalisation layers in evaluation mode. Detection configs set it for
            BatchNorm; a LayerNorm computes the same in both modes.
        with_cp: Trade time for memory: compute the blocks again in the backward pass.
        init_cfg: MMEngine's initialisation, for instance
            ``dict(type='Pretrained', checkpoint=..., prefix='backbone.')``. None keeps the
            published one.
    """

    stages: 'list[Stage]'

    def __init__(
        self,
        arch: str | dict = 'tiny',
        in_channels: int = 3,
        out_indices: Sequence[int] = (3,),
        drop_path_rate: float = 0.0,
        metric: str = 'cosine',
        tree_per: str = 'block',
        edge_decay: bool = False,
        mlp_ratio: float = 4.0,
        layer_scale_init_value: float | None = None,
        post_norm: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg=init_cfg)
        self.embed_dims, self.depths = parse_arch(arch)
        self.out_indices = parse_out_indices(out_indices)
        check_choice('metric', metric, METRICS)
        check_choice('tree_per', tree_per, ('block', 'stage'))
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'GrootV: drop_path_rate must be at least 0 and below 1, got {drop_path_rate}')
        check_choice('frozen_stages', frozen_stages, range(-1, NUM_STAGES + 1))
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval

        self.stem = Stem(in_channels, self.embed_dims)
        self.stages = nn.ModuleList()  # pyright: ignore[reportAttributeAccessIssue]: it names no element type
        rates = iter(linear_rates(drop_path_rate, sum(self.depths)))
        for index, depth in enumerate(self.depths):
            stage = Stage(
                self.embed_dims * 2**index,
                drop_paths=[next(rates) for _ in range(depth)],
                downsample=index < NUM_STAGES - 1,
                share_tree=tree_per == 'stage',
                with_cp=with_cp,
                metric=metric,
                edge_decay=edge_decay,
                mlp_ratio=mlp_ratio,
                layer_scale=layer_scale_init_value,
                post_norm=post_norm,
            )
            self.stages.append(stage)
        self.freeze()

    def forward(self, image: Tensor, out_indices: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """Image (B, in_channels, H, W), any H and W -> the maps of ``out_indices``, here or else the model's.

        Map i has shape (B, C * 2**i, ceil(H / 2**(i+2)), ceil(W / 2**(i+2))) and is contiguous:
        operators of mmcv such as RoIAlign read its memory without its strides.
        """
        wanted = self.out_indices if out_indices is None else parse_out_indices(out_indices)
        x = self.stem(image)
        maps = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in wanted:
                maps.append(x.permute(0, 3, 1, 2).contiguous())
            if index == wanted[-1]:
                break
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(maps)

    def train(self, mode: bool = True):
        super().train(mode)
        self.freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)):
                    module.eval()
        return self

    def freeze(self) -> None:
        """Take the stem and the first stages out of training, as ``frozen_stages`` says."""
        if self.frozen_stages < 0:
            return
        for part in (self.stem, *self.stages[: self.frozen_stages]):
            part.eval()
            part.requires_grad_(False)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, for learning rates that decay from layer to layer.

        grootv.LayerDecayOptimWrapperConstructor and mmpretrain's own constructor call it.

        The stem has depth 0, the k-th block of the network (from 0) k + 1, the norm and
        downsampling that follow a stage the depth of its last block, and everything outside the
        backbone the greatest depth.

        Args:
            param_name: Name of the parameter in the whole model.
            prefix: Name of the backbone in it, with the dot.

        Returns:
            The depth and the number of depths, one more than the greatest.
        """
        count = sum(self.depths) + 2
        if not param_name.startswith(prefix):
            return count - 1, count
        part, *rest = param_name.removeprefix(prefix).split('.')
        if part == 'stem':
            return 0, count
        if part != 'stages':
            return count - 1, count
        stage = int(rest[0])
        block = int(rest[2]) if rest[1] == 'blocks' else self.depths[stage] - 1
        return sum(self.depths[:stage]) + block + 1, count


class Stem(nn.Module):
    """From the image to the first map: two 3x3 convolutions of stride 2, each with a LayerNorm.

    Image (B, in_channels, H, W) -> map (B, ceil(H/4), ceil(W/4), channels).
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels // 2, 3, stride=2, padding=1)
        self.norm1 = nn.LayerNorm(channels // 2, eps=1e-6)
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, image: Tensor) -> Tensor:
        x = image.permute(0, 2, 3, 1).contiguous()
        x = F.gelu(self.norm1(convolve(self.conv1, x)))
        return self.norm2(convolve(self.conv2, x))


class Stage(nn.Module):
    """Blocks of one width, a LayerNorm that gives the feature map, and the way to the next stage.

    Args:
        channels: Width of the blocks.
        drop_paths: Probability of drop path of each block; its length is the number of blocks.
        downsample: Whether a stage follows.
        share_tree: Use the first block's tree in all blocks, in place of one tree a block.
        with_cp: Keep no activations of the blocks and compute them again in the backward pass.
        **block_options: The other arguments of :class:`Block`.
    """

    blocks: 'list[Block]'

    def __init__(
        self,
        channels: int,
        drop_paths: list[float],
        downsample: bool,
        share_tree: bool = False,
        with_cp: bool = False,
        **block_options,
    ):
        super().__init__()
        self.share_tree = share_tree
        self.with_cp = with_cp
        blocks = nn.ModuleList(Block(channels, rate, **block_options) for rate in drop_paths)
        self.blocks = blocks  # pyright: ignore[reportAttributeAccessIssue]: as GrootV.stages
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.downsample = Downsample(channels) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, channels) -> the stage's feature map, of the same shape."""
        tree = None
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x, used = checkpoint(block, x, tree, use_reentrant=False)
            else:
                x, used = block(x, tree)
            tree = used if self.share_tree else None
        return self.norm(x)


class Block(nn.Module):
    """Two residual branches: TreeSSM mixes the vertices, MLP mixes the channels.

    Args:
        channels: Width of the map.
        drop_path: Probability that a training sample skips a branch.
        metric, edge_decay, mlp_ratio, post_norm: As for :class:`GrootV`.
        layer_scale: Initial value of the branches' factors per channel; None leaves them out.
    """

    gamma1: Tensor | None
    gamma2: Tensor | None

    def __init__(
        self,
        channels: int,
        drop_path: float = 0.0,
        metric: str = 'cosine',
        edge_decay: bool = False,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        post_norm: bool = False,
    ):
        super().__init__()
        self.post_norm = post_norm
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.ssm = TreeSSM(channels, metric, edge_decay)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = MLP(channels, mlp_ratio)
        self.drop_path = DropPath(drop_path)
        for name in ('gamma1', 'gamma2'):
            scale = None if layer_scale is None else nn.Parameter(layer_scale * torch.ones(channels))
            self.register_parameter(name, scale)

    def forward(self, x: Tensor, tree: Tree | None = None) -> tuple[Tensor, Tree]:
        """Map (B, H, W, channels) -> new map and the tree it used (``tree`` or its own)."""
        if self.post_norm:
            update, used = self.ssm(x, tree)
            x = x + self.branch(self.norm1(update), self.gamma1)
            update = self.norm2(self.mlp(x))
        else:
            update, used = self.ssm(self.norm1(x), tree)
            x = x + self.branch(update, self.gamma1)
            update = self.mlp(self.norm2(x))
        return x + self.branch(update, self.gamma2), used

    def branch(self, update: Tensor, gamma: Tensor | None) -> Tensor:
        return self.drop_path(update if gamma is None else gamma * update)


class MLP(nn.Module):
    """Linear, GELU, linear on the last dimension; the hidden layer is ``ratio`` times as wide."""

    def __init__(self, channels: int, ratio: float = 4.0):
        super().__init__()
        hidden = int(channels * ratio)
        self.fc1 = linear(channels, hidden)
        self.fc2 = linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return recompute(self.contract, self.fc1(x))

    def contract(self, hidden: Tensor) -> Tensor:
        return self.fc2(F.gelu(hidden))


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2 and a LayerNorm: half the height and width, twice the channels.

    (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), 2C).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(convolve(self.conv, x))


class Classifier(nn.Module):
    """Layers of the classifier head: 1x1 convolution, BatchNorm, GELU; after a pool, a linear layer.

    The heads for the libraries derive from it or hold it, and pool in between.

    Args:
        in_channels: Channels of the backbone's last map.
        num_classes: Number of classes; 0 leaves the linear layer out.
        hidden_ratio: Channels after the convolution over ``in_channels``.
        **others: Arguments of the class that follows in a head with more than one base.
    """

    def __init__(self, in_channels: int, num_classes: int, hidden_ratio: float = 1.5, **others):
        super().__init__(**others)
        hidden = int(in_channels * hidden_ratio)
        self.conv: nn.Module = PointwiseConv2d(in_channels, hidden, 1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(hidden)
        self.act: nn.Module = nn.GELU()
        self.fc = linear(hidden, num_classes) if num_classes else nn.Identity()

    def project(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) -> (B, hidden, H, W), to be pooled."""
        return self.act(self.norm(self.conv(x)))


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution as the matrix product that it is.

    On small maps PyTorch's is slower, and a convolution in the graph makes torch.compile lay out every map
    with four dimensions as if its channels were the second one.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def parse_arch(arch: str | dict) -> tuple[int, list[int]]:
    """The width C and the four depths that ``arch`` names or spells out."""
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f'GrootV: arch must be one of {", ".join(ARCHS)} or a dict, got {arch!r}')
        arch = ARCHS[arch]
    if set(arch) != {'embed_dims', 'depths'}:
        raise ValueError(f'GrootV: an arch dict has the keys embed_dims and depths, got {sorted(arch)}')
    width, depths = arch['embed_dims'], list(arch['depths'])
    if not isinstance(width, int) or width < 2 or width % 2:
        raise ValueError(f'GrootV: embed_dims must be an even positive integer, got {width!r}')
    if len(depths) != NUM_STAGES or not all(isinstance(depth, int) and depth > 0 for depth in depths):
        raise ValueError(f'GrootV: depths must be {NUM_STAGES} positive integers, got {depths}')
    return width, depths


def parse_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    if not indices or list(indices) != sorted(set(indices)) or not set(indices) <= set(range(NUM_STAGES)):
        raise ValueError(
            f'GrootV: out_indices must be ascending stages from 0 to {NUM_STAGES - 1}, got {out_indices}'
        )
    return indices


def check_choice(name: str, value, choices: Iterable) -> None:
    if value not in choices:
        raise ValueError(f'GrootV: {name} must be one of {", ".join(map(str, choices))}, got {value!r}')


def linear_rates(last: float, count: int) -> list[float]:
    """Rates that grow evenly from 0 to ``last``."""
    return [last * k / max(count - 1, 1) for k in range(count)]
