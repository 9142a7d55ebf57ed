"""The CUDA kernels as host code that runs without a GPU: see emulation.h."""

import os
from functools import cache

import torch

from .build import build, namespace


@cache
def load(kind: str = 'small'):
    """The emulated operators.

    In place of the small ones the environment variable GROOTV_SANITIZER chooses an instrumented build, and
    GROOTV_DEBUG=1 the one for a debugger.
    """
    variant = 'debug' if os.environ.get('GROOTV_DEBUG') == '1' else kind
    chosen = os.environ.get('GROOTV_SANITIZER', variant) if kind == 'small' else kind
    torch.ops.load_library(build(chosen))
    return getattr(torch.ops, namespace(chosen))
