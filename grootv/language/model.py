"""A pretrained Mamba of transformers that scans its prompt along a tree as well: GrootL."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, MambaConfig, PreTrainedTokenizerBase
from transformers.cache_utils import Cache
from transformers.models.mamba import modeling_mamba as transformers_mamba

from grootv.errors import UserError, first

from .mixer import TreeMambaMixer, context_bounds

CONTEXT_RULES: dict[str, Callable[[Tensor], Tensor]] = {
    'item': lambda context_length: context_length,
    'minimum': lambda context_length: context_length.min().expand_as(context_length),
}


# Both classes bear the names of their bases: save_pretrained writes the name into the folder, which stays a
# plain Mamba to everyone else.
class MambaModel(transformers_mamba.MambaModel):
    """transformers' ``MambaModel`` whose mixers receive the context; made by :func:`use_tree_scan`."""

    context_rule = 'item'

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        context_length: Tensor | None = None,
        **kwargs,
    ) -> transformers_mamba.MambaOutput | tuple:
        """As transformers' ``MambaModel.forward``, with the context of each item.

        Args:
            input_ids: Tokens, shape (B, L).
            inputs_embeds: In place of ``input_ids``, shape (B, L, hidden size).
            attention_mask: 0 at padding, before or after an item's tokens, shape (B, L).
            context_length: How many tokens of each item are its context, counted from its first one, shape
                (B,) int; None for all of them, 0 for a plain recurrence. Not read by a call that continues
                from a cache.

        Raises:
            ValueError: If an item is empty or longer than ``config.max_position_embeddings`` (where the
                config has this entry: a Mamba by itself has no limit), an id is not in the vocabulary, or a
                context is longer than its item.
        """
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        mask = self.mark_context(tokens, attention_mask, context_length, kwargs.get('cache'))
        # Declared in transformers as tensors of a legacy type, which no call passes.
        tensors: dict[str, Any] = dict(inputs_embeds=inputs_embeds, attention_mask=mask)
        ids: Any = input_ids
        return super().forward(ids, **tensors, **kwargs)

    def mark_context(
        self,
        tokens: Tensor | None,
        mask: Tensor | None,
        context_length: Tensor | None,
        cache: Cache | None,
    ) -> Tensor | None:
        """The attention mask as the mixers take it, with the context in it.

        transformers hands a mask to its mixers as it is, also when gradient checkpointing runs a block again:
        the context stays with the call that it belongs to, which a setting of the mixers would not.
        """
        if tokens is None or (cache is not None and cache.has_previous_state()):
            return None
        if mask is not None and mask.dim() == 1 and context_length is None:  # marked already
            mask, context_length = None, mask
        start, stop = self._check_tokens(tokens, mask).unbind(dim=1)
        if context_length is None and self.context_rule == 'item':
            return mask
        longest = stop - start
        length = longest if context_length is None else torch.as_tensor(context_length, device=tokens.device)
        if length.dtype not in (torch.int32, torch.int64):
            raise ValueError(f'MambaModel: context_length must be int32 or int64, got {length.dtype}')
        if length.shape != longest.shape:
            raise ValueError(
                f'MambaModel: context_length needs one value per item, shape {tuple(longest.shape)}, '
                f'got {tuple(length.shape)}'
            )
        outside = (length < 0) | (length > longest)
        if outside.any():
            raise ValueError(
                "MambaModel: context_length is 0 up to the item's own number of tokens, "
                f'{longest[outside][0].item()}, got {length[outside][0].item()}'
            )
        length = CONTEXT_RULES[self.context_rule](length)
        if mask is None:
            return length
        stop = start + length
        after = torch.arange(tokens.shape[1], device=tokens.device) >= stop.unsqueeze(1)
        return mask.ne(0) * (1 + after.long())

    def _check_tokens(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Where the tokens of each item begin and end, (B, 2), if they are as they have to be."""
        shape = tuple(tokens.shape[:2])
        if mask is not None and mask.shape != shape:
            raise ValueError(
                f'MambaModel: attention_mask needs one value per token, shape {shape}, '
                f'got {tuple(mask.shape)}'
            )
        if shape[1] == 0 or (mask is not None and not mask.any(dim=1).all()):
            raise ValueError(
                f'MambaModel: a prompt needs at least one token, got an empty one in a batch of {shape}'
            )
        if not tokens.is_floating_point():
            unknown = tokens[(tokens < 0) | (tokens >= self.config.vocab_size)]
            if len(unknown):
                raise ValueError(
                    f'MambaModel: ids of tokens are 0 to {self.config.vocab_size - 1}, the vocabulary, '
                    f'got {unknown[0].item()}'
                )
        bounds = context_bounds(mask, tokens)
        longest = (bounds[:, 1] - bounds[:, 0]).max().item()
        window = getattr(self.config, 'max_position_embeddings', None) or longest
        if longest > window:
            raise ValueError(
                f'MambaModel: a prompt has to fit the context window of {window} tokens, got {longest}'
            )
        return bounds


class MambaForCausalLM(transformers_mamba.MambaForCausalLM):
    """transformers' ``MambaForCausalLM`` that takes a context; made by :func:`use_tree_scan`."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        context_length: Tensor | None = None,
        **kwargs,
    ) -> transformers_mamba.MambaCausalLMOutput | tuple:
        """As transformers' method, with a context as for :meth:`MambaModel.forward`, which labels need."""
        if labels is not None and context_length is None:
            raise ValueError(
                'MambaForCausalLM: labels need context_length, how many tokens of each item are its '
                'context, got None'
            )
        if context_length is not None:  # transformers does not hand it on to the backbone
            tokens = input_ids if inputs_embeds is None else inputs_embeds
            backbone: Any = self.backbone
            attention_mask = backbone.mark_context(
                tokens, attention_mask, context_length, kwargs.get('cache')
            )
        tensors: Any = input_ids, attention_mask, inputs_embeds
        targets: Any = labels
        return super().forward(*tensors, labels=targets, **kwargs)

    def _expand_inputs_for_generation(self, *args, input_ids: Tensor, **model_kwargs) -> tuple[Tensor, dict]:
        """As transformers' method, which ``generate`` calls with its prompt: that stays the context."""
        if model_kwargs.get('context_length') is None:
            embedded, mask = model_kwargs.get('inputs_embeds'), model_kwargs.get('attention_mask')
            tokens = input_ids if embedded is None else embedded
            marked = tokens.new_ones(tokens.shape[:2], dtype=torch.long) if mask is None else mask
            model_kwargs['context_length'] = marked.ne(0).sum(dim=1)
        generation: Any = super()  # declares more than any model has
        return generation._expand_inputs_for_generation(*args, input_ids=input_ids, **model_kwargs)


