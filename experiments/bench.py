"""Step time of every method as a ratio to a plain step: ``python -m experiments bench``."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
from rich.console import Console
from rich.table import Table

import mtl_jax
from experiments import records
from experiments.bench_torch import plain_step_ms
from experiments.problem import is_head
from mtl_jax.models import LeNet, cross_entropy


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """Times one training step of LeNet with T heads on random images."""

    out: Path = Path("runs/bench")
    """Folder of the record."""
    tasks: tuple[int, ...] = (2, 10, 40)
    """Numbers of tasks T."""
    methods: tuple[str, ...] = (
        "ls",
        "mgda",
        "pcgrad",
        "cagrad",
        "imtl_g",
        "nash_mtl",
        "upgrad",
        "aligned_mtl",
    )
    """Call strings of the methods."""
    batch_size: int = 256
    """Images per step."""
    repeats: int = 15
    """Timed rounds; each round times every program once, the table shows medians."""
    torch: bool = False
    """Also time PyTorch's plain step, if torch is installed."""


def run(config: BenchConfig) -> Path:
    """Times all programs in turn, prints the table and writes ``bench.json``."""
    rows: dict[str, dict[str, float]] = {}
    for num_tasks in config.tasks:
        programs, compiled = _programs(config, num_tasks)
        for name, seconds in _interleaved(programs, config.repeats).items():
            row = rows.setdefault(name, {})
            row[f"ms_{num_tasks}"] = round(1e3 * seconds, 2)
            row[f"compile_s_{num_tasks}"] = round(compiled[name], 2)
    if config.torch:
        rows["plain, PyTorch"] = {
            f"ms_{t}": round(plain_step_ms(t, config.batch_size, config.repeats), 2)
            for t in config.tasks
        }
    for row in rows.values():
        for num_tasks in config.tasks:
            plain = rows["plain"][f"ms_{num_tasks}"]
            row[f"ratio_{num_tasks}"] = round(row[f"ms_{num_tasks}"] / plain, 2)
    config.out.mkdir(parents=True, exist_ok=True)
    record = {
        **records.environment(),
        "batch_size": config.batch_size,
        "repeats": config.repeats,
        "steps": rows,
    }
    path = records.write_json(config.out / "bench.json", record)
    Console().print(_table(config, rows))
    return path


def _programs(
    config: BenchConfig, num_tasks: int
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Compiled steps by name, the plain summed-loss step first; and compile seconds."""
    image_key, label_key, init_key = jax.random.split(jax.random.key(0), 3)
    images = jax.random.normal(image_key, (config.batch_size, 28, 28, 1))
    labels = jax.random.randint(label_key, (config.batch_size, num_tasks), 0, 10)
    optimizer = optax.sgd(1e-3)

    def losses_of(model: LeNet, params: Any, images: Any, labels: Any) -> jax.Array:
        logits: Any = model.apply({"params": params}, images)
        return cross_entropy(logits, labels)

    plain_model = LeNet(num_tasks)
    params = plain_model.init(init_key, images[:1])["params"]

    def plain(params: Any, images: Any, labels: Any) -> Any:
        def total(params: Any) -> jax.Array:
            return losses_of(plain_model, params, images, labels).sum()

        loss, grads = jax.value_and_grad(total)(params)
        updates, _ = optimizer.update(grads, optimizer.init(params))
        return optax.apply_updates(params, updates), loss

    def method_step(call: str) -> Callable[..., Any]:
        weighting = mtl_jax.build_weighting(call, num_tasks)
        tx = optax.chain(mtl_jax.aggregate(weighting, heads=is_head), optimizer)
        losses_fn = functools.partial(losses_of, LeNet(num_tasks))
        source = mtl_jax.value_and_task_grads(losses_fn, heads=is_head)

        def step(params: Any, images: Any, labels: Any) -> Any:
            losses, grads = source(params, images, labels)
            updates, _ = tx.update(grads, tx.init(params), params, losses=losses)
            return optax.apply_updates(params, updates), losses

        return step

    steps = {"plain": plain} | {call: method_step(call) for call in config.methods}
    programs, compiled = {}, {}
    for name, step in steps.items():
        begin = time.perf_counter()
        program = jax.jit(step).lower(params, images, labels).compile()
        compiled[name] = time.perf_counter() - begin
        programs[name] = functools.partial(program, params, images, labels)
    return programs, compiled


def _interleaved(
    programs: dict[str, Callable[[], Any]], repeats: int
) -> dict[str, float]:
    """Median seconds per call; in turn, so that a slow moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for round_ in range(repeats + 2):
        for name, program in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(program())
            if round_ >= 2:  # the first rounds warm up
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def _table(config: BenchConfig, rows: dict[str, dict[str, float]]) -> Table:
    table = Table(title=f"step time, ms (ratio to plain), batch {config.batch_size}")
    table.add_column("method")
    for num_tasks in config.tasks:
        table.add_column(f"T = {num_tasks}", justify="right")
    for name, row in rows.items():
        cells = [
            f"{row[f'ms_{t}']:.1f} ({row[f'ratio_{t}']:.2f})" for t in config.tasks
        ]
        table.add_row(name, *cells)
    return table
