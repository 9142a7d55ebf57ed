from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from grootv.registry import METRICS


@METRICS.register_module()
class Perplexity(BaseMetric):
    """exp of the mean loss of a token, over all answer tokens of the data: long answers count for more.

    Takes the predictions of ``grootv.LanguageModel``.

    Args:
        collect_device: Where results of several processes meet, 'cpu' or 'gpu'.
    """

    def __init__(self, collect_device: str = 'cpu'):
        super().__init__(collect_device=collect_device)

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        self.results.extend((float(sample['loss']), int(sample['tokens'])) for sample in data_samples)

    def compute_metrics(self, results: list[tuple[float, int]]) -> dict[str, float]:
        losses, tokens = zip(*results, strict=True)
        with np.errstate(over='ignore'):
            return dict(perplexity=float(np.exp(sum(losses) / sum(tokens))))
