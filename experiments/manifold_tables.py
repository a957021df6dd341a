"""Tables of the study ``manifold``, from its record alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.explore import Table
from experiments.tables import plus_minus

Record = dict[str, Any]


def rows_of(runs: Sequence[Record], num_tasks: int) -> list[Record]:
    """One row per family or baseline: means and deviations over the seeds.

    Args:
        runs: records of the parts.
        num_tasks: ``T``.

    Returns:
        Rows in order of appearance; deviations are ``None`` for one seed.
    """
    grouped: dict[str, list[Record]] = {}
    for run in with_own_statistics(runs):
        grouped.setdefault(run["name"], []).append(run)
    rows = []
    for name, group in grouped.items():
        best = [np.max(run["scores"], axis=0).tolist() for run in group]
        row: Record = {
            "name": name,
            "seeds": len(group),
            "whole_front": group[0]["whole_front"],
            "parameters": group[0]["parameters"],
            "pull_backs": group[0]["spent"]["pull_backs"],
            "seconds": statistics.median(run["spent"]["seconds"] for run in group),
        }
        for key in ("hypervolume_scores", "hypervolume_losses"):
            row[key] = _summary([run[key] for run in group])
        row["ends"] = [
            _summary([run["ends"][t] for run in group]) for t in range(num_tasks)
        ]
        row["best"] = [_summary([each[t] for each in best]) for t in range(num_tasks)]
        if "monotonicity" in group[0]:
            row["monotonicity"] = _summary(
                [statistics.fmean(run["monotonicity"]) for run in group]
            )
        rows.append(row)
    return rows


def with_own_statistics(runs: Sequence[Record]) -> list[Record]:
    """The runs, and behind each the same with batch statistics of every point's own."""
    found = []
    for run in runs:
        found.append(run)
        if "own_statistics" in run:
            name = f"{run['name']}, own statistics"
            found.append({**run, **run["own_statistics"], "name": name})
    return found


def _summary(values: Sequence[float]) -> list[float | None]:
    """Mean and standard deviation over the seeds."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return [statistics.fmean(values), spread]


def tables(summary: Record) -> list[Table]:
    """What people read of a run on networks."""
    found = []
    if "rows" in summary:
        found.append(_fronts(summary))
    if "cost" in summary:
        found.append(_cost(summary["cost"]))
    return found


def _fronts(summary: Record) -> Table:
    tasks = summary["tasks"]
    heads = [
        "",
        *(f"{name}: end" for name in tasks),
        *(f"{name}: best" for name in tasks),
    ]
    heads += ["HV scores", "HV losses", "order", "parameters", "pull-backs", "s"]
    body = []
    for row in summary["rows"]:
        percent = [_cell(each, 2, 100) for each in (*row["ends"], *row["best"])]
        order = row.get("monotonicity")
        body.append(
            [
                row["name"],
                *percent,
                _cell(row["hypervolume_scores"], 4),
                _cell(row["hypervolume_losses"], 4),
                "" if order is None else _cell(order, 2),
                f"{row['parameters']:,}",
                f"{row['pull_backs']:,}",
                f"{row['seconds']:.0f}",
            ]
        )
    seeds = max(row["seeds"] for row in summary["rows"])
    title = (
        f"Test scores in percent after the last step, {seeds} seed(s), mean ± deviation"
    )
    return Table(title, heads, body)


def _cell(summary: Sequence[Any], digits: int, factor: float = 1) -> str:
    mean, spread = summary
    return plus_minus(
        factor * mean, None if spread is None else factor * spread, digits
    )


def _cost(part: Record) -> Table:
    heads = ["", "ms", "ratio", "to what"]
    body = [
        [row["name"], f"{row['ms']:.2f}", f"{row['ratio']:.2f}", row["to"]]
        for row in part["rows"]
    ]
    return Table("Cost, interleaved calls, medians", heads, body)