_TREE_SCAN = {
    transformers_mamba.MambaMixer: TreeMambaMixer,
    transformers_mamba.MambaModel: MambaModel,
    transformers_mamba.MambaForCausalLM: MambaForCausalLM,
}


def use_tree_scan(
    model: nn.Module,
    scale: float = 0.3,
    reach: int = 3,
    causal: bool = False,
    context_rule: str = 'item',
) -> nn.Module:
    """Let a Mamba scan its context along a tree as well: GrootL (arXiv 2406.02395).

    The model then takes ``context_length``, see :meth:`MambaModel.forward`; called again, this function
    changes the settings. ``scale``, ``reach`` and ``causal`` are kept in ``model.config.tree``, and with it
    in a saved folder.

    Args:
        model: A ``MambaModel`` or ``MambaForCausalLM`` of transformers, or what wraps one, as peft does.
        scale: Weight of the tree scan next to the chain scan, which has 1; 0 is Mamba itself.
        reach: How many tokens an edge of the tree may span, at least 1.
        causal: Whether a token receives from earlier ones only; in the published tree the tokens of the
            context receive from later ones of the context too.
        context_rule: 'item' takes the context of each item as it is; 'minimum' is the published rule, by
            which the smallest context of a batch serves all.

    Returns:
        The model itself.

    Raises:
        ValueError: If there is no Mamba in the model, or an argument is not one of the above.
    """
    if context_rule not in CONTEXT_RULES:
        raise ValueError(
            f'use_tree_scan: context_rule is one of {", ".join(CONTEXT_RULES)}, got {context_rule!r}'
        )
    if reach < 1:
        raise ValueError(f'use_tree_scan: reach is the span of an edge in tokens, at least 1, got {reach}')
    if not any(type(module) in (transformers_mamba.MambaModel, MambaModel) for module in model.modules()):
        raise ValueError(f'use_tree_scan: needs a Mamba model of transformers, got {type(model).__name__}')
    for module in model.modules():
        # An object may change to a subclass of its class, as FSDP2's fully_shard does with modules: they stay
        # the same objects, with their parameters, hooks, adapters and whoever refers to them.
        module.__class__ = _TREE_SCAN.get(type(module), type(module))
        if isinstance(module, TreeMambaMixer):
            module.scale, module.reach, module.causal = scale, reach, causal
        elif isinstance(module, MambaModel):
            module.context_rule = context_rule
            module.config.tree = dict(scale=scale, reach=reach, causal=causal)
    return model


