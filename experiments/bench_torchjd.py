"""Part ``torchjd`` of the benchmark: the same work by mtl_jax and by torchjd, one run.

Three things are timed, all programs in turn in one process: weights from a Gramian,
updates from a Jacobian, and whole training steps of the LeNet.
How exact the weights are is judged in float64: by the residual of the optimality
conditions (``fuzz_residuals``), which shares nothing with any solver, and by the distance
of the update from that of a float64 solution whose own residual is recorded too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import mtl_jax
from experiments import (
    bench_torchjd_steps,
    bench_torchjd_tables,
    fuzz_residuals,
    records,
    torchjd_peer,
)
from experiments.programs import milliseconds, timings
from mtl_jax import solvers

FAMILIES = {"random": 0.0, "conflicting": 0.9}
"""Random rows, less this part of their mean."""
NUM_JACOBIANS = 3
"""Every call takes the next one, so that no stateful method sees the same twice."""


def run(
    out: Path,
    *,
    tasks: tuple[int, ...] = (2, 10, 40),
    num_params: int = 10_000,
    batch_size: int = 256,
    step_methods: tuple[str, ...] = ("nash_mtl", "mgda", "upgrad"),
    rounds: int = 11,
    seconds: float = 4.0,
) -> Path:
    """Times and checks both, prints the tables and writes ``torchjd.json``.

    Args:
        out: folder of the record.
        tasks: numbers of tasks ``T``.
        num_params: columns of the Jacobians.
        batch_size: images per training step.
        step_methods: methods whose whole step is timed.
        rounds: timed rounds.
        seconds: a program that took as long sits out the further rounds (after three).

    Raises:
        ValueError: if torchjd is not installed.
    """
    torchjd_peer.check_installed()
    timing = {"rounds": rounds, "seconds": seconds}
    aggregation = {
        family: {
            f"T={num_tasks}": _aggregation(num_tasks, num_params, part, timing)
            for num_tasks in tasks
        }
        for family, part in FAMILIES.items()
    }
    steps = {
        f"T={t}": bench_torchjd_steps.measure(t, batch_size, step_methods, timing)
        for t in tasks
    }
    record = {
        **records.environment(),
        "peer_versions": torchjd_peer.versions(),
        "torch_threads": torchjd_peer.threads(),
        **{"num_params": num_params, "batch_size": batch_size, **timing},
        "aggregation_ms": aggregation,
        "steps_ms": steps,
    }
    out.mkdir(parents=True, exist_ok=True)
    path = records.write_json(out / "torchjd.json", record)
    console = Console(width=130)
    for family, cells in aggregation.items():
        console.print(bench_torchjd_tables.aggregation_table(family, cells))
    console.print(bench_torchjd_tables.step_table(steps))
    return path


def jacobians(num_tasks: int, num_params: int, part: float) -> list[np.ndarray]:
    """Random Jacobians ``(T, P)``, float32, rows less a part of their mean."""
    rng = np.random.default_rng(num_tasks)
    rows = rng.normal(size=(NUM_JACOBIANS, num_tasks, num_params))
    return list((rows - part * rows.mean(1, keepdims=True)).astype(np.float32))


def _aggregation(
    num_tasks: int, num_params: int, part: float, timing: dict[str, Any]
) -> dict[str, Any]:
    """By method and program: milliseconds of weights and update, residual, error."""
    given = jacobians(num_tasks, num_params, part)
    peers = torchjd_peer.aggregators(num_tasks)
    programs: dict[tuple[str, str, str], Callable[[], Any]] = {}
    accuracy: dict[tuple[str, str], dict[str, float]] = {}
    reference: dict[str, float | None] = {}
    for method, settings in peers.items():
        weigh, combine = _ours(method, num_tasks)
        rows = [jnp.asarray(jacobian) for jacobian in given]
        grams = [mtl_jax.tree.gram(row) for row in rows]
        programs[method, "mtl_jax", "weights"] = _rotating(weigh, grams)
        programs[method, "mtl_jax", "update"] = _rotating(combine, rows)
        found = [np.asarray(weigh(gram)[0]) for gram in grams]
        exact = _exact(method, given)
        accuracy[method, "mtl_jax"] = _accuracy(
            method, given, found, exact, [_projections(gram) for gram in grams]
        )
        if method != "upgrad":  # judged by its projections, which the sum does not show
            judged = _accuracy(method, given, exact, exact, exact)
            reference[method] = judged.get("residual")
        for setting, new in settings.items():
            name = f"torchjd, {setting}"
            inputs = torchjd_peer.solver_inputs(given, method)
            weights_of = torchjd_peer.solver(new())
            programs[method, name, "weights"] = _rotating(weights_of, inputs)
            tensors = torchjd_peer.tensors(given)
            programs[method, name, "update"] = _rotating(new(), tensors)
            made = new()
            weights_of = torchjd_peer.solver(made)
            found = [weights_of(value).numpy() for value in inputs]
            rows_of = [
                torchjd_peer.projections(made, jacobian @ jacobian.T)
                if method == "upgrad"
                else None
                for jacobian in given
            ]
            accuracy[method, name] = _accuracy(method, given, found, exact, rows_of)
    times = timings(programs, **timing)
    results: dict[str, Any] = {method: {} for method in peers}
    for method, name in accuracy:
        measured: dict[str, Any] = {}
        for kind in ("weights", "update"):
            measured |= milliseconds(kind, times[method, name, kind])
        results[method][name] = measured | accuracy[method, name]
    for method, residual in reference.items():
        if residual is not None:
            results[method]["float64"] = {"residual": residual}
    return results


@functools.cache  # compiled once for all families and both precisions
def _ours(method: str, num_tasks: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    weighting = mtl_jax.build_weighting(method, num_tasks)
    tx = mtl_jax.aggregate(weighting)

    def weigh(gram: jax.Array) -> Any:
        return weighting.update(mtl_jax.Statistics(gram), weighting.init())

    def combine(jacobian: jax.Array) -> Any:
        return tx.update(jacobian, tx.init(jacobian[0]))

    return jax.jit(weigh), jax.jit(combine)


def _projections(gram: jax.Array) -> np.ndarray:
    num_tasks = gram.shape[0]
    bounds = jnp.eye(num_tasks, dtype=gram.dtype) / num_tasks
    return np.asarray(solvers.dual_cone_weights(gram, bounds).value)


def _exact(method: str, given: list[np.ndarray]) -> list[np.ndarray]:
    """Weights of the same method in float64, from the float64 Gramians."""
    rows = [jacobian.astype(np.float64) for jacobian in given]
    with jax.enable_x64(True):
        weigh, _ = _ours(method, len(rows[0]))
        return [np.asarray(weigh(jnp.asarray(row @ row.T))[0]) for row in rows]


def _accuracy(
    method: str,
    given: list[np.ndarray],
    found: list[np.ndarray],
    exact: list[np.ndarray],
    projections: list[Any],
) -> dict[str, float]:
    """Worst residual and error of the update; PCGrad's orders are random, so none."""
    if method == "pcgrad":
        return {}
    residuals, errors = [], []
    for jacobian, weights, reference, rows in zip(
        given, found, exact, projections, strict=True
    ):
        exactly = jacobian.astype(np.float64)
        problem = fuzz_residuals.scaled((exactly @ exactly.T)[None])
        judged = rows if method == "upgrad" else weights
        residuals.append(_residual(method, problem, judged.astype(np.float64)))
        update, wanted = weights.astype(np.float64) @ exactly, reference @ exactly
        errors.append(np.linalg.norm(update - wanted) / np.linalg.norm(wanted))
    return {
        "residual": float(f"{max(residuals):.2g}"),
        "error": float(f"{max(errors):.2g}"),
    }


def _residual(
    method: str, problem: fuzz_residuals.Scaled, weights: np.ndarray
) -> float:
    options: dict[str, Any] = {}
    if method == "cagrad":
        dual = weights - 1 / len(weights)
        options["dual"] = (dual / dual.sum())[None]
    if method == "nash_mtl":
        options["ridge"] = 0.0
    residual = getattr(fuzz_residuals, method)(problem, weights[None], **options)
    return float(residual[0])


def _rotating(function: Callable[[Any], Any], values: list[Any]) -> Callable[[], Any]:
    state = {"calls": 0}

    def call() -> Any:
        state["calls"] += 1
        return function(values[state["calls"] % len(values)])

    return call
