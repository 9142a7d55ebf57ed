import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .block import Block
from .downsample import Downsample


class Stage(nn.Module):
    """Blocks of one width, a LayerNorm that gives the feature map, and the way to the next stage.

    Args:
        channels: Width of the blocks.
        drop_paths: Probability of drop path of each block; its length is the number of blocks.
        downsample: Whether a stage follows.
        share_tree: Let the first block's tree serve all blocks, in place of one tree a block.
        with_cp: Keep no activations of the blocks and compute them again in the backward pass.
        **block_options: The other arguments of :class:`Block`.
    """

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
        self.blocks = nn.ModuleList(Block(channels, rate, **block_options) for rate in drop_paths)
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
