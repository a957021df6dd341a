"""Picture of the study ``qm9``: Δm of every method, beside the published one."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

from experiments import records
from experiments.explore_plot import BLUE, GREY, new_figure, save
from experiments.plots import STYLE
from experiments.qm9_tables import PUBLISHED, published_name

LINEAR = 200
"""Percent; the axis is logarithmic beyond."""
TICKS = (-50, 0, 50, 100, 150, 200, 500, 1000)


def draw(folder: Path) -> list[Path]:
    """Draws Δm, ours with deviations over seeds and the published ones.

    Args:
        folder: holds ``summary.json``.

    Returns:
        the picture's path, or nothing if no method was trained.
    """
    rows = records.read_json(folder / "summary.json").get("rows", [])
    if not rows:
        return []
    rows = sorted(rows, key=lambda row: -row["delta_m"])
    with mpl.rc_context(STYLE):
        figure = new_figure(7.2, 0.34 * len(rows) + 1.4)
        axes = figure.subplots()
        for place, row in enumerate(rows):
            axes.errorbar(
                row["delta_m"],
                place + 0.12,
                xerr=row["delta_m_std"],
                fmt="o",
                color=BLUE,
                capsize=3,
                label="this run" if place == 0 else None,
            )
        known = [
            (PUBLISHED[name][-1], place - 0.12)
            for place, row in enumerate(rows)
            if (name := published_name(row["method"], PUBLISHED)) is not None
        ]
        if known:
            axes.plot(
                *zip(*known, strict=True),
                "D",
                color=GREY,
                label="published (110,831 molecules, 300 epochs)",
            )
        axes.set_yticks(range(len(rows)), [row["method"] for row in rows])
        axes.axvline(0, color=GREY, linewidth=1)
        # One method that fails would squeeze all others into a line.
        axes.set_xscale("symlog", linthresh=LINEAR)
        axes.set_xticks(TICKS, [str(tick) for tick in TICKS])
        axes.set(xlabel="Δm against single-task networks, % (left is better)")
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
        return [save(figure, folder / "delta_m.png")]
