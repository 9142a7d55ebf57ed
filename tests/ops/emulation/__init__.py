"""The CUDA kernels as host code: see emulation.h."""

import os
from functools import cache

import torch

from .build import build, namespace


@cache
def load(kind: str = 'small'):
    """The emulated operators; the variable GROOTV_SANITIZER makes the small ones an instrumented build."""
    chosen = os.environ.get('GROOTV_SANITIZER', kind) if kind == 'small' else kind
    torch.ops.load_library(build(chosen))
    return getattr(torch.ops, namespace(chosen))