def load_language_model(
    path: str | Path, **tree: float | int | bool | str
) -> tuple[MambaForCausalLM, PreTrainedTokenizerBase | None]:
    """Load a Mamba and its tokenizer from a folder on this machine, and let it use the tree scan.

    The folder is one that transformers writes, as those of ``state-spaces/mamba-130m-hf``. Weights are read
    without running code that they may hold, and nothing is fetched. If the tokenizer states a longest input
    and the config has no ``max_position_embeddings``, it becomes the model's context window.

    Args:
        path: The folder.
        tree: As for :func:`use_tree_scan`; what is not given is read from the folder, where
            :func:`use_tree_scan` left it, or has its default.

    Returns:
        The model, in evaluation mode, and its tokenizer, or None if the folder has none.

    Raises:
        UserError: If the folder is missing, does not hold a Mamba, or lacks weights.
        ValueError: As :func:`use_tree_scan`.
    """
    path = Path(path).expanduser()
    if path.is_dir() and not (path / 'config.json').is_file():
        raise UserError(f'language model {path} has no config.json: give a folder that save_pretrained wrote')
    config, _ = read_folder('language model', path, MambaConfig.get_config_dict)
    if config.get('model_type') != 'mamba':
        raise UserError(f'language model {path} is not a Mamba, but of type {config.get("model_type")}')
    # A config may name a kernel to fetch in place of attention, which a Mamba does not have.
    options = dict(output_loading_info=True, attn_implementation='eager', dtype=torch.float32)
    model, loading = read_folder('language model', path, MambaForCausalLM.from_pretrained, **options)
    if loading['missing_keys']:
        raise UserError(f'language model {path} lacks weights: {first(sorted(loading["missing_keys"]))}')
    tokenizer = None
    if (path / 'tokenizer_config.json').is_file() or (path / 'tokenizer.json').is_file():
        tokenizer = load_tokenizer(path)
        if tokenizer.model_max_length < 2**31 and not hasattr(model.config, 'max_position_embeddings'):
            model.config.max_position_embeddings = tokenizer.model_max_length
    use_tree_scan(model, **{**getattr(model.config, 'tree', {}), **tree})
    return model, tokenizer


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder on this machine, without running code that it may hold."""
    tokenizer = read_folder('tokenizer', Path(path), AutoTokenizer.from_pretrained, trust_remote_code=False)
    if not tokenizer('a', add_special_tokens=False).input_ids:
        raise UserError(f'tokenizer {path} cannot be read: no vocabulary, as that of tokenizer.json')
    return tokenizer


def read_folder(kind: str, path: Path, load: Callable, **options: Any) -> Any:
    """Call one of transformers' loaders, offline; a UserError names what is missing or cannot be read."""
    if not path.is_dir():
        raise UserError(f'{kind} {path} does not exist: give a folder that save_pretrained wrote')
    try:
        return load(str(path), local_files_only=True, **options)
    except Exception as error:  # whatever a damaged file makes json, safetensors or transformers raise
        reason = str(error).strip().partition('\n')[0]
        raise UserError(f'{kind} {path} cannot be read: {reason}') from error
