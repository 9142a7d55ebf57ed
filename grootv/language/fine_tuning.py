"""Fine-tuning of a pretrained language model on MMEngine's Runner."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from grootv.registry import METRICS, MODELS

from .model import MambaForCausalLM, load_language_model


@MODELS.register_module()
class LanguageModel(BaseModel):
    """A pretrained Mamba that scans its context along a tree, with adapters (LoRA) that alone train.

    ``state_dict`` and with it a checkpoint hold what trains: the adapters, which are small. The model is read
    from its folder again.

    Args:
        pretrained: Folder of the model, as for ``grootv.language.load_language_model``.
        tree: Arguments of ``grootv.language.use_tree_scan``; what is not given is the folder's, or its
            default.
        lora: Arguments of ``peft.LoraConfig``; None trains all weights instead.
        **kwargs: ``data_preprocessor`` and ``init_cfg`` of MMEngine's ``BaseModel``.

    Attributes:
        model: transformers' model.
        tokenizer: That of the folder, or None.
    """

    def __init__(
        self,
        pretrained: str,
        tree: dict[str, Any] | None = None,
        lora: dict[str, Any] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.model, self.tokenizer = load_language_model(pretrained, **(tree or {}))
        if lora is not None:
            # Not into self.model: peft refuses out_proj of a Mamba, because some kernels read its weight and
            # bypass its adapter. TreeMambaMixer calls it.
            inject_adapter_in_model(LoraConfig(**lora), self)
        self._register_state_dict_hook(_keep_trained)
        self.register_load_state_dict_post_hook(_ignore_untrained)

    def init_weights(self) -> None:
        """The weights are those of the folder already."""

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor,
        context_length: Tensor,
        mode: str = 'tensor',
    ) -> Tensor | dict[str, Tensor] | list[dict[str, Tensor]]:
        """Score the tokens of a batch from :func:`grootv.language.data.pad_right`.

        Args:
            input_ids: Tokens, shape (B, L).
            labels: The same, -100 where a token is not part of an answer, shape (B, L).
            attention_mask: 0 at padding, shape (B, L).
            context_length: Tokens of each prompt, shape (B,).
            mode: What to return.

        Returns:
            'tensor': logits (B, L, vocabulary). 'loss': ``loss``, mean over the answer tokens of the batch.
            'predict': for each item ``loss``, the sum over its answer tokens, and ``tokens``, their number.
        """
        logits = self.model(input_ids, attention_mask=attention_mask, context_length=context_length).logits
        if mode == 'tensor':
            return logits
        # The logits at a token are for the next one.
        losses = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), labels[:, 1:], reduction='none')
        tokens = (labels[:, 1:] >= 0).sum(dim=1)
        if mode == 'loss':
            return dict(loss=losses.sum() / tokens.sum())
        return [dict(loss=loss, tokens=count) for loss, count in zip(losses.sum(dim=1), tokens, strict=True)]

    @torch.no_grad()
    def merge(self) -> MambaForCausalLM:
        """Fold the adapters into the weights of the model, and remove them.

        If the embeddings have one, the output layer keeps the weights that it shared with them, as in
        training, and the two are no longer tied.

        Returns:
            The model without adapters, which computes the same as before.
        """
        model = self.model
        if isinstance(model.get_input_embeddings(), BaseTunerLayer) and model.config.tie_word_embeddings:
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
            model.config.tie_word_embeddings = False
        for name, module in list(model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge()
                model.set_submodule(name, module.get_base_layer())
        return model


def _keep_trained(module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    trained = {prefix + name for name in _trained(module)}
    for name in [name for name in state if name.startswith(prefix) and name not in trained]:
        del state[name]


def _ignore_untrained(module: nn.Module, incompatible: Any) -> None:
    trained = _trained(module)
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name in trained]


def _trained(module: nn.Module) -> set[str]:
    parameters = module.named_parameters(remove_duplicate=False)
    return {name for name, parameter in parameters if parameter.requires_grad}


@METRICS.register_module()
class Perplexity(BaseMetric):
    """exp of the mean loss of a token, over all answer tokens of the data: long answers count for more.

    Takes the predictions of :class:`LanguageModel`.
    """

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        self.results.extend((float(sample['loss']), int(sample['tokens'])) for sample in data_samples)

    def compute_metrics(self, results: list[tuple[float, int]]) -> dict[str, float]:
        losses, tokens = zip(*results, strict=True)
        with np.errstate(over='ignore'):
            return dict(perplexity=float(np.exp(sum(losses) / sum(tokens))))
