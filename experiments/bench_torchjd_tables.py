"""Tables of the benchmark's part ``torchjd``."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def aggregation_table(family: str, cells: dict[str, Any]) -> Table:
    table = Table(
        title=f"{family} Jacobians: ms of weights / update, error of the update"
    )
    table.add_column("method")
    for column in cells:
        table.add_column(column, justify="right")
    columns = list(cells.values())
    for method in columns[0]:
        for name in columns[0][method]:
            if name == "float64":  # the reference, not timed
                continue
            texts = []
            for column in columns:
                cell, ours = column[method][name], column[method]["mtl_jax"]
                text = f"{cell['weights']:.3g} / {cell['update']:.3g}"
                if name != "mtl_jax":
                    ratio = cell["weights"] / ours["weights"]
                    text += f" (x{ratio:.3g})"
                error = f"  {cell['error']:.0e}" if "error" in cell else ""
                texts.append(text + error)
            table.add_row(f"{method}: {name}", *texts)
    return table


def step_table(steps: dict[str, Any]) -> Table:
    table = Table(title="whole step of the LeNet, ms (times ours)")
    table.add_column("method")
    for column in steps:
        table.add_column(column, justify="right")
    columns = list(steps.values())
    for method in columns[0]:
        for name in columns[0][method]:
            cells = []
            for column in columns:
                step, ours = (column[method][key]["step"] for key in (name, "mtl_jax"))
                cells.append(f"{step:.1f} ({step / ours:.2f})")
            table.add_row(f"{method}: {name}", *cells)
    return table
