"""GrootL in the lm-eval harness. Needs the packages of requirements/language.txt."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from grootv.checkpoint import warn
from grootv.errors import UserError, first

from .model import load_language_model


@register_model('grootl')
class GrootLM(HFLM):
    """lm-eval's ``hf`` model for a Mamba with the tree scan: each item's own context forms its tree.

    The context of a likelihood is what the task gives before the continuation that is scored; that of a
    generation is its prompt. Where the tokens of a continuation all merge into the context's last one, that
    token is scored, and the run tells how often. A text that is scored whole (``loglikelihood_rolling``), in
    windows if it is long, has no context: its tree is the chain, in every window alike. Items of a batch do
    not influence each other, except under the published rule, by which the smallest context of a batch serves
    all of it.

    Args:
        pretrained: Folder of the model and its tokenizer.
        scale, reach, causal, context_rule: As for :func:`grootv.language.use_tree_scan`; None for what the
            folder says, or the default.
        device: Where to compute; None for a GPU if there is one.
        dtype: Of the parameters, 'float32', 'bfloat16' or 'float16'.
        batch_size: Items computed at once, a number.
        options: As for lm-eval's ``HFLM``: ``max_length``, ``add_bos_token`` ...

    Raises:
        UserError: If the folder holds no Mamba with a tokenizer, or the batch size is not a number.
    """

    # lm-eval's register_model declares HFLM to be its base class, which has none of these.
    model: Any
    batch_size: int
    max_length: int
    softmax_dtype: torch.dtype | None
    tok_encode: Callable[[str], list[int]]
    prefix_token_id: int

    def __init__(
        self,
        pretrained: str | Path,
        scale: float | None = None,
        reach: int | None = None,
        causal: bool | None = None,
        context_rule: str | None = None,
        device: str | None = None,
        dtype: str = 'float32',
        batch_size: int | str = 1,
        **options,
    ):
        tree = dict(scale=scale, reach=reach, causal=causal, context_rule=context_rule)
        tree = {name: value for name, value in tree.items() if value is not None}
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f'grootl: batch_size is a whole number from 1 on, got {batch_size}')
        model, tokenizer = load_language_model(pretrained, **tree)
        if tokenizer is None:
            raise UserError(f'grootl: {pretrained} has no tokenizer, which the texts of a task need')
        device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
        moved: Any = model  # transformers wraps the method ``to``
        model = moved.to(device, getattr(torch, dtype)).eval()
        arguments: Any = dict(tokenizer=tokenizer, batch_size=int(batch_size), **options)
        self._merged: list[str] = []  # continuations without a token of their own
        super().__init__(model, **arguments)  # pyright: ignore[reportCallIssue]: as above

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As lm-eval's ``HFLM``, with a warning if a continuation has no token of its own."""
        texts: list[Any] = [request.args for request in requests]
        empty = next((pair for pair in texts if not pair[1]), None)
        if empty is not None:
            raise UserError(f'grootl: a continuation is a text, got an empty one after {empty[0][-40:]!r}')
        self._merged.clear()
        model: Any = super()
        results = model.loglikelihood(requests, disable_tqdm=disable_tqdm)
        if self._merged:
            warn(
                f'the tokens of {len(self._merged)} continuations merge into the last one of their context, '
                f'which is scored in their place: {first(self._merged)}'
            )
        return results

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        model: Any = super()
        given, wanted = model._encode_pair(context, continuation)
        if continuation and not wanted:
            self._merged.append(repr(context[-20:] + continuation))
            *given, last = self.tok_encode(context + continuation)
            return given or [self.prefix_token_id], [last]
        return given, wanted

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of every continuation, and whether greedy decoding gives it.

        A request has texts, tokens of the context and of the continuation; a window of
        ``loglikelihood_rolling`` has None for texts.
        """
        # Requests that differ in their last token alone, as the choices of a question often do, are one row.
        rows = defaultdict(list)
        for index, (texts, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                raise UserError(
                    f'grootl: a continuation has 1 to {self.max_length} tokens, got {len(continuation)}'
                )
            tokens = (context + continuation)[-self.max_length - 1 : -1]
            length = len(tokens) + 1 - len(continuation) if texts else 0
            rows[tuple(tokens), length, len(continuation)].append(index)
        longest_first = sorted(rows, key=lambda row: (-len(row[0]), row))
        size = override_bs or self.batch_size
        batches = (longest_first[start : start + size] for start in range(0, len(longest_first), size))
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with tqdm(total=len(requests), desc='Likelihoods', disable=disable_tqdm) as progress:
            for batch in batches:
                for row, logits in zip(batch, self._continuation_logits(batch), strict=True):
                    log_probability = logits.log_softmax(dim=-1, dtype=self.softmax_dtype)
                    for index in rows[row]:
                        texts, _, continuation = requests[index]
                        target = torch.tensor(continuation, device=logits.device).unsqueeze(-1)
                        likelihood = log_probability.gather(-1, target).sum().item()
                        results[index] = likelihood, logits.argmax(dim=-1).equal(target.squeeze(-1))
                        if texts is not None:
                            self.cache_hook.add_partial('loglikelihood', texts, results[index])
                    progress.update(len(rows[row]))
        return results

    @torch.no_grad()
    def _continuation_logits(self, batch: list[tuple[tuple[int, ...], int, int]]) -> list[Tensor]:
        """The logits (continuation, vocabulary) of rows of tokens, context length and continuation length."""
        rows, contexts, counts = zip(*batch, strict=True)
        # Nothing after a context receives from a later token, so padding on the right needs no mask.
        ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], True).to(self.device)
        logits = self.model(ids, context_length=torch.tensor(contexts, device=self.device)).logits
        return [
            item[len(row) - count : len(row)] for row, count, item in zip(rows, counts, logits, strict=True)
        ]
