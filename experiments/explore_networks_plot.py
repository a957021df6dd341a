"""Pictures of the networks of the study ``explore``, from their record alone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from experiments import records
from experiments.explore_plot import BLACK, BLUE, GREEN, GREY, ORANGE, new_figure, save
from experiments.plots import COLOURS, STYLE

Record = dict[str, Any]


def draw(folder: Path) -> list[Path]:
    """Draws a picture of every part in the record of a run.

    Args:
        folder: holds ``summary.json``.

    Returns:
        the pictures' paths.
    """
    summary = records.read_json(folder / "summary.json")
    makers = {
        "trace": _traces,
        "front": _front,
        "necessity": _necessity,
        "efficiency": _efficiency,
        "ablation": _ablation,
    }
    paths = []
    with mpl.rc_context(STYLE):
        for name, make in makers.items():
            if name in summary:
                paths.append(save(make(summary), folder / f"{name}.png"))
    return paths


def _pairs(summary: Record) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(len(summary["tasks"])), 2))


def _traces(summary: Record) -> Figure:
    """Errors above, losses below; one column per pair of objectives."""
    pairs = _pairs(summary)
    figure = new_figure(5.2 * max(len(pairs), 2), 4.6 if len(pairs) == 1 else 8.6)
    shape = (1, 2) if len(pairs) == 1 else (2, len(pairs))
    panels = iter(figure.subplots(*shape).flat)
    for name, names in (
        ("test_errors", summary["errors"]),
        ("test_losses", [f"{task} test loss" for task in summary["tasks"]]),
    ):
        for i, j in pairs:
            axes = next(panels)
            _trace_panel(axes, summary["trace"]["starts"], name, (i, j))
            axes.set(xlabel=names[i], ylabel=names[j])
    figure.axes[0].legend(fontsize=8, loc="best")
    figure.suptitle("weighted-sum starts (stars) and traces from them", fontsize=11)
    return figure


def _trace_panel(
    axes: Axes, starts: list[Record], name: str, pair: tuple[int, int]
) -> None:
    for number, entry in enumerate(starts):
        colour = COLOURS[number % len(COLOURS)]
        for k, each in enumerate(entry["directions"]):
            points = np.array(each[name])[:, pair]
            label = f"weights {_weights(entry['weights'])}" if k == 0 else None
            look = {"color": colour, "linewidth": 1.2, "markersize": 3}
            axes.plot(*points.T, "o-" if k % 2 == 0 else "s--", label=label, **look)
        first = np.array(entry["directions"][0][name])[0, pair]
        look = {"color": colour, "markeredgecolor": BLACK, "markersize": 13}
        axes.plot(*first, "*", zorder=4, **look)


def _weights(weights: list[float]) -> str:
    return ", ".join(f"{weight:.2f}" for weight in weights)


def _front(summary: Record) -> Figure:
    """The grid of the continuous front, grey where dominated; what is kept, joined."""
    part, tasks = summary["front"], summary["tasks"]
    if len(tasks) == 3:
        return _surface(part, tasks)
    figure = new_figure(10.4, 4.6)
    axes = figure.subplots(1, 2)
    grid = np.array(part["grid_losses"])
    axes[0].plot(*grid.T, ".", color=GREY, markersize=4, label="dominated on the grid")
    for panel, name in zip(axes, ("kept_losses", "kept_test_losses"), strict=True):
        kept, edges = np.array(part[name]), np.array(part["simplices"])
        panel.add_collection(
            LineCollection(list(kept[edges]), colors=BLUE, linewidths=2)
        )
        panel.plot(*kept.T, ".", color=BLUE, markersize=5, label="continuous front")
        starts = np.array([_start(each, name) for each in summary["trace"]["starts"]])
        look = {"color": ORANGE, "markeredgecolor": BLACK, "markersize": 12}
        panel.plot(*starts.T, "*", label="weighted-sum starts", **look)
        panel.set(xlabel=f"{tasks[0]} loss", ylabel=f"{tasks[1]} loss")
        panel.legend(fontsize=8)
    axes[0].set_title(
        "training pictures, on which dominated parts were removed", fontsize=9
    )
    axes[1].set_title("the same networks on the test set", fontsize=9)
    return figure


def _start(entry: Record, name: str) -> list[float]:
    kind = "test_losses" if "test" in name else "probe_losses"
    return entry["directions"][0][kind][0]


def _surface(part: Record, tasks: list[str]) -> Figure:
    """Triangles of three objectives in space, and from the three sides."""
    figure = new_figure(9.6, 8.6)
    kept, grid = np.array(part["kept_losses"]), np.array(part["grid_losses"])
    triangles = np.array(part["simplices"])
    solid = triangles[np.ptp(triangles, axis=1) > 0]
    space: Any = figure.add_subplot(2, 2, 1, projection="3d")
    if len(solid):
        look = {"color": BLUE, "alpha": 0.35, "edgecolor": BLUE, "linewidth": 0.3}
        space.plot_trisurf(*kept.T, triangles=solid, **look)
    space.scatter(*kept.T, s=4, color=BLUE)
    space.set(xlabel=tasks[0], ylabel=tasks[1], zlabel=tasks[2], title="losses")
    for number, (i, j) in enumerate(itertools.combinations(range(3), 2)):
        axes = figure.add_subplot(2, 2, number + 2)
        axes.plot(grid[:, i], grid[:, j], ".", color=GREY, markersize=3)
        edges = [kept[[*row, row[0]]][:, [i, j]] for row in solid]
        axes.add_collection(LineCollection(edges, colors=BLUE, linewidths=0.5))
        axes.plot(kept[:, i], kept[:, j], ".", color=BLUE, markersize=4)
        axes.set(xlabel=f"{tasks[i]} loss", ylabel=f"{tasks[j]} loss")
    figure.suptitle(
        "continuous front (blue) on its grid (grey: dominated)", fontsize=11
    )
    return figure


def _necessity(summary: Record) -> Figure:
    part, tasks = summary["necessity"], summary["tasks"]
    pairs = _pairs(summary)
    figure = new_figure(5.2 * max(len(pairs), 2), 4.6)
    names = ("probe_losses", "test_losses") if len(pairs) == 1 else ("probe_losses",)
    panels = iter(np.ravel(figure.subplots(1, len(pairs) * len(names))))
    kinds = {"tangent": ORANGE, "gradient": BLUE, "random": GREY}
    for name in names:
        for i, j in pairs:
            axes = next(panels)
            for row in part["lines"]:
                points = np.array(row[name])[:, [i, j]]
                kind = row["direction"].split(",")[0].split(" ")[0]
                seen = axes.get_legend_handles_labels()[1]
                label = (
                    f"{kind} directions" if f"{kind} directions" not in seen else None
                )
                look = {"color": kinds[kind], "markersize": 3, "label": label}
                axes.plot(*points.T, "o-", **look)
            start = np.array(part["lines"][0][name])[0, [i, j]]
            axes.plot(*start, "*", color=BLACK, markersize=12, zorder=4)
            kind = "test" if name.startswith("test") else "training"
            axes.set(xlabel=f"{tasks[i]} {kind} loss", ylabel=f"{tasks[j]} {kind} loss")
            # Random lines run far off; what counts is near the tangents.
            _limits(axes, part["lines"], name, (i, j))
    figure.axes[0].legend(fontsize=8)
    return figure


def _limits(axes: Axes, lines: list[Record], name: str, pair: tuple[int, int]) -> None:
    near = [row[name] for row in lines if row["direction"].startswith("tangent")]
    points = np.concatenate([np.array(row)[:, pair] for row in near])
    low, high = points.min(0), points.max(0)
    room = 0.6 * (high - low)
    axes.set(xlim=(low[0] - room[0], high[0] + room[0]))
    axes.set(ylim=(low[1] - room[1], high[1] + room[1]))


def _efficiency(summary: Record) -> Figure:
    """One row per start: hypervolume against cost, and where the points lie."""
    parts = summary["efficiency"]
    figure = new_figure(10.4, 4.2 * len(parts))
    rows = figure.subplots(len(parts), 2, squeeze=False)
    for panels, part in zip(rows, parts, strict=True):
        _efficiency_row(panels, part, summary["tasks"])
    return figure


def _efficiency_row(panels: np.ndarray, part: Record, tasks: list[str]) -> None:
    colours = dict(zip(part["ways"], (ORANGE, BLUE, GREEN), strict=True))
    costs = [0, *(row["equivalents"] for row in part["rows"])]
    for way, colour in colours.items():
        volumes = [part["start"]["hypervolume_test_losses"]]
        volumes += [row[way]["test_losses"] for row in part["rows"]]
        panels[0].plot(costs, volumes, "o-", color=colour, label=way)
        points = np.array([row["test_losses"] for row in part["points"][way]])
        panels[1].plot(*points.T, "o", color=colour, markersize=4, label=way)
    panels[1].plot(*part["start"]["test_losses"], "*", color=BLACK, markersize=12)
    panels[0].set(xlabel="gradient-equivalents", ylabel="hypervolume (test losses)")
    panels[0].set_title(
        f"from the start with weights {part['start_weights'][0]:.2g}, ..."
    )
    panels[1].set(xlabel=f"{tasks[0]} test loss", ylabel=f"{tasks[1]} test loss")
    panels[0].legend(fontsize=8)


def _ablation(summary: Record) -> Figure:
    part = summary["ablation"]
    figure = new_figure(10.4, 4)
    left, right = figure.subplots(1, 2)
    history = np.array(part["residual_history"])
    left.semilogy(np.arange(len(history)), history, color=BLUE)
    left.set(xlabel="MINRES iterations", ylabel="relative residual")
    counts = [row["iterations"] for row in part["rows"]]
    right.semilogx(
        counts, [row["cosine_to_last"] for row in part["rows"]], "o-", color=BLUE
    )
    right.set(xlabel="MINRES iterations", ylabel="cosine to the last direction")
    right.set_xticks(counts, [str(count) for count in counts])
    right.minorticks_off()
    return figure
