"""Edges of the 4-connected H x W grid: first all vertical ones, row by row, then all horizontal ones."""

import torch
from torch import Tensor


def num_edges(height: int, width: int) -> int:
    """Number of edges E = (H - 1) W + H (W - 1)."""
    return (height - 1) * width + height * (width - 1)


def grid_edges(height: int, width: int, device: torch.device | str = 'cpu') -> Tensor:
    """Vertex pairs of every edge, shape (E, 2) int32, vertices row-major, the smaller one first."""
    if height < 1 or width < 1 or height * width > 2**30:
        raise ValueError(
            f'grid_edges: a grid needs a row, a column and at most 2^30 vertices, got {height} x {width}'
        )
    vertex = torch.arange(height * width, dtype=torch.int32, device=device).view(height, width)
    vertical = torch.stack([vertex[:-1], vertex[1:]], dim=-1).view(-1, 2)
    horizontal = torch.stack([vertex[:, :-1], vertex[:, 1:]], dim=-1).view(-1, 2)
    return torch.cat([vertical, horizontal])
