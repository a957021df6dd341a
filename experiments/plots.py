"""Pictures of a comparison, drawn from its records alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no display on servers; before pyplot is imported
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from experiments import plot_labels, plot_rows, records

# Okabe & Ito's colours, which colour-blind readers can tell apart; without the yellow,
# which is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":")
GREY = "#767676"
MANY = 6
"""With more lines than this in one panel, bands would hide them."""
CROWD = 20
"""More methods than this are rows, not points in a plane."""
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 160,
}


def draw_all(folder: Path) -> list[Path]:
    """Draws every picture of the comparison in ``folder``; returns their paths."""
    summary = records.read_json(folder / "summary.json")
    curves = _curves(folder, summary)
    crowd = len(summary["rows"]) > CROWD
    with plt.rc_context(STYLE):
        figures = {
            "accuracy": plot_rows.draw_accuracy_rows(summary)
            if crowd
            else draw_accuracy(summary),
            "losses": draw_losses(summary, curves),
            "weights": draw_weights(summary, curves),
            "conflict": draw_conflict(curves),
        }
        return [_save(fig, folder / f"{name}.png") for name, fig in figures.items()]


def _save(figure: Figure, path: Path) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)
    return records.write_bytes(path, buffer.getvalue())


def _curves(folder: Path, summary: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Method -> ``step (N,)`` and, by seed, ``losses``, ``weights``, ``cosines``."""
    by_method: dict[str, list[list[dict[str, Any]]]] = {}
    for run in summary["runs"]:
        lines = records.read_lines(folder / run["run"] / "metrics.jsonl")
        lines = [line for line in lines if line["kind"] == "train"]
        all_tasks = len(run["tasks"]) == len(summary["tasks"])
        if all_tasks and not _is_fixed(run["method"]):
            by_method.setdefault(run["method"], []).append(lines)
    return {
        method: {
            "step": np.array([line["step"] for line in runs[0]]),
            **{
                name: np.array([[line[name] for line in lines] for lines in runs])
                for name in ("losses", "weights", "cosines")
            },
        }
        for method, runs in by_method.items()
    }


def _is_fixed(method: str) -> bool:
    """Whether the method is a point of the grid of fixed weights."""
    return method.startswith("ls(weights=")


