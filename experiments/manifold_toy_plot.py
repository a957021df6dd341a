"""Picture of the toy's Pareto manifolds beside methods, from its records alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments import toy_plot
from experiments.explore_plot import save

SEGMENT = "#D55E00"
SHOWN = 2
"""Pairs of starts in the picture: all five starts but the origin."""


def draw(folder: Path) -> Path:
    """Draws ``toy.png`` from the ``trajectories.npz`` of a run.

    Args:
        folder: of a finished run.

    Returns:
        the picture's path.
    """
    with np.load(folder / "trajectories.npz") as saved:
        balances, methods = saved["balances"].tolist(), saved["methods"].tolist()
        scales, steps = saved["scales"].tolist(), saved["steps"]
        members, paths = saved["members"][:, :, :SHOWN], saved["paths"]
    rows, columns = 2 * len(scales), len(methods) + len(balances)
    figure = Figure(figsize=(max(5, 0.9 + 1.75 * columns), 1.2 + 2.05 * rows), dpi=100)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.05, wspace=0, hspace=0)
    axes = figure.subplots(rows, columns, squeeze=False)
    for i, scale in enumerate(scales):
        top, bottom = axes[2 * i], axes[2 * i + 1]
        for j, method in enumerate(methods):
            _panels(top[j], bottom[j], paths[j, i], scale)
            top[j].set_title(method if i == 0 else "", fontsize=10)
        for j, balance in enumerate(balances, len(methods)):
            runs = members[j - len(methods), i]  # (pairs, N + 1, members, 2)
            both = np.moveaxis(runs, 2, 1).reshape(-1, *runs.shape[1:2], 2)
            _panels(top[j], bottom[j], both, scale)
            for run in runs:
                _segment(top[j], bottom[j], run[-1], scale)
            name = balance.split("(")[0]
            top[j].set_title(f"manifold\n{name}" if i == 0 else "", fontsize=10)
        for j in range(1, columns):
            top[j].set_yticklabels([])
            bottom[j].set_yticklabels([])
        top[0].set_ylabel(f"loss 1 × {scale:g}: parameters\ny")
        bottom[0].set_ylabel(f"loss 1 × {scale:g}: objectives\nloss 2")
    toy_plot.legend(figure, axes, int(steps[-1]))
    mixtures = Line2D([], [], color=SEGMENT, linewidth=2)
    axes[1, -1].legend(
        [mixtures], ["mixtures"], loc="upper right", fontsize=7, frameon=False
    )
    return save(figure, folder / "toy.png")


def _panels(top: Axes, bottom: Axes, paths: np.ndarray, scale: float) -> None:
    toy_plot.parameter_panel(top, paths, scale)
    toy_plot.objective_panel(bottom, paths, scale)


def _segment(top: Axes, bottom: Axes, ends: np.ndarray, scale: float) -> None:
    """The mixtures of the two members ``(2, 2)``, and their losses."""
    shares = np.linspace(0, 1, 101, dtype=np.float32)[:, None]
    points = (1 - shares) * ends[0] + shares * ends[1]
    for axes, line in ((top, points), (bottom, toy_plot.losses_at(points, scale))):
        axes.plot(*line.T, color=SEGMENT, linewidth=2, zorder=3)
