from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recompute(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Call a function of cheap steps whose results are not worth keeping for the backward pass.

    Only ``tensors`` are kept; the backward pass computes again what it needs. The function may end in an
    expensive step, which is not repeated, and draws no random numbers.
    """
    if not torch.is_grad_enabled():
        return function(*tensors)
    return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)
