"""A spanning tree over its image, and how far a vertex is heard along it."""

import numpy as np
import torch
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from grootv.ops import Tree, tree_scan

FAINTEST = 1e-3  # weaker affinities look alike
TREE_COLOURS = LinearSegmentedColormap.from_list('depth', colormaps['plasma'](np.linspace(0, 0.88)))
WHOLE = MaxNLocator(integer=True, min_n_ticks=1)
BAR = dict(shrink=0.9, pad=0.02, aspect=30)


def vertex_depth(tree: Tree) -> Tensor:
    """Number of edges from every vertex to the root, shape (B, L) int64."""
    positions = torch.arange(tree.order.shape[1], dtype=torch.int32, device=tree.order.device)
    positions = positions.expand_as(tree.order).contiguous()
    level = torch.searchsorted(tree.level_ptr, positions, right=True) - 1
    return torch.empty_like(level).scatter_(1, tree.order.long(), level)


def affinity(decay: Tensor, tree: Tree, vertex: int) -> Tensor:
    """Product of the decays on the path from every vertex to one, averaged over the channels.

    Args:
        decay: Factor of the edge from a vertex to its parent, shape (B, L, C).
        tree: Tree of L vertices.
        vertex: The one vertex, whose own affinity is 1.

    Returns:
        Shape (B, L).
    """
    impulse = torch.zeros_like(decay)
    impulse[:, vertex] = 1
    return tree_scan(impulse, decay, tree).mean(-1)


def draw(
    image: np.ndarray, grid: tuple[int, int], tree: Tree, decay: Tensor, vertex: int, title: str
) -> Figure:
    """The tree coloured by depth on the left, the affinity of a vertex on the right.

    Args:
        image: The picture that the grid covers, (H, W, 3) uint8.
        grid: Rows and columns of the vertices.
        tree: Tree of one image.
        decay: Its decays, shape (1, L, C).
        vertex: Vertex whose affinity is drawn.
        title: Line above both.
    """
    height, width = image.shape[:2]
    figure = Figure(figsize=(11, 0.8 + 4.5 * min(height / width, 1.6)), layout='constrained')
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.set(xlim=(0, width), ylim=(height, 0), aspect='equal')
        axes.set_axis_off()
    centres = vertex_centres(grid, (height, width))
    draw_tree(left, image, tree, centres)
    strength = affinity(decay, tree, vertex)[0].reshape(grid)
    draw_affinity(right, image, strength.cpu().numpy(), centres[vertex])
    figure.suptitle(title, fontsize=11)
    return figure


def vertex_centres(grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Centre (x, y) of every vertex's cell in the picture, shape (L, 2), row-major."""
    y, x = ((np.arange(n) + 0.5) * side / n for n, side in zip(grid, size, strict=True))
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def draw_tree(axes: Axes, image: np.ndarray, tree: Tree, centres: np.ndarray) -> None:
    """Edges over the greyed image, from dark at the root to bright at the farthest leaf."""
    depth, parent = vertex_depth(tree)[0].cpu().numpy(), tree.parent[0].cpu().numpy()
    root = int(tree.order[0, 0])
    vertices = np.flatnonzero(np.arange(len(parent)) != root)
    axes.imshow(greyed(image), cmap='gray', vmin=-450, vmax=300, **extent(image))
    lines = LineCollection(
        np.stack([centres[vertices], centres[parent[vertices]]], axis=1),
        array=depth[vertices],
        cmap=TREE_COLOURS,
        linewidths=line_width(axes, centres),
        capstyle='round',
    )
    axes.add_collection(lines)
    mark(axes, centres[root], 'o')
    axes.set_title(f'spanning tree, {len(parent):,} vertices', fontsize=10)
    axes.figure.colorbar(lines, ax=axes, label='edges to the root', ticks=WHOLE, **BAR)


def draw_affinity(axes: Axes, image: np.ndarray, strength: np.ndarray, centre: np.ndarray) -> None:
    """Affinities, shape (rows, columns), laid over the greyed image."""
    axes.imshow(greyed(image), cmap='gray', vmin=-100, vmax=400, **extent(image))
    scale = ScalarMappable(affinity_scale(strength), 'inferno')
    colours = scale.to_rgba(strength)
    colours[..., 3] = scale.norm(strength).clip(0, 1) ** 0.5 * 0.85  # unheard vertices show the image
    axes.imshow(colours, interpolation='nearest', **extent(image))
    mark(axes, centre, '+')
    axes.set_title('affinity to the marked pixel', fontsize=10)
    axes.figure.colorbar(scale, ax=axes, label='product of decays along the path', **BAR)


def affinity_scale(strength: np.ndarray) -> Normalize:
    """From the least affinity to 1, logarithmic where they differ by more than a factor of ten."""
    least = float(strength.min())
    if least < 0.1:
        return LogNorm(max(least, FAINTEST), 1, clip=True)
    return Normalize(min(least, 0.99), 1, clip=True)


def greyed(image: np.ndarray) -> np.ndarray:
    return np.asarray(image, dtype=float).mean(-1)


def extent(image: np.ndarray) -> dict:
    """Pixel (r, c) covers [c, c + 1] x [r, r + 1]."""
    return dict(extent=(0, image.shape[1], image.shape[0], 0))


def line_width(axes: Axes, centres: np.ndarray) -> float:
    """A fifth of the distance between neighbours, in points, between hairline and ribbon."""
    spacing = np.linalg.norm(centres[1] - centres[0]) if len(centres) > 1 else 1.0
    points = axes.get_window_extent().width * 72 / axes.figure.dpi
    return float(np.clip(points * spacing / np.ptp(axes.get_xlim()) / 5, 0.4, 3))


def mark(axes: Axes, centre: np.ndarray, marker: str) -> None:
    outline = [patheffects.withStroke(linewidth=3, foreground='black')]
    axes.plot(
        *centre,
        marker,
        color='white',
        markersize=9 if marker == '+' else 5,
        markeredgewidth=1.5,
        path_effects=outline,
        clip_on=False,
    )
