import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.models.mamba.modeling_mamba import MambaMixer

from grootv.modules import is_plain
from grootv.ops import token_chain, token_scan, token_tree


class TreeMambaMixer(MambaMixer):
    """Mamba's mixer with a second scan, along a tree over the tokens of the context.

    Both scans, along the chain and along the tree, take the same A, B, C, x and delta; the state of a token
    is that of the chain plus ``scale`` times that of the tree. The tree connects tokens whose inputs to the
    state, delta B x, are alike. After the context both scans are one recurrence, so that generation keeps
    their sum in transformers' own cache and continues at constant cost.

    Parameters are those of ``MambaMixer``. ``scale`` 0 is Mamba itself. Source: arXiv 2406.02395.
    """

    scale = 0.3
    reach = 3
    causal = False

    def forward(
        self,
        hidden_states: Tensor,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        **_kwargs,
    ) -> Tensor:
        """Mix the tokens of a sequence, or add one more token to the state in the cache.

        Args:
            hidden_states: Tokens, shape (B, L, hidden size).
            cache: Receives the state for the tokens that follow; if it holds one already, L has to be 1.
            attention_mask: 0 at padding, 1 at the tokens of the context, 2 at the tokens after it, shape
                (B, L); without padding, how many tokens are context, shape (B,), or None for all of them.
                So a mask of transformers makes all tokens context.

        Returns:
            Shape and dtype of ``hidden_states``.
        """
        state = None if cache is None else cache.get_recurrent_state(self.layer_idx)
        stepping = state is not None
        if stepping and hidden_states.shape[1] != 1:
            raise ValueError(
                'TreeMambaMixer: after the first call a cache takes one token at a time, '
                f'got {hidden_states.shape[1]}: give the whole text without the cache'
            )
        if not isinstance(self.dt_proj, nn.Linear):
            raise ValueError(
                'TreeMambaMixer: dt_proj takes no adapter, as the scan reads its weight and bias, '
                f'got {type(self.dt_proj)}'
            )
        kept = None
        if not stepping and attention_mask is not None and attention_mask.dim() == 2:
            kept = attention_mask.ne(0).unsqueeze(-1)

        x, z = self.in_proj(hidden_states).chunk(2, dim=-1)
        x = self._convolve(x if kept is None else x * kept, cache, stepping)
        x = x if kept is None else x * kept
        sizes = [self.time_step_rank, self.ssm_state_size, self.ssm_state_size]
        low_rank, B, C = self.x_proj(x).split(sizes, dim=-1)
        if is_plain(self.dt_proj, nn.Linear):
            # The bias is added by the scan, in float32: a sum in half precision would lose it.
            delta, bias = F.linear(low_rank, self.dt_proj.weight), self.dt_proj.bias
        else:
            delta, bias = self.dt_proj(low_rank), None
        A = -self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)).exp()
        if state is not None:
            y, state = self._advance(x, delta, bias, A, B, C, state)
        else:
            y, state = self._scan(x, delta, bias, A, B, C, attention_mask)
        if cache is not None:
            cache.update_recurrent_state(state, self.layer_idx)
        return self.out_proj((y + x * self.D) * self.act(z))

    def _convolve(self, x: Tensor, cache: Cache | None, stepping: bool) -> Tensor:
        """Convolve (B, L, D) causally and activate; the cache receives the latest inputs."""
        x, length, kernel = x.transpose(1, 2), x.shape[1], self.conv_kernel_size
        window = x
        if cache is not None:
            window = cache.update_conv_state(x, self.layer_idx, conv_kernel_size=kernel)[..., -kernel:]
        if not stepping:
            return self.act(self.conv1d(x)[..., :length]).transpose(1, 2).contiguous()
        if not is_plain(self.conv1d, nn.Conv1d):  # which pads the window on both sides
            return self.act(self.conv1d(window)[..., kernel - 1 : kernel]).transpose(1, 2)
        x = (window * self.conv1d.weight.squeeze(1)).sum(-1)
        x = x if self.conv1d.bias is None else x + self.conv1d.bias
        return self.act(x).unsqueeze(1)

    def _scan(
        self,
        x: Tensor,
        delta: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        y, state = token_scan(x, delta, A, B, C, token_chain(x.shape[0], x.shape[1], x.device), bias)
        if self.scale == 0:
            return y, state
        with torch.no_grad():
            signal = step_size(delta, bias) * x
            context = context_bounds(mask, x)
            tree = token_tree(signal.float(), B.float(), context, self.reach, self.causal)
        tree_y, tree_state = token_scan(x, delta, A, B, C, tree, bias)
        return y + self.scale * tree_y, state + self.scale * tree_state

    def _advance(
        self, x: Tensor, delta: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, C: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One token (B, 1, ...) after the context, where chain and tree are one recurrence."""
        step = step_size(delta, bias).transpose(1, 2)
        signal = step * B.to(step.dtype) * x.to(step.dtype).transpose(1, 2)
        state = torch.exp(A * step) * state + (1 + self.scale) * signal
        return (state.to(x.dtype) @ C.transpose(1, 2)).transpose(1, 2), state


def step_size(delta: Tensor, bias: Tensor | None) -> Tensor:
    """The step of every token and channel from delta before its bias and softplus, in float32 at least."""
    wide = torch.promote_types(delta.dtype, torch.float32)
    return F.softplus(delta.to(wide) if bias is None else delta.to(wide) + bias.to(wide))


def context_bounds(mask: Tensor | None, tokens: Tensor) -> Tensor:
    """First token of each item's context and the one after its last, shape (B, 2).

    Args:
        mask: As for :meth:`TreeMambaMixer.forward`.
        tokens: Any tensor (B, L, ...) on the device of the result.
    """
    batch, length = tokens.shape[:2]
    if mask is None:
        return torch.tensor([0, length], device=tokens.device).expand(batch, 2)
    if mask.dim() == 1:
        return torch.stack([torch.zeros_like(mask), mask], dim=1)
    place = torch.arange(length, device=tokens.device)
    start = torch.where(mask != 0, place, length).amin(dim=1, keepdim=True)
    stop = torch.where(mask == 1, place + 1, start).amax(dim=1, keepdim=True)
    return torch.cat([start, stop], dim=1)
