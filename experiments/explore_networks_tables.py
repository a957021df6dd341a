"""Tables of the networks of the study ``explore``, from their record alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.explore import Table

Record = dict[str, Any]


def tables(summary: Record) -> list[Table]:
    """What people read of a run."""
    makers = {
        "trace": lambda part: [_traces(summary, part), _coverage(part)],
        "front": lambda part: [_front(part)],
        "necessity": lambda part: [_necessity(summary, part)],
        "efficiency": lambda parts: [_efficiency(part) for part in parts],
        "ablation": lambda part: [_ablation(part)],
        "solver": lambda part: [_solver(part)],
    }
    found = [_starts(summary)]
    for name, make in makers.items():
        if name in summary:
            found += make(summary[name])
    return found


def _starts(summary: Record) -> Table:
    heads = ["start", "weights", "test losses", "test errors", "gradients", "s"]
    body = [
        [
            str(number),
            _numbers(entry["weights"], 3),
            _numbers(entry["test_losses"], 4),
            _numbers(entry["test_errors"], 2),
            f"{entry['spent']['gradients']:,}",
            f"{entry['spent']['seconds']:.0f}",
        ]
        for number, entry in enumerate(summary["starts"])
    ]
    title = f"Weighted-sum starts; tasks: {', '.join(summary['tasks'])}"
    return Table(title, heads, body)


def _traces(summary: Record, part: Record) -> Table:
    first = summary["tasks"]
    heads = ["start", "falls", "test losses", "after 1 step", "at the end"]
    heads += ["test rate", "train rate", "α rate", "residual", "cost", "s"]
    body = []
    for number, (entry, exchange) in enumerate(
        zip(part["starts"], part["exchange"], strict=True)
    ):
        rates = {row["objective"]: row for row in exchange[0]}
        lanes = len(entry["directions"])
        for each in entry["directions"]:
            beta = np.array(each["beta"])
            unit = beta.sum() == 1 and beta.max() == 1
            row = rates[int(beta.argmax()) + 1] if unit else {}
            name = first[int(beta.argmax())] if unit else _numbers(beta, 0)
            losses = each["test_losses"]
            body.append(
                [
                    str(number),
                    name,
                    _numbers(losses[0], 4),
                    _numbers(losses[1], 4),
                    _numbers(losses[-1], 4),
                    _rate(row.get("test_rate"), unit),
                    _rate(row.get("probe_rate"), unit),
                    _rate(row.get("expected_rate"), "expected_rate" in row),
                    f"{np.median(each['residuals']):.3f}",
                    f"{entry['spent']['equivalents'] / lanes:,.0f}",
                    f"{entry['spent']['seconds'] / lanes:.0f}",
                ]
            )
    title = (
        "Traces; rate: fall over what the others paid in the first step; cost in "
        "gradient-equivalents"
    )
    return Table(title, heads, body)


def _rate(rate: float | None, known: bool) -> str:
    if not known:
        return ""
    if rate is None:
        return "nothing paid"
    return f"{rate:.2f}" if rate > 0 else "rose"


def _coverage(part: Record) -> Table:
    heads = ["steps", "measure", "hypervolume: starts", "with traces", "not dominated"]
    heads += ["starts among them"]
    body = [
        [
            str(row["steps"]),
            name.replace("_", " "),
            f"{row[name]['hypervolume_starts']:.5g}",
            f"{row[name]['hypervolume']:.5g}",
            row[name]["points_not_dominated"],
            row[name]["starts_not_dominated"],
        ]
        for row in part["coverage"]
        for name in ("test_losses", "test_errors", "probe_losses")
    ]
    return Table("What the traces add to the starts", heads, body)


def _front(part: Record) -> Table:
    heads = ["traced points", "grid points", "kept", "pieces kept"]
    heads += ["hypervolume: points", "continuous"]
    row = [
        str(part["traced_points"]),
        str(part["grid_points"]),
        str(part["kept_points"]),
        str(part["kept_simplices"]),
        f"{part['hypervolume_points']:.6g}",
        f"{part['hypervolume_continuous']:.6g}",
    ]
    return Table("Continuous front (training probe)", heads, [row])


def _necessity(summary: Record, part: Record) -> Table:
    heads = ["line", *(f"{task}: largest fall, paid" for task in summary["tasks"])]
    heads += ["kept", "hypervolume gained"]
    before = part["hypervolume_start"]
    body = [
        [
            row["direction"],
            *(f"{best['fall']:.5f}, {best['paid']:.5f}" for best in row["best"]),
            row["kept"],
            f"{100 * (row['hypervolume'] - before) / before:.2f} %",
        ]
        for row in part["lines"]
    ]
    start = _numbers(part["lines"][0]["probe_losses"][0], 4)
    title = (
        f"Lines up to length {part['lengths'][-1]:g} from start {part['start']}, whose "
        f"training losses are {start}"
    )
    return Table(title, heads, body)


def _efficiency(part: Record) -> Table:
    heads = ["steps each way", "gradient-equivalents"]
    for way in part["ways"]:
        heads += [f"{way}: losses", "errors", "s"]
    start = part["start"]
    first = [
        f"{start[f'hypervolume_test_{name}']:.5g}" for name in ("losses", "errors")
    ]
    body = [["0", "0", *[*first, "0"] * len(part["ways"])]]
    for row in part["rows"]:
        line = [str(row["steps"]), f"{row['equivalents']:,.0f}"]
        for way in part["ways"]:
            line += [f"{row[way][f'test_{name}']:.5g}" for name in ("losses", "errors")]
            line.append(f"{row[way]['seconds']:.0f}")
        body.append(line)
    title = f"Hypervolume around start {part['start_weights']} against cost (test set)"
    return Table(title, heads, body)


def _ablation(part: Record) -> Table:
    heads = ["MINRES iterations", "residual", "cosine to the last", "Δ loss (train)"]
    heads += ["gained : paid (train)", "(test)", "α·Δ", "equivalents", "s"]
    body = [
        [
            str(row["iterations"]),
            f"{row['residual']:.2e}",
            f"{row['cosine_to_last']:.4f}",
            _numbers(row["probe_change"], 5),
            _rate(row["probe_rate"], True),
            _rate(row["test_rate"], True),
            f"{row['excess']:.1e}",
            f"{row['equivalents']:,.0f}",
            f"{row['seconds']:.2f}",
        ]
        for row in part["rows"]
    ]
    return Table(
        f"One step after so many iterations, start {part['start']}", heads, body
    )


def _solver(part: Record) -> Table:
    heads = ["way", "s per step", "x device", "products", "MB", "cosine to device"]
    body = [
        [
            part["ways"][name],
            f"{row['seconds']:.3g}",
            f"{row['times_device']:.2f}",
            str(row["products"]),
            f"{row['megabytes']:.0f}",
            f"{row.get('cosine_to_device', 1.0):.4f}",
        ]
        for name, row in part["rows"].items()
    ]
    return Table("One expansion step: device against host", heads, body)


def _numbers(values: Sequence[float] | np.ndarray, digits: int) -> str:
    return " ".join(f"{value:.{digits}f}" for value in values)
