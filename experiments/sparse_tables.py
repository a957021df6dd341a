"""Tables of the study ``sparse``, from its record alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from experiments.explore import Table
from experiments.tables import plus_minus

Record = dict[str, Any]
PUBLISHED: dict[tuple[str, str, str], str] = {
    ("multi_mnist", "hps", "mgda"): "0; 1; 1 | 97.26 | 95.90 | 4",
    ("multi_mnist", "hps", "dense"): "0; 1; 1 | 96.74 | 95.53 | 4",
    ("multi_mnist", "hps", "sparse"): "11.8; 1.13; 1 | 96.78 | 96.14 | 3",
    ("multi_mnist", "mdmtn", "mgda"): "0; 1; 1 | 96.88 | 96.63 | 6",
    ("multi_mnist", "mdmtn", "dense"): "0; 1; 1 | 97.10 | 96.39 | 9",
    ("multi_mnist", "mdmtn", "sparse"): "57.3; 2.7; 1.15 | 97.29 | 96.40 | 7",
    ("multi_mnist", "kdmtl", "kdmtl"): "| 96.58 | 95.10 | 27",
    ("multi_mnist", "mtan", "mtan"): "| 96.51 | 93.46 | 29",
    ("multi_mnist", "stl", "stl"): "| 97.23 | 95.90 | 19",
    ("cifar10_mnist", "hps", "mgda"): "0; 1; 1 | 45.75 | 96.78 | 7",
    ("cifar10_mnist", "hps", "dense"): "0; 1; 1 | 54.00 | 95.14 | 3",
    ("cifar10_mnist", "hps", "sparse"): "13.0; 1.25; 1.10 | 56.64 | 94.81 | 2",
    ("cifar10_mnist", "mdmtn", "mgda"): "0; 1; 1 | 58.17 | 97.04 | 15",
    ("cifar10_mnist", "mdmtn", "dense"): "0; 1; 1 | 59.25 | 95.19 | 12",
    ("cifar10_mnist", "mdmtn", "sparse"): "29.3; 1.94; 1.37 | 61.05 | 94.26 | 10",
    ("cifar10_mnist", "kdmtl", "kdmtl"): "| 54.00 | 94.35 | 19",
    ("cifar10_mnist", "mtan", "mtan"): "| 45.30 | 93.22 | 25",
    ("cifar10_mnist", "stl", "stl"): "| 58.11 | 97.07 | 10",
}
"""Table I of arXiv:2308.12243: SR; CR; PS, both accuracies, minutes."""


def tables(summary: Record) -> list[Table]:
    """What people read of a run."""
    found = []
    if "table" in summary:
        found.append(_table(summary))
        found += _compressed(summary)
    for kind in ("front2d", "front3d"):
        found += [_front(summary, kind, front) for front in summary.get(kind, [])]
    if "conflict" in summary:
        found.append(_conflict(summary["conflict"]))
    if "similarity" in summary:
        found.append(_similarity(summary["similarity"]))
    return found


def grouped(rows: Sequence[Record]) -> list[list[Record]]:
    """The rows of one network and method, over the seeds, together."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for row in rows:
        groups.setdefault((row["architecture"], row["method"]), []).append(row)
    return list(groups.values())


def _table(summary: Record) -> Table:
    tasks = summary["tasks"]
    heads = ["network, method", "SR; CR; PS (rows)", "SR (parameters)"]
    heads += [f"{task} %" for task in tasks]
    heads += ["mean %", "minutes", "published: SR; CR; PS | % | % | minutes"]
    body = []
    for group in grouped(summary["table"]):
        first = group[0]
        key = first["architecture"], first["method"]
        name = key[0] if key[0] == key[1] else ", ".join(key)
        rows, entries = ([each["measures"][by] for each in group] for by in MEASURED)
        scores = [[100 * s for s in each["test"]] for each in group]
        columns = list(zip(*scores, strict=True))
        columns.append(tuple(statistics.fmean(each) for each in scores))
        body.append(
            [
                name,
                f"{_mean(rows, 'SR'):.1f}; {_mean(rows, 'CR'):.2f}; "
                f"{_mean(rows, 'PS'):.2f}",
                f"{_mean(entries, 'SR'):.1f}",
                *(_spread(column) for column in columns),
                f"{_mean(group, 'seconds') / 60:.1f}",
                PUBLISHED.get((summary["images"], *key), ""),
            ]
        )
    title = (
        f"Test accuracy, {len(summary['config']['seeds'])} seed(s), "
        f"{summary['examples'][0]:,} training pictures, chosen by validation"
    )
    return Table(title, heads, body)


