"""Part ``solvers`` of the benchmark: time of everything between Gramian and weights.

Pin it to one core (``taskset -c 0``) for figures that repeat. Each cell is the median
over Gramians of the median call, jitted, in microseconds: once for random gradients and,
in brackets, for conflicting ones whose norms span 1e-3 to 1e3.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import mtl_jax
from experiments import records
from mtl_jax import solvers


def _unit_bounds(gram: jax.Array) -> Any:
    return solvers.dual_cone_weights(gram, jnp.eye(gram.shape[0], dtype=gram.dtype))


def _mean_bound(gram: jax.Array) -> Any:
    num_tasks = gram.shape[0]
    return solvers.dual_cone_weights(gram, jnp.full(num_tasks, 1 / num_tasks))


def _min_norm(solver: str) -> Callable[[jax.Array], Any]:
    return functools.partial(solvers.min_norm_point, solver=solver)


def _method(name: str) -> Callable[[jax.Array], Any]:
    def weights(gram: jax.Array) -> Any:
        weighting = mtl_jax.build_weighting(name, gram.shape[0])
        weights, state = weighting.update(mtl_jax.Statistics(gram), weighting.init())
        return weights, getattr(state, "fallbacks", jnp.zeros([], jnp.int32)) == 0

    return weights


SOLVERS: dict[str, Callable[[jax.Array], Any]] = {
    "min norm, closed form": _min_norm("closed_form"),
    "min norm, active set": _min_norm("active_set"),
    "min norm, jaxopt": _min_norm("jaxopt"),
    "min norm, Frank-Wolfe": _min_norm("frank_wolfe"),
    "CAGrad": functools.partial(solvers.cagrad_weights, c=0.4),
    "Nash": solvers.nash_weights,
    "dual cone": _mean_bound,
    "dual cone, T times (UPGrad)": _unit_bounds,
    "PCGrad": _method("pcgrad"),
    "IMTL-G": _method("imtl_g"),
    "Aligned-MTL": _method("aligned_mtl"),
}


def run(
    out: Path,
    *,
    tasks: tuple[int, ...] = (2, 3, 10, 40, 200),
    names: tuple[str, ...] = tuple(SOLVERS),
    gramians: int = 10,
    seconds: float = 1.0,
) -> Path:
    """Times every solver, prints the table and writes ``solvers.json``.

    Args:
        out: folder of the record.
        tasks: numbers of tasks ``T``.
        names: which of :data:`SOLVERS`.
        gramians: how many Gramians of each kind.
        seconds: time to spend per cell; at least five calls per Gramian are timed.
    """
    rows = {
        name: {f"T={t}": cell(SOLVERS[name], t, gramians, seconds) for t in tasks}
        for name in names
    }
    record = {**records.environment(), "gramians": gramians, "microseconds": rows}
    out.mkdir(parents=True, exist_ok=True)
    path = records.write_json(out / "solvers.json", record)
    Console(width=120).print(_table(rows))
    return path


def cell(
    solver: Callable[[jax.Array], Any], num_tasks: int, count: int, seconds: float
) -> dict[str, Any] | None:
    """Times and checks one solver at one ``T``; ``None`` where it does not apply."""
    function = jax.jit(lambda gram: solver(gram))
    easy, hard = (
        [jnp.asarray(gram) for gram in random_gramians(num_tasks, count, hard=hard)]
        for hard in (False, True)
    )
    begin = time.perf_counter()
    try:
        jax.block_until_ready(function(easy[0]))
    except ValueError:  # the closed form, for more than two tasks
        return None
    compile_s = time.perf_counter() - begin
    return {
        "easy": round(1e6 * _median(function, easy, seconds / 2), 1),
        "hard": round(1e6 * _median(function, hard, seconds / 2), 1),
        "compile_s": round(compile_s, 2),
        "not_ok": sum(not bool(function(gram)[1]) for gram in easy + hard),
    }


def random_gramians(num_tasks: int, count: int, *, hard: bool) -> list[np.ndarray]:
    """Gramians ``(T, T)``, float32: random gradients, or badly scaled conflicting ones."""
    rng = np.random.default_rng(num_tasks)
    results = []
    for _ in range(count):
        rows = rng.normal(size=(num_tasks, 4 * num_tasks))
        if hard:
            rows -= 0.7 * rows.mean(0)
            rows *= 10 ** rng.uniform(-3, 3, size=(num_tasks, 1))
        results.append((rows @ rows.T).astype(np.float32))
    return results


def _median(
    function: Callable[[jax.Array], Any], grams: list[jax.Array], seconds: float
) -> float:
    """Median over the Gramians of the median seconds of a call."""
    medians = []
    for gram in grams:
        jax.block_until_ready(function(gram))
        times: list[float] = []
        while len(times) < 5 or (
            sum(times) < seconds / len(grams) and len(times) < 200
        ):
            begin = time.perf_counter()
            jax.block_until_ready(function(gram))
            times.append(time.perf_counter() - begin)
        medians.append(statistics.median(times))
    return statistics.median(medians)


def _table(rows: dict[str, dict[str, Any]]) -> Table:
    columns = list(next(iter(rows.values())))
    table = Table(title="microseconds a call, random (conflicting and badly scaled)")
    table.add_column("solver")
    for column in [*columns, "compile s", "not ok"]:
        table.add_column(column, justify="right")
    for name, cells in rows.items():
        done = [cell for cell in cells.values() if cell]
        table.add_row(
            name,
            *(
                f"{c['easy']:.0f} ({c['hard']:.0f})" if c else "-"
                for c in cells.values()
            ),
            f"{max(c['compile_s'] for c in done):.1f}",
            str(sum(c["not_ok"] for c in done)),
        )
    return table
