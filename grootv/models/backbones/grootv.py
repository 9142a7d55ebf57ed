from collections.abc import Iterable, Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from grootv.models.layers import Stage, Stem
from grootv.ops import METRICS
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

    def __init__(
        self,
        arch: str | dict = 'tiny',
        in_channels: int = 3,
        out_indices: Sequence[int] = (3,),
        drop_path_rate: float = 0.0,
        metric: str = 'cosine',
        tree_per: str = 'block',
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
        self.stages = nn.ModuleList()
        rates = iter(linear_rates(drop_path_rate, sum(self.depths)))
        for index, depth in enumerate(self.depths):
            stage = Stage(
                self.embed_dims * 2**index,
                drop_paths=[next(rates) for _ in range(depth)],
                downsample=index < NUM_STAGES - 1,
                share_tree=tree_per == 'stage',
                with_cp=with_cp,
                metric=metric,
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

        grootv.LayerDecayOptimWrapperConstructor and mmpretrain's constructor of the kind ask for it.

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
