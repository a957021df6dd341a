"""Labels of points that keep clear of each other and of the points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

DISTANCES = (9, 16, 26, 38, 52, 70)
"""Tried one after the other, in points (1/72 inch)."""
DIRECTIONS = np.deg2rad([0, 180, 90, 270, 45, 135, 315, 225, 20, 160, 340, 200])
MARK = 7
"""Half the side of the square that a point and its marker take, in points."""


def place(axes: Axes, texts: Sequence[tuple[str, tuple[float, float], str]]) -> None:
    """Writes ``(label, (x, y), colour)`` beside their points, with a line where far.

    Points outside the axes get no label.

    Each label takes the nearest of some places around its point that lies inside the
    axes and covers the least of the markers and labels that are there already.
    """
    figure = axes.figure
    figure.canvas.draw()  # fixes the limits and makes the text renderer
    scale = figure.dpi / 72
    taken = [_square(axes.transData.transform(xy), MARK * scale) for _, xy, _ in texts]
    inside = axes.get_window_extent()
    halo = [patheffects.withStroke(linewidth=2.5, foreground="white", alpha=0.8)]
    for label, xy, colour in texts:
        anchor = axes.transData.transform(xy)
        if not inside.contains(*anchor):
            continue
        note = axes.annotate(
            label,
            xy,
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            color=colour,
            fontsize=9,
            path_effects=halo,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.7, "alpha": 0},
            zorder=5,
        )
        size = note.get_window_extent()
        best = min(
            _candidates(size.width / scale, size.height / scale),
            key=lambda offset: _cost(_box(anchor, offset, size, scale), taken, inside),
        )
        note.set_position(best)
        far = np.hypot(*best) > size.width / scale / 2 + 2 * DISTANCES[0]
        if note.arrow_patch is not None and far:
            note.arrow_patch.set_alpha(0.7)
        taken.append(_box(anchor, best, size, scale))


def _candidates(width: float, height: float) -> list[tuple[float, float]]:
    """Offsets of a label's centre from its point, the nearest first."""
    return [
        (
            float(np.cos(angle) * (distance + width / 2)),
            float(np.sin(angle) * (distance + height / 2)),
        )
        for distance in DISTANCES
        for angle in DIRECTIONS
    ]


def _square(centre: np.ndarray, half: float) -> Bbox:
    return Bbox([centre - half, centre + half])


def _box(
    anchor: np.ndarray, offset: tuple[float, float], size: Bbox, scale: float
) -> Bbox:
    centre = anchor + scale * np.array(offset)
    half = np.array([size.width, size.height]) / 2 + 1
    return Bbox([centre - half, centre + half])


def _cost(box: Bbox, taken: Sequence[Bbox], inside: Bbox) -> float:
    """Area that the box shares with what is there, and area outside the axes."""
    shared = sum(_area(Bbox.intersection(box, other)) for other in taken)
    outside = _area(box) - _area(Bbox.intersection(box, inside))
    return round(shared + outside, 3)  # min() keeps the first of equals, the nearest


def _area(box: Bbox | None) -> float:
    return 0.0 if box is None else box.width * box.height
