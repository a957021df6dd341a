"""Tables of the study ``qm9``, with the published numbers beside ours."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.explore import Table
from experiments.tables import markdown as table_markdown
from experiments.tables import plus_minus
from mtl_jax import metrics

Record = dict[str, Any]
SINGLE = "single-task"
PUBLISHED_SINGLE = (
    *(0.0671, 0.1814, 60.576, 53.915, 0.5027, 4.539),
    *(58.838, 64.244, 63.852, 66.223, 0.07212),
)
"""Single-task errors in the code released with Nash-MTL, order and units of the set."""
# Errors, mean rank, Δm (arXiv:2202.01017, Table 2).
PUBLISHED: dict[str, tuple[float, ...]] = {
    "ls": (
        *(0.106, 0.325, 73.57, 89.67, 5.19, 14.06, 143.4, 144.2, 144.6, 140.3, 0.128),
        *(6.8, 177.6),
    ),
    "si": (
        *(0.309, 0.345, 149.8, 135.7, 1.00, 4.50, 55.3, 55.75, 55.82, 55.27, 0.112),
        *(4.0, 77.8),
    ),
    "rlw": (
        *(0.113, 0.340, 76.95, 92.76, 5.86, 15.46, 156.3, 157.1, 157.6, 153.0, 0.137),
        *(8.2, 203.8),
    ),
    "dwa": (
        *(0.107, 0.325, 74.06, 90.61, 5.09, 13.99, 142.3, 143.0, 143.4, 139.3, 0.125),
        *(6.4, 175.3),
    ),
    "uw": (
        *(0.386, 0.425, 166.2, 155.8, 1.06, 4.99, 66.4, 66.78, 66.80, 66.24, 0.122),
        *(5.3, 108.0),
    ),
    "mgda": (
        *(0.217, 0.368, 126.8, 104.6, 3.22, 5.69, 88.37, 89.4, 89.32, 88.01, 0.120),
        *(5.9, 120.5),
    ),
    "pcgrad": (
        *(0.106, 0.293, 75.85, 88.33, 3.94, 9.15, 116.36, 116.8, 117.2, 114.5, 0.110),
        *(5.0, 125.7),
    ),
    "cagrad": (
        *(0.118, 0.321, 83.51, 94.81, 3.21, 6.93, 113.99, 114.3, 114.5, 112.3, 0.116),
        *(5.7, 112.8),
    ),
    "imtl_g": (
        *(0.136, 0.287, 98.31, 93.96, 1.75, 5.69, 101.4, 102.4, 102.0, 100.1, 0.096),
        *(4.7, 77.2),
    ),
    "nash_mtl": (
        *(0.102, 0.248, 82.95, 81.89, 2.42, 5.38, 74.5, 75.02, 75.10, 74.16, 0.093),
        *(2.5, 62.0),
    ),
}
PUBLISHED_RATIOS = {
    "ls": 1.0,
    "mgda": 13.4,
    "pcgrad": 13.8,
    "cagrad": 12.7,
    "nash_mtl": 12.5,
    "nash_mtl(every_k=5)": 3.4,
    "nash_mtl(every_k=50)": 1.28,
}
"""Published minutes per epoch, as a ratio to equal weights (0.54)."""


def published_name(call: str, known: Any) -> str | None:
    """The published row that a call string stands for, options left out if need be."""
    options = ("every_k", "strategy")
    name = call.split("(")[0]
    plain = not any(option in call for option in options)
    return call if call in known else name if plain and name in known else None


def rows_of(runs: Sequence[Record], base: Sequence[float]) -> list[Record]:
    """One row per method: errors, their deviations, Δm and mean rank.

    Args:
        runs: records with ``method`` and ``test``.
        base: single-task test errors, by task.
    """
    grouped: dict[str, list[Record]] = {}
    for run in runs:
        grouped.setdefault(run["method"], []).append(run)
    rows = []
    for method, group in grouped.items():
        errors = np.array([run["test"] for run in group])
        deltas = [metrics.delta_m(run["test"], base, False) for run in group]
        many = len(group) > 1
        rows.append(
            {
                "method": method,
                "seeds": len(group),
                "errors": errors.mean(0).tolist(),
                "std": errors.std(0, ddof=1).tolist() if many else None,
                "delta_m": statistics.fmean(deltas),
                "delta_m_std": statistics.stdev(deltas) if many else None,
                "best_epoch": statistics.fmean(run["best_epoch"] for run in group),
                "seconds_per_epoch": statistics.median(
                    run["seconds_per_epoch"] for run in group
                ),
            }
        )
    if rows:
        ranks = metrics.mean_rank([row["errors"] for row in rows], False)
        for row, rank in zip(rows, ranks.tolist(), strict=True):
            row["mean_rank"] = rank
    return rows


def tables(summary: Record) -> list[Table]:
    """What is printed: errors with the published ones below each, step times, edges."""
    found = []
    if "rows" in summary:
        found.append(_errors(summary))
    if "cost" in summary:
        heads = ["method", "ms/step", "x ls", "published x"]
        body = [
            [
                row["name"],
                f"{row['ms']:.1f}",
                f"{row['ratio']:.2f}",
                _number(PUBLISHED_RATIOS.get(row["name"].replace("(c=0.4)", ""))),
            ]
            for row in summary["cost"]["rows"]
        ]
        found.append(Table("time of a step, as a ratio to equal weights", heads, body))
    if "edges" in summary:
        heads = ["edges", "forward and backward ms", "x fastest", "MB"]
        body = [
            [row["name"], f"{row['ms']:.1f}", f"{row['ratio']:.2f}", f"{row['mb']:.0f}"]
            for row in summary["edges"]["rows"]
        ]
        found.append(Table(summary["edges"]["title"], heads, body))
    return found


def _errors(summary: Record) -> Table:
    names = zip(summary["tasks"], summary["units"], strict=True)
    heads = ["method", *(f"{name} {unit}" for name, unit in names), "mean rank", "Δm %"]
    base = summary["base"]["test"]
    body = [[SINGLE, *map(_digits, base), "-", "0 (reference)"]]
    body.append(["  published", *map(_digits, PUBLISHED_SINGLE), "-", "0"])
    for row in summary["rows"]:
        delta = plus_minus(row["delta_m"], row["delta_m_std"], 1)
        ours = map(_digits, row["errors"])
        body.append([row["method"], *ours, f"{row['mean_rank']:.1f}", delta])
        name = published_name(row["method"], PUBLISHED)
        if name is not None:
            *errors, rank, theirs = PUBLISHED[name]
            body.append(["  published", *map(_digits, errors), f"{rank}", f"{theirs}"])
    title = (
        "mean absolute test errors, mean over seeds; Δm: mean ± standard deviation over "
        "seeds, against single-task networks; published: 110,831 molecules, 300 epochs"
    )
    if summary["config"]["unit_length"]:
        title += "; --unit-length: gradients of the shared parameters have norm 1"
    return Table(title, heads, body)


def markdown(table: Table) -> str:
    """A table in Markdown under its title."""
    text = table_markdown(table.heads, table.body).replace("`  published`", "published")
    return f"{table.title}\n\n{text}"


def _digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
