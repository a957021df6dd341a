"""Pictures of the networks of the study ``manifold``, from their record alone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import records
from experiments.explore_plot import BLACK, GREY, new_figure, save
from experiments.manifold_tables import with_own_statistics
from experiments.plots import COLOURS, MARKERS, STYLE

Record = dict[str, Any]
LINES = {"manifold": COLOURS[1], "low_rank": COLOURS[2], "cosmos": COLOURS[3]}
LINES |= {"phn_linear": COLOURS[0], "phn_epo": COLOURS[4]}
DASHES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))
SINGLE = "single-task"


def draw(folder: Path) -> list[Path]:
    """Draws the fronts of a run: scores and losses, one panel per pair of tasks.

    Args:
        folder: holds ``summary.json``.

    Returns:
        the pictures' paths.
    """
    summary = records.read_json(folder / "summary.json")
    summary["runs"] = with_own_statistics(summary.get("runs", []))
    paths = []
    with mpl.rc_context(STYLE):
        if summary["runs"]:
            for name in ("scores", "losses"):
                figure = _fronts(summary, name)
                paths.append(save(figure, folder / f"{name}.png"))
    return paths


def _fronts(summary: Record, name: str) -> Figure:
    pairs = list(itertools.combinations(range(len(summary["tasks"])), 2))
    figure = new_figure(6.4 * len(pairs) if len(pairs) == 1 else 5.2 * len(pairs), 5.2)
    axes_list = np.ravel(figure.subplots(1, len(pairs)))
    labels = summary["scores"] if name == "scores" else summary["tasks"]
    seeds = sorted({run["seed"] for run in summary["runs"]})
    for axes, pair in zip(axes_list, pairs, strict=True):
        for run in summary["runs"]:
            _draw_run(axes, run, name, pair, seeds.index(run["seed"]), summary)
        suffix = "" if name == "scores" else " test loss"
        axes.set(xlabel=labels[pair[0]] + suffix, ylabel=labels[pair[1]] + suffix)
        _limits(axes, summary["runs"], name, pair)
    handles, texts = axes_list[0].get_legend_handles_labels()
    figure.legend(
        handles, texts, loc="outside lower center", ncols=min(len(texts), 5), fontsize=8
    )
    figure.suptitle(
        f"test {name}, {len(seeds)} seed(s); line styles are seeds, stars the first "
        "task's end",
        fontsize=10,
    )
    return figure


def _draw_run(
    axes: Axes,
    run: Record,
    name: str,
    pair: tuple[int, int],
    seed: int,
    summary: Record,
) -> None:
    points = np.array(run[name])[:, pair]
    label = run["name"] if seed == 0 else None
    dash = DASHES[seed % len(DASHES)]
    if run["name"] == SINGLE:
        look = {"color": BLACK, "linewidth": 0.8, "linestyle": dash}
        axes.axvline(points[0, 0], **look)
        axes.axhline(points[0, 1], label=label, **look)
    elif not run["whole_front"]:
        methods = [row["name"] for row in summary["rows"] if not row["whole_front"]]
        marker = MARKERS[methods.index(run["name"]) % len(MARKERS)]
        look = {"color": GREY, "markeredgecolor": "white", "markersize": 8}
        axes.plot(*points.T, marker, label=label, zorder=3, **look)
    else:
        name, _, own = run["name"].partition(", ")
        colour, dash = LINES[name], (0, (1, 1)) if own else dash
        if len(summary["tasks"]) > 2:
            axes.plot(*points.T, ".", color=colour, markersize=3, label=label)
            return
        look = {"color": colour, "linewidth": 1.4, "linestyle": dash}
        axes.plot(*points.T, marker="o", markersize=3, label=label, **look)
        axes.plot(*points[0], "*", color=colour, markersize=10, zorder=4)


def _limits(axes: Axes, runs: list[Record], name: str, pair: tuple[int, int]) -> None:
    """Limits that show the runs' best compromises; far ends, and runs that are worse by
    far than most, may lie outside."""
    sign = 1 if name == "scores" else -1
    fronts = [sign * np.array(run[name])[:, pair] for run in runs]
    knees = np.array([points[points.sum(1).argmax()] for points in fronts])
    values = np.concatenate(fronts)
    best = values.max(0)
    behind = best - knees
    near = (behind <= 6 * np.median(behind, axis=0) + 1e-9).all(1)
    reach = np.maximum(3 * behind[near].max(0), 1e-3)
    low = np.maximum(values.min(0), best - reach)
    room = np.maximum(0.06 * (best - low), 1e-4)
    ends = np.sort(sign * np.stack([low - room, best + room]), axis=0)
    axes.set(xlim=ends[:, 0], ylim=ends[:, 1])
