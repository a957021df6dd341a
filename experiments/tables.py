"""Tables of a comparison: on the terminal, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mtl_jax import metrics

SINGLE = "single-task"


def rows_of(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per method from the runs' summaries, single-task networks first.

    Args:
        runs: contents of ``summary.json``, and ``plain_ms_per_step``, the time of a plain
            step on the sum of the losses; single-task ones are joined by task.

    Returns:
        Rows in order of appearance: ``method``, ``accuracy``, ``std`` (percent, by
        task), ``delta_m``, ``delta_m_std``, ``mean_rank``, ``ms_per_step``, ``ratio``,
        ``validation``. Deviations are over seeds, ``None`` for a single one.
    """
    grouped: dict[str, list[dict[str, Any]]] = {}
    for run in _joined(runs):
        grouped.setdefault(run["method"], []).append(run)
    base = _mean_by_task(grouped[SINGLE], "test")
    rows = []
    for method, group in grouped.items():
        deltas = [metrics.delta_m(run["test"], base, True) for run in group]
        by_task = list(zip(*(run["test"] for run in group), strict=True))
        times = [run["ms_per_step"] for run in group]
        ratios = [run["ms_per_step"] / run["plain_ms_per_step"] for run in group]
        rows.append(
            {
                "method": method,
                "seeds": len(group),
                "accuracy": [100 * statistics.fmean(scores) for scores in by_task],
                "std": [_std([100 * score for score in scores]) for scores in by_task],
                "delta_m": statistics.fmean(deltas),
                "delta_m_std": _std(deltas),
                "mean_rank": None,
                "ms_per_step": statistics.median(times),
                "ratio": statistics.median(ratios),
                "validation": statistics.fmean(_mean_by_task(group, "validation")),
            }
        )
    ranked = [row for row in rows if row["method"] != SINGLE]
    if ranked:
        ranks = metrics.mean_rank([row["accuracy"] for row in ranked], True)
        for row, rank in zip(ranked, ranks.tolist(), strict=True):
            row["mean_rank"] = rank
    return rows


def _joined(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs, with the single-task networks of one seed as one run of all tasks."""
    by_seed: dict[int, list[dict[str, Any]]] = {}
    for run in runs:
        if run["method"] == SINGLE:
            by_seed.setdefault(run["seed"], []).append(run)
    single = [
        {
            "method": SINGLE,
            "seed": seed,
            "test": [score for run in group for score in run["test"]],
            "validation": [score for run in group for score in run["validation"]],
            "ms_per_step": sum(run["ms_per_step"] for run in group),
            "plain_ms_per_step": statistics.fmean(
                run["plain_ms_per_step"] for run in group
            ),
        }
        for seed, group in by_seed.items()
    ]
    return single + [run for run in runs if run["method"] != SINGLE]


def _mean_by_task(group: list[dict[str, Any]], name: str) -> list[float]:
    return [
        statistics.fmean(scores)
        for scores in zip(*(run[name] for run in group), strict=True)
    ]


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def cells(
    rows: Sequence[dict[str, Any]], task_names: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Heads and rounded cells of the table that people read."""
    heads = ["method", *(f"{name} %" for name in task_names)]
    heads += ["Δm %", "mean rank", "ms/step", "x plain"]
    body = []
    for row in rows:
        scores = [
            plus_minus(mean, std, 2)
            for mean, std in zip(row["accuracy"], row["std"], strict=True)
        ]
        single = row["method"] == SINGLE
        rank = "-" if row["mean_rank"] is None else f"{row['mean_rank']:.2f}"
        delta = (
            "0 (reference)"
            if single
            else plus_minus(row["delta_m"], row["delta_m_std"], 2)
        )
        times = [f"{row['ms_per_step']:.1f}", f"{row['ratio']:.2f}"]
        body.append([row["method"], *scores, delta, rank, *times])
    return heads, body


def plus_minus(mean: float, std: float | None, digits: int) -> str:
    text = f"{mean:.{digits}f}"
    return text if std is None else f"{text} ± {std:.{digits}f}"


def show(heads: list[str], body: list[list[str]], title: str) -> None:
    """Prints the table on stdout: folded to the terminal's width, else as wide as it is."""
    table = Table(title=title, title_justify="left")
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i == 0 else "right", overflow="fold")
    for row in body:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        width = Console(width=10_000).measure(table).maximum
        console = Console(width=max(width, len(title)))
    console.print(table)


def markdown(heads: list[str], body: list[list[str]]) -> str:
    """The table in Markdown."""
    rule = [":--", *["--:"] * (len(heads) - 1)]
    named = [[f"`{row[0]}`", *row[1:]] for row in body]
    return "".join(f"| {' | '.join(row)} |\n" for row in [heads, rule, *named])


def csv_text(rows: Sequence[dict[str, Any]], task_names: Sequence[str]) -> str:
    """The table in CSV, not rounded; one column per number."""
    flat = [
        {
            "method": row["method"],
            "seeds": row["seeds"],
            **{
                f"accuracy_{t}": a
                for t, a in zip(task_names, row["accuracy"], strict=True)
            },
            **{f"std_{t}": s for t, s in zip(task_names, row["std"], strict=True)},
            **{
                name: row[name]
                for name in (
                    "delta_m",
                    "delta_m_std",
                    "mean_rank",
                    "ms_per_step",
                    "ratio",
                )
            },
        }
        for row in rows
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()
