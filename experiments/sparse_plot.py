"""Pictures of the study ``sparse``, from its record alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from experiments import records, sparse_similarity
from experiments.explore_plot import BLUE, GREEN, GREY, ORANGE, new_figure, save
from experiments.plots import STYLE

Record = dict[str, Any]
MAP = "viridis"


def draw(folder: Path) -> list[Path]:
    """Draws what the run's ``summary.json`` holds and returns the pictures' paths."""
    summary = records.read_json(folder / "summary.json")
    paths = []
    with mpl.rc_context(STYLE):
        for kind, function in (("front2d", _front_2d), ("front3d", _front_3d)):
            for front in summary.get(kind, []):
                path = folder / f"{kind}_{front['architecture']}.png"
                paths.append(save(function(summary, front), path))
        for part in summary.get("similarity", []):
            path = folder / f"similarity_{part['architecture']}.png"
            paths.append(save(_similarity(folder, part), path))
        if "conflict" in summary:
            figure = _conflict(summary["conflict"])
            paths.append(save(figure, folder / "conflict.png"))
    return paths


def _columns(front: Record) -> tuple[np.ndarray, ...]:
    """Training losses, test accuracies in per cent, SR and marks of the points."""
    points = front["points"]
    return (
        np.array([point["train_losses"] for point in points]),
        100 * np.array([point["test"] for point in points]),
        np.array([point["measures"]["rows"]["SR"] for point in points]),
        np.array([point["on_front"] for point in points]),
    )


def _front_2d(summary: Record, front: Record) -> Figure:
    losses, scores, _, marks = _columns(front)
    tasks = summary["tasks"]
    figure = new_figure(9.2, 4.2)
    for axes, values, what in zip(
        figure.subplots(1, 2),
        (losses, scores),
        ("training loss", "test accuracy, %"),
        strict=True,
    ):
        axes.plot(*values[~marks].T, "o", color=GREY, markersize=5, label="dominated")
        kept = values[marks]
        kept = kept[np.argsort(kept[:, 0])]
        line = "-o" if what.endswith("loss") else "o"
        axes.plot(*kept.T, line, color=BLUE, markersize=6, label="front (training)")
        axes.plot(
            *values[front["best"]],
            "*",
            color=ORANGE,
            markersize=14,
            label="best on validation",
        )
        axes.set(xlabel=f"{tasks[0]}: {what}", ylabel=f"{tasks[1]}: {what}")
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(
        f"{front['architecture']}: one sparse network retrained for {len(losses)} vectors",
        fontsize=10,
    )
    return figure


def _front_3d(summary: Record, front: Record) -> Figure:
    losses, scores, sparsity, marks = _columns(front)
    level = np.array([point["sparsity_loss"] for point in front["points"]])
    tasks = summary["tasks"]
    figure = new_figure(13.0, 4.4)
    space: Any = figure.add_subplot(1, 3, 1, projection="3d")
    look: dict[str, Any] = {
        "cmap": MAP,
        "vmin": 0,
        "vmax": max(float(sparsity.max()), 1.0),
    }
    for mask, marker in ((marks, "o"), (~marks, "x")):
        space.scatter(
            *losses[mask].T, level[mask], c=sparsity[mask], marker=marker, **look
        )
    space.set_xlabel(f"{tasks[0]} loss")
    space.set_ylabel(f"{tasks[1]} loss")
    space.set_zlabel("sparsity loss")
    space.set_box_aspect(None, zoom=0.82)  # or the label would lie over its neighbour
    flat = figure.add_subplot(1, 3, 2)
    right = figure.add_subplot(1, 3, 3)
    shown: Any = None
    for axes, values, what in (
        (flat, losses, "training loss"),
        (right, scores, "test accuracy, %"),
    ):
        for mask, marker in ((marks, "o"), (~marks, "x")):
            shown = axes.scatter(
                *values[mask].T, c=sparsity[mask], marker=marker, **look
            )
        axes.plot(*values[front["best"]], "*", color=ORANGE, markersize=14)
        axes.set(xlabel=f"{tasks[0]}: {what}", ylabel=f"{tasks[1]}: {what}")
    figure.colorbar(shown, ax=right, label="zero rows, %")
    figure.suptitle(
        f"{front['architecture']}: {len(losses)} vectors; dots are not dominated, "
        "the star is best on validation",
        fontsize=10,
    )
    return figure


def _conflict(part: Record) -> Figure:
    points = sorted(part["points"], key=lambda point: point["measures"]["rows"]["SR"])
    rates = [point["measures"]["rows"]["SR"] for point in points]
    figure = new_figure(13.0, 3.8)
    panels = figure.subplots(1, 4)
    for axes, (label, curves) in zip(
        panels,
        {
            "cosine of the tasks' gradients": {
                "all steps": "cosine",
                "second half": "cosine_late",
            },
            "conflicting steps, share": {
                "all steps": "conflicts",
                "second half": "conflicts_late",
            },
            "width of the front, test losses": {"": "width"},
            "best mean test accuracy": {"": "best_mean_accuracy"},
        }.items(),
        strict=True,
    ):
        for (name, key), colour in zip(curves.items(), (BLUE, GREEN), strict=False):
            values = [point[key] for point in points]
            axes.plot(rates, values, "-o", color=colour, label=name, markersize=5)
        axes.set(xlabel="zero rows, %", ylabel=label)
        if len(curves) > 1:
            axes.legend(fontsize=8)
    figure.suptitle(
        f"{part['architecture']}: do tasks conflict as the network gets sparser?",
        fontsize=10,
    )
    return figure


def _similarity(folder: Path, part: Record) -> Figure:
    layers = part["layers"]
    found = sparse_similarity.read(folder, part["architecture"], layers)
    figure = new_figure(8.6, 4.2 * len(layers))
    grid = figure.subplots(len(layers), 2, squeeze=False)
    shown: Any = None
    for line, layer in zip(grid, layers, strict=True):
        for axes, when in zip(line, ("before", "after"), strict=True):
            shown = axes.imshow(found[layer][when], vmin=-1, vmax=1, cmap="RdBu_r")
            axes.grid(visible=False)
            facts = layers[layer]
            axes.set_title(f"{layer}, {when} tying and retraining", fontsize=9)
            axes.set_xlabel(
                f"{facts['shown']} of {facts['live']} live rows, by cluster "
                f"({facts['clusters']})"
            )
    figure.colorbar(shown, ax=grid.ravel().tolist(), label="similarity", shrink=0.8)
    return figure
