"""The accuracies of many methods as rows: points in a plane would hide each other."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

COLOURS, MARKERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), ("o", "s", "^", "D")
REACH = 3.0
"""The axis reaches so many times the median distance from single-task networks."""


def draw_accuracy_rows(summary: dict[str, Any]) -> Figure:
    """Test accuracy of every task minus that of its single-task network, by method.

    The best mean change is on top. What lies beyond the left end is drawn on it as a
    triangle, with the number beside it.

    Args:
        summary: of a comparison with single-task networks.
    """
    rows = {row["method"]: row for row in summary["rows"]}
    single = rows.pop("single-task")
    methods = sorted(rows.values(), key=lambda row: row["delta_m"], reverse=True)
    tasks = summary["tasks"]
    change = np.array([row["accuracy"] for row in methods]) - single["accuracy"]
    spread = np.array([[s or 0 for s in row["std"]] for row in methods])
    left = -REACH * np.median(np.abs(change))
    figure, axes = plt.subplots(figsize=(7.2, 1.2 + 0.2 * len(methods)))
    for t, task in enumerate(tasks):
        colour = COLOURS[t % len(COLOURS)]
        # One below the other within a row, so that neither hides the other.
        height = np.arange(len(methods)) + 0.3 * (0.5 - t / max(len(tasks) - 1, 1))
        inside = change[:, t] >= left
        axes.errorbar(
            change[inside, t],
            height[inside],
            xerr=spread[inside, t],
            fmt=MARKERS[t % len(MARKERS)],
            color=colour,
            markersize=4.5,
            elinewidth=1,
            label=f"{task} task",
        )
        axes.plot(left + 0 * height[~inside], height[~inside], "<", color=colour)
    for i, row in enumerate(change):
        if (row < left).any():
            text = ", ".join(f"{value:+.1f}" for value in row)
            axes.annotate(
                text, (left, i), (9, 0), textcoords="offset points", va="center", size=8
            )
    axes.axvline(0, color="black", linestyle="--", linewidth=1, zorder=1)
    axes.set_yticks(range(len(methods)), [row["method"] for row in methods], size=8)
    axes.set_ylim(-0.8, len(methods) - 0.2)
    axes.set_xlim(left * 1.03, max(0.3, (change + spread).max() * 1.1))
    axes.set_xlabel("test accuracy minus that of the single-task network, points")
    seeds = max(row["seeds"] for row in summary["rows"])
    title = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    axes.set_title(title, fontsize=9)
    axes.legend(loc="upper left", fontsize=9)
    return figure
