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
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from grootv.errors import UserError
from grootv.registry import METRICS, MODELS

from .model import MambaForCausalLM, load_language_model

ADAPTED = BaseTunerLayer, AuxiliaryTrainingWrapper  # what peft makes of a layer


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
        keep_tied: What :meth:`merge` does with an adapter of the embeddings, where the output layer shares
            their weights.
        **kwargs: ``data_preprocessor`` and ``init_cfg`` of MMEngine's ``BaseModel``.

    Attributes:
        model: transformers' model.
        tokenizer: That of the folder, or None.

    Raises:
        UserError: As ``load_language_model``, or if peft refuses ``lora``, or if ``keep_tied`` is set and the
            output layer has an adapter of its own.
    """

    def __init__(
        self,
        pretrained: str,
        tree: dict[str, Any] | None = None,
        lora: dict[str, Any] | None = None,
        keep_tied: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.model, self.tokenizer = load_language_model(pretrained, **(tree or {}))
        if lora is not None:
            # Not into self.model: peft refuses out_proj of a Mamba, because some kernels read its weight and
            # bypass its adapter. TreeMambaMixer calls it.
            try:
                inject_adapter_in_model(LoraConfig(**lora), self)
            except Exception as error:  # each option has exceptions of its own
                reason = str(error).strip().partition('\n')[0]
                raise UserError(f'LanguageModel: peft refuses lora={dict(lora)}: {reason}') from error
            if not all(isinstance(m.dt_proj, nn.Linear) for m in self.modules() if hasattr(m, 'dt_proj')):
                raise UserError(
                    'LanguageModel: dt_proj takes no adapter: leave it out of the modules in lora'
                )
            if lora.get('ensure_weight_tying'):
                raise UserError('LanguageModel: lora.ensure_weight_tying has no effect here: set keep_tied')
        self.keep_tied = keep_tied
        if keep_tied and isinstance(self.model.get_output_embeddings(), ADAPTED):
            raise UserError(
                'LanguageModel: keep_tied is for an output layer without an adapter: leave it out'
            )
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

        An output layer that shares the weights of the embeddings keeps what it had in training, where each
        of the two has its own adapter or none: they are then no longer tied. With ``keep_tied`` they stay
        tied, so that the output layer carries the embeddings' adapter as well, which it did not in training.

        Returns:
            The model without adapters, which computes the same as before unless ``keep_tied`` is set.
        """
        model, config = self.model, self.model.config
        output: Any = model.get_output_embeddings()
        if config.tie_word_embeddings and not self.keep_tied:
            layers = model.get_input_embeddings(), output
            config.tie_word_embeddings = not any(isinstance(layer, ADAPTED) for layer in layers)
            if not config.tie_word_embeddings and not isinstance(output, AuxiliaryTrainingWrapper):
                base: Any = output.get_base_layer() if isinstance(output, BaseTunerLayer) else output
                base.weight = nn.Parameter(base.weight.clone())
        done: tuple[str, ...] = ()
        for name, module in list(model.named_modules()):
            if not isinstance(module, ADAPTED) or name.startswith(done):
                continue
            if isinstance(module, BaseTunerLayer):
                module.merge()
                merged = module.get_base_layer()
            else:
                merged = module.unload_and_optionally_merge_module(True, False, None)
            model.set_submodule(name, merged)
            done += (f'{name}.',)
        if config.tie_word_embeddings:  # a trained copy of the embeddings is another tensor
            model.lm_head.weight = model.get_input_embeddings().weight
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
