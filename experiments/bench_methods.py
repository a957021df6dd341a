"""Step time of every method as a ratio to a plain step: ``bench --part methods``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
from rich.console import Console
from rich.table import Table

import mtl_jax
from experiments import records
from experiments.bench_networks import lenet
from experiments.bench_torch import plain_step_ms
from experiments.problem import is_head
from experiments.programs import Program, compile_program, interleaved

METHODS = (
    "ls",
    "mgda",
    "pcgrad",
    "cagrad",
    "imtl_g",
    "nash_mtl",
    "upgrad",
    "aligned_mtl",
)


def run(
    out: Path,
    *,
    tasks: tuple[int, ...] = (2, 10, 40),
    methods: tuple[str, ...] = METHODS,
    batch_size: int = 256,
    repeats: int = 15,
    torch: bool = False,
) -> Path:
    """Times all programs in turn, prints the table and writes ``methods.json``.

    Args:
        out: folder of the record.
        tasks: numbers of tasks ``T``.
        methods: call strings of weightings.
        batch_size: images per step.
        repeats: timed rounds.
        torch: whether to time PyTorch's plain step, too.
    """
    rows: dict[str, dict[str, float]] = {}
    for num_tasks in tasks:
        programs = _programs(num_tasks, methods, batch_size)
        calls = {name: program.call for name, program in programs.items()}
        for name, seconds in interleaved(calls, repeats).items():
            row = rows.setdefault(name, {})
            row[f"ms_{num_tasks}"] = round(1e3 * seconds, 2)
            row[f"compile_s_{num_tasks}"] = round(programs[name].compile_seconds, 2)
    if torch:
        rows["plain, PyTorch"] = {
            f"ms_{t}": round(plain_step_ms(t, batch_size, repeats), 2) for t in tasks
        }
    for row in rows.values():
        for num_tasks in tasks:
            plain = rows["plain"][f"ms_{num_tasks}"]
            row[f"ratio_{num_tasks}"] = round(row[f"ms_{num_tasks}"] / plain, 2)
    record = {
        **records.environment(),
        "batch_size": batch_size,
        "repeats": repeats,
        "steps": rows,
    }
    Console().print(_table(tasks, batch_size, rows))
    return records.write_json(out / "methods.json", record)


def _programs(
    num_tasks: int, methods: tuple[str, ...], batch_size: int
) -> dict[str, Program]:
    """Compiled steps by name, the plain summed-loss step first."""
    problem = lenet(num_tasks, batch_size)
    optimizer = optax.sgd(1e-3)

    def losses_of(params: Any, images: Any, labels: Any) -> jax.Array:
        return problem.losses_fn(params, problem.model_state, images, labels)[0]

    def plain(params: Any, images: Any, labels: Any) -> Any:
        def total(params: Any) -> jax.Array:
            return losses_of(params, images, labels).sum()

        loss, grads = jax.value_and_grad(total)(params)
        updates, _ = optimizer.update(grads, optimizer.init(params))
        return optax.apply_updates(params, updates), loss

    def method_step(call: str) -> Callable[..., Any]:
        weighting = mtl_jax.build_weighting(call, num_tasks)
        tx = optax.chain(mtl_jax.aggregate(weighting, heads=is_head), optimizer)
        source = mtl_jax.value_and_task_grads(losses_of, heads=is_head)

        def step(params: Any, images: Any, labels: Any) -> Any:
            losses, grads = source(params, images, labels)
            updates, _ = tx.update(grads, tx.init(params), params, losses=losses)
            return optax.apply_updates(params, updates), losses

        return step

    steps = {"plain": plain} | {call: method_step(call) for call in methods}
    args = (problem.params, problem.inputs, problem.labels)
    return {name: compile_program(step, *args) for name, step in steps.items()}


def _table(
    tasks: tuple[int, ...], batch_size: int, rows: dict[str, dict[str, float]]
) -> Table:
    table = Table(title=f"step time, ms (ratio to plain), batch {batch_size}")
    table.add_column("method")
    for num_tasks in tasks:
        table.add_column(f"T = {num_tasks}", justify="right")
    for name, row in rows.items():
        cells = [f"{row[f'ms_{t}']:.1f} ({row[f'ratio_{t}']:.2f})" for t in tasks]
        table.add_row(name, *cells)
    return table
