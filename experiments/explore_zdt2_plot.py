"""Pictures of the problem ``zdt2`` of the study ``explore``, from its records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import records
from experiments.explore_plot import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    new_figure,
    save,
)
from experiments.plots import STYLE

GRADIENTS = (("∇f1", BLUE), ("∇f2", GREEN))
METHODS = {"minres": "MINRES tangents", "weighted_sum": "perturbed weighted sum"}


def draw(folder: Path) -> list[Path]:
    """Draws ``figure_2.png`` and ``figure_3.png`` from a run's records.

    Args:
        folder: holds ``figure_2.npz``, ``figure_3.npz`` and ``summary.json``.

    Returns:
        the pictures' paths.
    """
    with np.load(folder / "figure_2.npz") as saved:
        lines = dict(saved)
    with np.load(folder / "figure_3.npz") as saved:
        points = dict(saved)
    results = records.read_json(folder / "summary.json")["figure_3"]
    with mpl.rc_context(STYLE):
        return [
            save(_figure_2(lines), folder / "figure_2.png"),
            save(_figure_3(points, results), folder / "figure_3.png"),
        ]


def _figure_2(lines: dict[str, np.ndarray]) -> Figure:
    figure = new_figure(13, 4.4)
    space: Any = figure.add_subplot(1, 3, 1, projection="3d", proj_type="ortho")
    _parameter_space(space, lines["point"], lines["directions"])
    axes = figure.add_subplot(1, 3, 2)
    _front(axes)
    _draw_lines(axes, lines["lines"], width=3, alpha=(1, 1))
    axes.plot(
        *lines["lines"][-1, 0], "o", color=BLACK, markersize=8, zorder=4, label="f(x*)"
    )
    axes.legend(loc="lower left")
    axes.set_title("tangents and gradients at one point")
    axes = figure.add_subplot(1, 3, 3)
    _front(axes)
    supplement = lines["supplement_lines"]
    for each in supplement:
        _draw_lines(axes, each, width=2, alpha=(0.8, 0.25))
    axes.plot(*supplement[:, -1, 0].T, "o", color=BLACK, markersize=3.5, zorder=4)
    axes.set_title(f"one tangent at each of {len(supplement)} points")
    return figure


def _parameter_space(space: Any, point: np.ndarray, directions: np.ndarray) -> None:
    """The Pareto set (a cylinder around the x1 axis), with unit arrows from the point."""
    angle = np.linspace(-np.pi, np.pi, 49)
    height = np.linspace(-1.5 * np.pi, -0.5 * np.pi, 9)
    radius = np.sqrt(np.pi)
    circle = radius * np.cos(angle), radius * np.sin(angle)
    surface = [np.outer(np.ones(len(height)), part) for part in circle]
    surface.append(np.outer(height, np.ones(len(angle))))
    space.plot_surface(*surface, color=GREY, alpha=0.18, linewidth=0)
    origin = np.roll(point, -1)  # drawn with x1 upwards
    colours = [ORANGE] * (len(directions) - 2) + [colour for _, colour in GRADIENTS]
    for direction, colour in zip(directions, colours, strict=True):
        space.quiver(*origin, *np.roll(direction, -1), color=colour, linewidth=2)
    space.scatter(*origin, color=BLACK, s=30)
    space.set(xlabel="x2", ylabel="x3", zlabel="x1", title="parameters: Pareto set")
    space.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5))
    # Looks at the side of the cylinder on which the point lies.
    space.view_init(elev=20, azim=np.degrees(np.arctan2(point[2], point[1])) + 35)


def _draw_lines(
    axes: Axes, lines: np.ndarray, *, width: float, alpha: tuple[float, float]
) -> None:
    """Lines (K + 2, N, 2) of K tangents, then of both gradients."""
    labelled = bool(axes.get_legend_handles_labels()[1][1:])
    for (name, colour), line in zip(GRADIENTS, lines[-2:], strict=True):
        label = None if labelled else f"along {name}"
        axes.plot(*line.T, color=colour, linewidth=width, alpha=alpha[1], label=label)
    for k, line in enumerate(lines[:-2]):
        label = "along tangents" if k == 0 and not labelled else None
        axes.plot(*line.T, color=ORANGE, linewidth=width, alpha=alpha[0], label=label)


def _front(axes: Axes) -> None:
    first = np.linspace(0, 1, 101)
    axes.plot(first, 1 - first**2, "-.", color=BLACK, linewidth=1, label="Pareto front")
    axes.set(xlabel="f1", ylabel="f2", xlim=(-0.05, 1.1), ylim=(-0.05, 1.1))
    axes.set_box_aspect(1)


def _figure_3(points: dict[str, np.ndarray], results: dict[str, Any]) -> Figure:
    figure = new_figure(10, 5)
    for k, (method, name) in enumerate(METHODS.items()):
        axes = figure.add_subplot(1, 2, k + 1)
        _front(axes)
        explored, corrected = (
            points[f"{method}_{part}"] for part in ("explored", "corrected")
        )
        look: Any = {"linestyle": "", "marker": "o"}
        axes.plot(*explored.T, color=ORANGE, alpha=0.6, label="explored", **look)
        axes.plot(
            *corrected.T, color=PINK, markersize=3.5, label="after correction", **look
        )
        axes.set(ylim=(-0.05, 1.5))
        axes.legend(loc="upper right")
        axes.set_title(f"{name}\n{_cost(results[method])}", fontsize=10)
    return figure


def _cost(result: dict[str, Any]) -> str:
    parts = []
    for stage in ("expand", "optimise"):
        counts = [f"{n:,} {name}" for name, n in result[stage].items() if n]
        parts.append(f"{stage}: {', '.join(counts)}")
    return "\n".join(parts).replace("hvps", "HVPs")
