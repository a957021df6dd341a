"""Step time and peak memory of every strategy: ``bench --part strategies``."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.table import Table

import mtl_jax
from experiments import records
from experiments.bench_networks import NETWORKS, BenchProblem
from experiments.problem import is_head
from experiments.programs import Program, compile_program, interleaved, seconds_of

STRATEGIES = ("vmap", "unroll", "map", "layerwise", "gramian", "features")
EVERY = 50
"""Steps between two computations of the weights in the row ``every_k``."""
ONCE = 1.0
"""A program whose call takes more seconds is timed once, after one call to warm up."""
LIMIT = 30.0
"""A program that by its time at fewer tasks would take more seconds is not run."""
COMPILE_LIMIT = 150.0
"""A program that by its time at fewer tasks would compile for longer is left out."""

Row = dict[str, Any]


def run(
    out: Path,
    *,
    networks: Iterable[str] = tuple(NETWORKS),
    tasks: tuple[int, ...] = (2, 10, 40),
    method: str = "nash_mtl",
    strategies: tuple[str, ...] = STRATEGIES,
    repeats: int = 10,
) -> Path:
    """Measures, prints a table per network and writes ``strategies.json``.

    Args:
        out: folder of the record; networks measured before stay in it.
        networks: names from ``NETWORKS``.
        tasks: numbers of tasks ``T``, ascending.
        method: call string of a weighting that needs the Gramian.
        strategies: of :func:`mtl_jax.value_and_combined_grad`.
        repeats: timed rounds.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "strategies.json"
    measured = records.read_json(path)["networks"] if path.exists() else {}
    for network in networks:
        measured[network] = measure(network, tasks, method, strategies, repeats)
        Console().print(_table(network, tasks, measured[network]["rows"]))
        record = {"method": method, "tasks": list(tasks), "networks": measured}
        records.write_json(path, record)
    return path


def measure(
    network: str,
    tasks: tuple[int, ...],
    method: str,
    strategies: tuple[str, ...],
    repeats: int,
) -> dict[str, Any]:
    """All programs on one network: rows by name, one cell per number of tasks."""
    rows: dict[str, dict[str, Row]] = {}
    slow: dict[str, float] = {}
    compiling: dict[str, float] = {}
    for num_tasks in tasks:
        problem = NETWORKS[network](num_tasks)
        programs: dict[str, Program] = {}
        for name, build in _builders(problem, num_tasks, method, strategies).items():
            long = compiling.get(name, 0.0) * num_tasks > COMPILE_LIMIT
            if long and name != "plain":
                continue
            built = build()
            programs |= built
            seconds = max(program.compile_seconds for program in built.values())
            compiling[name] = seconds / num_tasks
        cells = {name: _cell(program) for name, program in programs.items()}
        calls = {}
        for name, program in programs.items():
            if slow.get(name, 0.0) * num_tasks > LIMIT:
                continue
            seconds_of(program.call)
            seconds = seconds_of(program.call)
            slow[name] = seconds / num_tasks
            cells[name]["ms"] = 1e3 * seconds
            if seconds <= ONCE:
                calls[name] = program.call
        for name, seconds in interleaved(calls, repeats).items():
            cells[name]["ms"] = 1e3 * seconds
        for name, cell in _finished(cells).items():
            rows.setdefault(name, {})[str(num_tasks)] = cell
    # glibc gives blocks of more than 32 MB back after every step unless told not to.
    allocator = {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")}
    notes = {**records.environment(), "allocator": allocator}
    return {**notes, "repeats": repeats, "rows": rows}


def _builders(
    problem: BenchProblem, num_tasks: int, method: str, strategies: tuple[str, ...]
) -> dict[str, Callable[[], dict[str, Program]]]:
    """Compile steps: plain on the summed losses, the strategies, every k steps."""
    optimizer = optax.sgd(1e-3)
    data = (problem.inputs, problem.labels)

    def apply(params: Any, grads: Any) -> Any:
        updates, _ = optimizer.update(grads, optimizer.init(params))
        return optax.apply_updates(params, updates)

    def plain(params: Any, model_state: Any, inputs: Any, labels: Any) -> Any:
        def total(params: Any) -> tuple[jax.Array, Any]:
            losses, state = problem.losses_fn(params, model_state, inputs, labels)
            return losses.sum(), (losses, state)

        (_, rest), grads = jax.value_and_grad(total, has_aux=True)(params)
        return apply(params, grads), rest

    def step_of(**options: Any) -> tuple[Callable[..., Any], Any]:
        weighting = mtl_jax.build_weighting(method, num_tasks)
        source = mtl_jax.value_and_combined_grad(
            problem.losses_fn, weighting, has_aux=True, heads=is_head, **options
        )

        def step(state: Any, params: Any, *rest: Any) -> Any:
            value, grads, state = source.update(state, params, *rest)
            return apply(params, grads), value, state

        return step, source.init(problem.params)

    args = (problem.params, problem.model_state, *data)

    def build(strategy: str) -> dict[str, Program]:
        if strategy == "plain":
            return {strategy: compile_program(plain, *args)}
        step, state = step_of(strategy=strategy)
        return {strategy: compile_program(step, state, *args)}

    def build_every() -> dict[str, Program]:
        step, due = step_of(every_k=EVERY)
        refresh = compile_program(step, due, *args)
        kept = due._replace(age=jnp.ones_like(due.age))
        # The same compiled program on both states: which branch runs is decided inside.
        compiled = refresh.call.func  # type: ignore[attr-defined]
        keep = functools.partial(compiled, kept, *args)
        return {"refresh": refresh, "keep": refresh._replace(call=keep)}

    builders = {n: functools.partial(build, n) for n in ("plain", *strategies)}
    return {**builders, "every": build_every}


def _cell(program: Program) -> Row:
    return {"mb": program.megabytes, "compile_s": program.compile_seconds}


def _finished(cells: dict[str, Row]) -> dict[str, Row]:
    """Adds the average over ``EVERY`` steps and the ratios; rounds."""
    if "refresh" in cells:
        refresh, keep = cells.pop("refresh"), cells.pop("keep")
        every = dict(keep)
        if "ms" in refresh:
            every["keep_ms"], every["refresh_ms"] = keep["ms"], refresh["ms"]
            every["ms"] = (refresh["ms"] + (EVERY - 1) * keep["ms"]) / EVERY
        cells[f"every_k={EVERY}"] = every
    plain = cells["plain"]
    for cell in cells.values():
        cell["mb_ratio"] = cell["mb"] / plain["mb"]
        if "ms" in cell:
            cell["ratio"] = cell["ms"] / plain["ms"]
    return {name: _rounded(cell) for name, cell in cells.items()}


def _rounded(cell: Row) -> Row:
    return {key: float(f"{value:.4g}") for key, value in cell.items()}


def _table(
    network: str, tasks: tuple[int, ...], rows: dict[str, dict[str, Row]]
) -> Table:
    title = f"{network}: ms (ratio to plain); temporaries and results, MB (ratio)"
    table = Table(title=title)
    table.add_column("strategy")
    for num_tasks in tasks:
        table.add_column(f"T = {num_tasks}", justify="right")
    for name, row in rows.items():
        cells = []
        for num_tasks in tasks:
            cell = row.get(str(num_tasks))
            if cell is None:
                cells.append("-")
                continue
            time = f"{cell['ms']:.1f} ({cell['ratio']:.2f})" if "ms" in cell else "-"
            cells.append(f"{time}; {cell['mb']:.0f} ({cell['mb_ratio']:.2f})")
        table.add_row(name, *cells)
    return table
