"""A spanning tree over its image, and how far the signal of a vertex reaches along it."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from grootv.ops import Tree

from .blocks import BlockTree
from .topology import affinity, edge_weight, raster_tree, vertex_depth

FAINTEST = 1e-3  # smaller affinities look alike
DEPTH_COLOURS = LinearSegmentedColormap.from_list('depth', colormaps['plasma'](np.linspace(0, 0.88)))
WEIGHT_COLOURS = LinearSegmentedColormap.from_list('weight', colormaps['viridis'](np.linspace(0, 0.92)))
WHOLE = MaxNLocator(integer=True, min_n_ticks=1)
BAR: dict[str, Any] = dict(shrink=0.9, pad=0.02, aspect=30)
DISTANCES = dict(cosine='exp(-cosine)', euclidean='squared L2 distance', manhattan='L1 distance')


def draw(image: np.ndarray, block: BlockTree, vertices: list[int], title: str) -> Figure:
    """The tree by depth and by edge weight; below, the affinity of vertices along it and a raster scan.

    Args:
        image: The picture that the grid covers, (H, W, 3) uint8.
        block: Tree of one image.
        vertices: Vertices whose affinity is drawn, a row each.
        title: Line above.
    """
    figure, panels = empty_panels(image, 1 + len(vertices))
    centres = vertex_centres(block.grid, image.shape[:2])
    depth = vertex_depth(block.tree)[0].cpu().numpy()
    weight = edge_weight(block.vertices, block.tree, block.metric)[0].cpu().numpy()
    draw_tree(panels[0, 0], image, block.tree, centres, depth, DEPTH_COLOURS, 'edges to the root', WHOLE)
    draw_tree(panels[0, 1], image, block.tree, centres, weight, WEIGHT_COLOURS, DISTANCES[block.metric])
    panels[0, 0].set_title(f'spanning tree of {len(depth):,} vertices, by depth', fontsize=10)
    panels[0, 1].set_title('the same tree, by edge weight', fontsize=10)
    for row, vertex in zip(panels[1:], vertices, strict=True):
        draw_affinities(row, image, block, vertex)
    figure.suptitle(title, fontsize=11, parse_math=False)  # a file may be named with dollar signs
    return figure


def empty_panels(image: np.ndarray, rows: int) -> tuple[Figure, np.ndarray]:
    """A figure, and its axes in pixels of the image, shape (rows, 2)."""
    height, width = image.shape[:2]
    figure = Figure(figsize=(11, 0.6 + 4.5 * rows * min(height / width, 1.6)), layout='constrained')
    panels = figure.subplots(rows, 2, squeeze=False)
    for axes in panels.flat:
        axes.set(xlim=(0, width), ylim=(height, 0), aspect='equal')
        axes.set_axis_off()
    return figure, panels


def draw_affinities(panels: Iterable[Axes], image: np.ndarray, block: BlockTree, vertex: int) -> None:
    """Affinity of a vertex along its tree and along a raster scan, on one scale, over the greyed image."""
    paths = {'tree': block.tree, 'raster scan': raster_tree(1, block.vertices.shape[1])}
    maps = {name: affinity(block.decay_along(tree), tree, vertex) for name, tree in paths.items()}
    scale = affinity_scale(min(float(strength.min()) for strength in maps.values()))
    ticks = [n * 10.0**k for k in range(-3, 1) for n in (1, 2, 5)] if isinstance(scale, LogNorm) else None
    mappable = ScalarMappable(scale, 'inferno')
    for axes, (name, along) in zip(panels, maps.items(), strict=True):
        strength = along[0].reshape(block.grid).cpu().numpy()
        colours = mappable.to_rgba(strength)
        colours[..., 3] = scale(strength).clip(0, 1) ** 0.5 * 0.85  # vertices out of reach show the image
        show_greyed(axes, image, -100, 400)
        axes.imshow(colours, interpolation='nearest', extent=extent(image))
        mark(axes, vertex_centres(block.grid, image.shape[:2])[vertex], '+')
        bar = axes.figure.colorbar(
            mappable, ax=axes, label='product of decays along the path', ticks=ticks, **BAR
        )
        if ticks:
            bar.ax.yaxis.set_major_formatter('{x:g}')
            bar.ax.minorticks_off()
        axes.set_title(f'affinity to the marked pixel along the {name}', fontsize=10)


def vertex_centres(grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Centre (x, y) of every vertex's cell in the picture, shape (L, 2), row-major."""
    y, x = ((np.arange(n) + 0.5) * side / n for n, side in zip(grid, size, strict=True))
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def draw_tree(
    axes: Axes,
    image: np.ndarray,
    tree: Tree,
    centres: np.ndarray,
    value: np.ndarray,
    colours: LinearSegmentedColormap,
    unit: str,
    ticks: MaxNLocator | None = None,
) -> None:
    """Edges over the greyed image, coloured by the value of their lower end; the root as a dot.

    The rarest hundredth of the values on either side shares the colour of its end of the scale.
    """
    parent, root = tree.parent[0].cpu().numpy(), int(tree.order[0, 0])
    vertices = np.flatnonzero(np.arange(len(parent)) != root)
    show_greyed(axes, image, -450, 300)
    shown = value[vertices] if len(vertices) else np.zeros(1)
    low, high = (shown.min(), shown.max()) if ticks else np.quantile(shown, (0.01, 0.99))
    lines = LineCollection(
        list(np.stack([centres[vertices], centres[parent[vertices]]], axis=1)),
        array=value[vertices],
        cmap=colours,
        norm=Normalize(low, max(high, low + 1e-6)),
        linewidths=line_width(axes, centres),
        capstyle='round',
    )
    axes.add_collection(lines)
    mark(axes, centres[root], 'o')
    ends = {(False, False): 'neither', (True, False): 'min', (False, True): 'max', (True, True): 'both'}
    beyond = ends[bool(shown.min() < low), bool(shown.max() > high)]
    axes.figure.colorbar(lines, ax=axes, label=unit, ticks=ticks, extend=beyond, **BAR)


def affinity_scale(least: float) -> Normalize:
    """From the least affinity to 1, logarithmic where they differ by more than a factor of ten."""
    if least < 0.1:
        return LogNorm(max(least, FAINTEST), 1, clip=True)
    return Normalize(min(least, 0.99), 1, clip=True)


def show_greyed(axes: Axes, image: np.ndarray, low: float, high: float) -> None:
    grey = np.asarray(image, dtype=float).mean(-1)
    axes.imshow(grey, cmap='gray', vmin=low, vmax=high, extent=extent(image))


def extent(image: np.ndarray) -> tuple[int, int, int, int]:
    """Pixel (r, c) covers [c, c + 1] x [r, r + 1]."""
    return 0, image.shape[1], image.shape[0], 0


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
