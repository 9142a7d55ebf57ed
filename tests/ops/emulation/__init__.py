"""The CUDA kernels as host code: see emulation.h."""

import os
from functools import cache

import torch

from .build import build


@cache
def load():
    """The emulated operators; the variable GROOTV_SANITIZER chooses an instrumented build."""
    torch.ops.load_library(build(os.environ.get('GROOTV_SANITIZER', 'none')))
    return torch.ops.grootv_emulated