MEASURED = ("rows", "parameters")


def _mean(entries: Sequence[Record], key: str) -> float:
    return statistics.fmean(entry[key] for entry in entries)


def _spread(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return plus_minus(statistics.fmean(values), spread, 2)


def _compressed(summary: Record) -> list[Table]:
    rows = [row for row in summary["table"] if "compressed" in row]
    if not rows:
        return []
    heads = ["network", "seed", "bytes", "compressed", "times smaller"]
    heads += ["equal predictions", "logits differ by", "ms", "compressed"]
    body = []
    for row in rows:
        found = row["compressed"]
        body.append(
            [
                row["architecture"],
                str(row["seed"]),
                f"{found['bytes']:,}",
                f"{found['compressed_bytes']:,}",
                f"{found['ratio']:.2f}",
                f"{100 * found['agreement']:.2f} %",
                f"{found['largest_difference']:.1e}",
                f"{found['ms']:.1f}",
                f"{found['compressed_ms']:.1f}",
            ]
        )
    title = "Sparse networks saved without zero rows, tied rows once (256 pictures)"
    return [Table(title, heads, body)]


def _front(summary: Record, kind: str, front: Record) -> Table:
    tasks = summary["tasks"]
    heads = ["vector", "front", "SR %"]
    heads += [f"{task} loss" for task in tasks] + [f"{task} test %" for task in tasks]
    heads += ["validation, mean %", ""]
    body = []
    for place, point in enumerate(front["points"]):
        mean = statistics.fmean(point["validation"])
        body.append(
            [
                ", ".join(f"{value:.4g}" for value in point["vector"]),
                "*" if point["on_front"] else "",
                f"{point['measures']['rows']['SR']:.1f}",
                *(f"{loss:.4f}" for loss in point["train_losses"]),
                *(f"{100 * score:.2f}" for score in point["test"]),
                f"{100 * mean:.2f}",
                "chosen" if place == front["best"] else "",
            ]
        )
    name = {"front2d": "2-D front", "front3d": "3-D front"}[kind]
    on_front = sum(point["on_front"] for point in front["points"])
    title = (
        f"{name}, {front['architecture']}: {on_front} of {len(body)} not dominated in "
        "training losses" + (" and sparsity loss" if kind == "front3d" else "")
    )
    return Table(title, heads, body)


def _conflict(part: Record) -> Table:
    heads = ["strength", "SR %", "cosine", "late", "conflicts %", "late"]
    heads += ["width of test losses", "of accuracies %", "best mean %"]
    body = []
    for point in part["points"]:
        body.append(
            [
                f"{point['strength']:g}",
                f"{point['measures']['rows']['SR']:.1f}",
                f"{point['cosine']:.3f}",
                f"{point['cosine_late']:.3f}",
                f"{100 * point['conflicts']:.1f}",
                f"{100 * point['conflicts_late']:.1f}",
                f"{point['width']:.4f}",
                f"{100 * point['width_accuracy']:.2f}",
                f"{100 * point['best_mean_accuracy']:.2f}",
            ]
        )
    return Table(f"Conflict against sparsity, {part['architecture']}", heads, body)


def _similarity(parts: Sequence[Record]) -> Table:
    heads = ["network", "layer", "rows", "live", "clusters", "within", "between"]
    body = []
    for part in parts:
        for layer, found in part["layers"].items():
            means = [found[key] for key in ("within", "between")]
            body.append(
                [
                    part["architecture"],
                    layer,
                    *(str(found[key]) for key in ("rows", "live", "clusters")),
                    *("-" if mean is None else f"{mean:.2f}" for mean in means),
                ]
            )
    return Table("Mean similarity of live rows before tying", heads, body)