def _look(index: int) -> dict[str, Any]:
    """Colour and dashes of the method with this number."""
    colour = COLOURS[index % len(COLOURS)]
    return {"color": colour, "linestyle": DASHES[index // len(COLOURS) % len(DASHES)]}


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Centred moving average over the last axis, shorter at the ends."""
    kernel = np.ones(min(width, len(values)))
    weights = np.convolve(np.ones(len(values)), kernel, "same")
    return np.convolve(values, kernel, "same") / weights


def _line(
    axes: Axes, step: np.ndarray, runs: np.ndarray, *, band: bool, **look: Any
) -> None:
    """Mean over the seeds, and the range between them; ``runs`` is (seeds, N)."""
    width = max(1, len(step) // 40)
    smooth = np.stack([_smooth(run, width) for run in runs])
    axes.plot(step, smooth.mean(0), linewidth=1.6, **look)
    if band and len(runs) > 1:
        ends = smooth.min(0), smooth.max(0)
        axes.fill_between(step, *ends, color=look["color"], alpha=0.12, linewidth=0)


def draw_losses(
    summary: dict[str, Any], curves: dict[str, dict[str, np.ndarray]]
) -> Figure:
    """Training loss of every task, one line per method."""
    tasks = summary["tasks"]
    figure, grid = plt.subplots(
        1, len(tasks), figsize=(4.6 * len(tasks), 3.6), squeeze=False, sharey=True
    )
    for t, axes in enumerate(grid[0]):
        for i, (method, curve) in enumerate(curves.items()):
            losses = curve["losses"][:, :, t]
            look = {"band": len(curves) <= MANY, "label": method, **_look(i)}
            _line(axes, curve["step"], losses, **look)
        axes.set(title=f"{tasks[t]} task", xlabel="step", yscale="log")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
    grid[0, 0].set_ylabel("training loss")
    _legend(figure, grid[0, -1])
    return figure


def draw_conflict(curves: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Cosine between the task gradients (mean over pairs), one line per method."""
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    for i, (method, curve) in enumerate(curves.items()):
        cosines = curve["cosines"].mean(-1)
        look = {"band": len(curves) <= MANY, "label": method, **_look(i)}
        _line(axes, curve["step"], cosines, **look)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set(xlabel="step", ylabel="cosine between task gradients")
    axes.set_title("Below zero the tasks pull the shared layers apart", fontsize=10)
    _legend(figure, axes)
    return figure


def draw_weights(
    summary: dict[str, Any], curves: dict[str, dict[str, np.ndarray]]
) -> Figure:
    """Share of every task in the weights, one panel per method whose weights move."""
    moving = {m: c for m, c in curves.items() if np.ptp(c["weights"], axis=1).any()}
    curves = moving or curves
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(2.9 * columns, 2.3 * rows + 0.3),
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    for i, axes in enumerate(grid.flat):
        axes.set_axis_off() if i >= len(curves) else None
        axes.tick_params(labelbottom=i + columns >= len(curves))
    for axes, (method, curve) in zip(grid.flat, curves.items(), strict=False):
        total = np.abs(curve["weights"]).sum(-1, keepdims=True)
        shares = curve["weights"] / np.where(total > 0, total, 1)
        for t, task in enumerate(summary["tasks"]):
            look = {"band": True, "label": task, **_look(t)}
            _line(axes, curve["step"], shares[:, :, t], **look)
        axes.set_title(method, fontsize=9)
    figure.supxlabel("step", fontsize=10)
    figure.supylabel("share of the task's weight", fontsize=10)
    _legend(figure, grid[0, columns - 1])
    figure.tight_layout()
    return figure


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=9)


def draw_accuracy(summary: dict[str, Any]) -> Figure:
    """Test accuracies of the first two tasks against each other.

    Points with error bars (standard deviation over seeds); the single-task networks are
    the dashed lines; fixed weights of a grid are joined by a line.
    """
    rows = {row["method"]: row for row in summary["rows"]}
    single = rows.pop("single-task")
    fixed = [row for method, row in rows.items() if _is_fixed(method)]
    others = [row for method, row in rows.items() if not _is_fixed(method)]
    figure, axes = plt.subplots(figsize=(6.8, 5.4))
    texts: list[tuple[str, tuple[float, float], str]] = []
    if fixed:
        fixed.sort(key=lambda row: row["accuracy"][0])
        points = np.array([_xy(row) for row in fixed])
        axes.plot(*points.T, "-o", color=GREY, linewidth=1, markersize=4, zorder=2)
        for row in fixed:
            label = row["method"].removeprefix("ls(weights=").removesuffix(")")
            texts.append((label, _xy(row), GREY))
    for i, row in enumerate(others):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[(i + i // 7) % 7]
        _point(axes, row, colour, marker)
        texts.append((row["method"], _xy(row), colour))
    _margins(axes, [single, *(others or fixed)])
    _reference(axes, single)
    tasks = summary["tasks"]
    axes.set_xlabel(f"test accuracy of the {tasks[0]} task, %")
    axes.set_ylabel(f"test accuracy of the {tasks[1]} task, %")
    # The methods first: fixed weights take the places that are left.
    plot_labels.place(axes, texts[len(fixed) :] + texts[: len(fixed)])
    seeds = max(row["seeds"] for row in summary["rows"])
    title = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    title += "\ndashed: single-task networks"
    axes.set_title(title + ("; grey: fixed weights" if fixed else ""), fontsize=9)
    return figure


def _xy(row: dict[str, Any]) -> tuple[float, float]:
    return row["accuracy"][0], row["accuracy"][1]


def _point(axes: Axes, row: dict[str, Any], colour: str, marker: str) -> None:
    """One method's mean, with faint error bars where there are several seeds."""
    (x, y), (dx, dy) = _xy(row), row["std"][:2]
    axes.errorbar(x, y, xerr=dx, yerr=dy, fmt="none", ecolor=colour, alpha=0.35)
    look = {"color": colour, "markeredgecolor": "white", "markersize": 9}
    axes.plot(x, y, marker, zorder=3, **look)


def _margins(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Limits that leave room for error bars and labels."""
    for k, limits in enumerate((axes.set_xlim, axes.set_ylim)):
        ends = [
            row["accuracy"][k] + sign * (row["std"][k] or 0)
            for row in rows
            for sign in (-1, 1)
        ]
        room = 0.12 * (max(ends) - min(ends)) or 1.0
        limits(min(ends) - room, max(ends) + room)


def _reference(axes: Axes, single: dict[str, Any]) -> None:
    """Dashed lines of the single-task networks with their deviations."""
    x, y = _xy(single)
    dx, dy = (deviation or 0 for deviation in single["std"][:2])
    for line, span, value, spread in (
        (axes.axvline, axes.axvspan, x, dx),
        (axes.axhline, axes.axhspan, y, dy),
    ):
        line(value, color="black", linestyle="--", linewidth=1, zorder=1)
        span(value - spread, value + spread, color="black", alpha=0.06, linewidth=0)
