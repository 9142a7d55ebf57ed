"""Edge weights: how unlike two neighbouring vertices of the feature map are."""

import torch
from torch import Tensor

from . import grid_graph
from ._fake import check_dim
from ._library import available, ops

METRICS = ('cosine', 'euclidean', 'manhattan')
"""Distances between two feature vectors x, y; each is written out in ``csrc/metric.h``.

========== ===================================================
cosine     exp(-cos(x, y)), norms below 1e-8 taken as 1e-8
euclidean  sum of (x - y)^2
manhattan  sum of abs(x - y)
========== ===================================================
"""


def check_metric(function: str, metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f'{function}: metric must be one of {", ".join(METRICS)}, got {metric!r}')


def grid_edge_weight(features: Tensor, metric: str = 'cosine') -> Tensor:
    """Weigh every edge of the 4-connected grid.

    The arithmetic is float32 in a fixed order, so every device returns the same bits.

    Args:
        features: Feature map, shape (B, H, W, C), any floating dtype; computed on in float32.
        metric: One of :data:`METRICS`.

    Returns:
        Shape (B, E) float32, edges as :func:`grootv.ops.grid_graph.grid_edges` numbers them. Not
        differentiable; O(H W C).

    Raises:
        ValueError: If the metric is unknown.
        RuntimeError: If ``features`` is not four-dimensional and floating.
    """
    check_metric('grid_edge_weight', metric)
    return ops.grid_edge_weight(features.detach(), metric)


if available:

    @torch.library.register_fake('grootv::grid_edge_weight')
    def _(features, metric):
        check_dim('grid_edge_weight', 'features', features, 4, '(B, H, W, C)')
        batch, height, width, _ = features.shape
        edges = grid_graph.num_edges(height, width)
        return features.new_empty((batch, edges), dtype=torch.float32)
