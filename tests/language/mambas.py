"""Random Mambas that fit into a test."""

import torch
from transformers import MambaConfig, MambaForCausalLM

from grootv.language import use_tree_scan

VOCABULARY = 50
TOKENS = dict(pad_token_id=0, bos_token_id=0, eos_token_id=None)


def mamba(**config) -> MambaForCausalLM:
    """Two layers whose weights are far from their initial values, so that states and trees matter."""
    sizes = dict(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=2)
    model = MambaForCausalLM(MambaConfig(**{**sizes, **TOKENS, **config}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.4 * torch.randn_like(parameter)
    return model.eval()


def tree_mamba(*, scale=0.3, reach=3, causal=False, context_rule='item', **config) -> MambaForCausalLM:
    return use_tree_scan(mamba(**config), scale, reach, causal, context_rule)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, shape)


def pad_left(items: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Items of any length as one batch, with its mask."""
    ids = torch.nn.utils.rnn.pad_sequence(items, batch_first=True, padding_side='left')
    return ids, ids.ne(0).long()
