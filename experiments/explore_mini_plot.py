"""Pictures of the problem ``mini_mnist`` of the study ``explore``, from its records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import records
from experiments.explore_plot import BLACK, BLUE, GREEN, GREY, ORANGE, new_figure, save
from experiments.plots import COLOURS, DASHES, STYLE

LOOKS = {
    "descent on loss 1": (BLUE, 0.45),
    "descent on loss 2": (GREEN, 0.45),
    "MINRES": (ORANGE, 1.0),
    "random direction": (GREY, 0.6),
}


def draw(folder: Path) -> list[Path]:
    """Draws ``figure_4.png`` and ``residuals.png`` from a run's records.

    Args:
        folder: holds ``front.npz``, ``lines.npz``, ``residuals.npz``, ``summary.json``.

    Returns:
        the pictures' paths.
    """
    archives: dict[str, dict[str, np.ndarray]] = {}
    for name in ("front", "lines", "residuals"):
        with np.load(folder / f"{name}.npz") as saved:
            archives[name] = dict(saved)
    summary = records.read_json(folder / "summary.json")
    with mpl.rc_context(STYLE):
        lines = _figure_4(archives["front"], archives["lines"], summary)
        curves = _residuals(archives["residuals"], summary)
        return [
            save(lines, folder / "figure_4.png"),
            save(curves, folder / "residuals.png"),
        ]


def _figure_4(
    front: dict[str, np.ndarray], lines: dict[str, np.ndarray], summary: dict[str, Any]
) -> Figure:
    figure = new_figure(12, 5.4)
    kept = front["losses"][front["kept"]]
    panels = {
        "descent, MINRES": ("descent on loss 1", "descent on loss 2", "MINRES"),
        "random directions, MINRES": ("random direction", "MINRES"),
    }
    for k, (title, names) in enumerate(panels.items()):
        axes = figure.add_subplot(1, 2, k + 1)
        for name in names:
            colour, alpha = LOOKS[name]
            for i, line in enumerate(lines[name]):
                label = _label(name, summary) if i == 0 else None
                axes.plot(
                    *line.T, color=colour, alpha=alpha, linewidth=1.6, label=label
                )
        axes.plot(
            *kept.T,
            "o-.",
            color=BLACK,
            markersize=3.5,
            linewidth=1,
            label="L-BFGS front",
        )
        _objectives(axes, summary["front"]["limits"])
        axes.set_title(f"{title} from {len(kept)} points", fontsize=10)
        axes.legend(loc="upper right", fontsize=9)
    return figure


def _label(name: str, summary: dict[str, Any]) -> str:
    row = summary["lines"][name]
    return f"{name}: {100 * row['dominated']:.0f} % dominated"


def _objectives(axes: Axes, limits: list[float]) -> None:
    margin = 0.05
    axes.set(xlabel="loss 1 (left digit)", ylabel="loss 2 (right digit)")
    axes.set_xlim(limits[0] - margin, limits[1] + margin)
    axes.set_ylim(limits[2] - margin, limits[3] + margin)


def _residuals(archive: dict[str, np.ndarray], summary: dict[str, Any]) -> Figure:
    figure = new_figure(7, 4.4)
    axes = figure.add_subplot()
    pairs = zip(archive["residuals"], archive["weights"], strict=True)
    for k, (curve, weight) in enumerate(pairs):
        axes.plot(
            curve,
            color=COLOURS[k % len(COLOURS)],
            linestyle=DASHES[k // len(COLOURS) % len(DASHES)],
            label=f"weights ({weight:.2g}, {1 - weight:.2g})",
        )
    maxiter = summary["config"]["maxiter"]
    axes.axvline(maxiter, color=GREY, linewidth=0.8)
    axes.annotate(
        f"{maxiter} iterations",
        (maxiter, 1.0),
        (4, 0),
        color=GREY,
        textcoords="offset points",
        fontsize=9,
    )
    size = summary["parameters"]
    axes.set(xlabel=f"MINRES iterations (the Hessian is {size:,} x {size:,})")
    axes.set(ylabel="residual / right-hand side", yscale="log")
    axes.legend(fontsize=9)
    return figure
