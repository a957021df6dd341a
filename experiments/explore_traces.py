"""Traces of a network's front from weighted-sum starts, and the continuous front."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from experiments import explore_point, records
from experiments.explore import ExploreConfig
from experiments.explore_problems import (
    NetworkProblem,
    losses_on,
    mean_losses,
    measure,
)
from mtl_jax import pareto
from mtl_jax.metrics import hypervolume, non_dominated

Array = jax.Array
MARGIN = 1.05
"""The reference of hypervolumes is the starts' worst value in each objective times this."""


class Traced(NamedTuple):
    """What :meth:`mtl_jax.pareto.ParetoFront.from_trace` reads; ``S`` starts stacked."""

    params: Any
    """Leaves ``(S, K, N + 1, *p)``."""
    losses: Any
    """On the training probe, ``(S, K, N + 1, m)``."""
    alphas: Any
    """``(S, K, N + 1, m)``."""


def directions(num_tasks: int, kind: str) -> np.ndarray:
    """Right-hand sides ``(K, m)``: unit vectors, or all 0/1 rows but 0...0 and 1...1."""
    if kind == "unit":
        return np.eye(num_tasks)
    rows = np.array(list(itertools.product([0.0, 1.0], repeat=num_tasks)))
    return rows[1:-1]


def tracer(
    problem: NetworkProblem, config: ExploreConfig, betas: np.ndarray
) -> Callable[[Any, int], tuple[Any, float]]:
    """``trace(params, number) -> (Trace of one start on the host, seconds)``.

    Compiled by the first call; the number sets the batches of one start apart from those
    of the others.
    """
    draw = explore_point.draw(problem, config)
    compiled: list[Any] = []

    def batches(number: Array, key: Array) -> Any:
        return draw(jax.random.fold_in(key, number))

    def program(examples: Any, params: Any, number: Array) -> Any:
        return pareto.trace_front(
            losses_on(problem, examples),
            jax.tree.map(lambda leaf: leaf[None], params),
            jnp.asarray(betas, jnp.float32),
            steps=config.steps,
            step_size=config.step_size,
            batches=Partial(batches, number),
            seed=config.seed,
            correction=config.correction,
            momentum=config.momentum,
            solver=config.solver,
            damping=config.damping,
            maxiter=config.maxiter,
            tol=config.tol,
        )

    def trace(params: Any, number: int) -> tuple[Any, float]:
        args = problem.train, params, jnp.int32(number)
        if not compiled:
            compiled.append(jax.jit(program).lower(*args).compile())
        begin = time.perf_counter()
        result = jax.block_until_ready(compiled[0](*args))
        return jax.device_get(result), time.perf_counter() - begin

    return trace


def record(
    problem: NetworkProblem,
    config: ExploreConfig,
    betas: np.ndarray,
    weights: np.ndarray,
    trace: Any,
    seconds: float,
) -> tuple[dict[str, Any], Traced]:
    """Measures the points of one start's trace; returns its record and its arrays.

    Raises:
        records.NonFiniteError: if a loss left the finite numbers.
    """
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[3:]), trace.params)
    shape = trace.losses.shape[1:]
    probe, _ = measure(problem, flat, problem.probe())
    test, errors = measure(problem, flat, problem.test)
    probe, test, errors = (each.reshape(shape) for each in (probe, test, errors))
    if not np.isfinite(probe).all():
        where = np.argwhere(~np.isfinite(probe))[0]
        raise records.NonFiniteError(
            f"loss {where[2] + 1} is not finite after step {where[1]} in direction "
            f"{betas[where[0]].tolist()} from the start with weights "
            f"{np.round(weights, 3).tolist()}: take a smaller --step-size or more damping"
        )
    lines = [
        {
            "beta": beta.tolist(),
            "probe_losses": records.rounded(probe[k].tolist()),
            "test_losses": records.rounded(test[k].tolist()),
            "test_errors": records.rounded(errors[k].tolist()),
            "alphas": records.rounded(trace.alphas[0, k].tolist()),
            "residuals": records.rounded(trace.residuals[0, k].tolist()),
            "iterations": trace.iterations[0, k].tolist(),
        }
        for k, beta in enumerate(betas)
    ]
    counts = {
        name: int(np.sum(getattr(trace.counts, name)))
        for name in ("functions", "gradients", "hvps")
    }
    unit = explore_point.units(problem, config)
    solves = len(betas) * config.steps
    equivalents = (
        counts["gradients"] * unit.gradients + (counts["hvps"] + solves) * unit.hvp
    )
    spent = {
        **counts,
        "solves": solves,
        "equivalents": round(equivalents, 1),
        "seconds": round(seconds, 2),
    }
    entry = {"weights": weights.tolist(), "spent": spent, "directions": lines}
    return entry, Traced(
        jax.tree.map(lambda leaf: leaf[0], trace.params), probe, trace.alphas[0]
    )


def exchanges(entry: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    """What one objective gained for what the others paid, in each unit direction.

    Args:
        entry: the record of a start.
        steps: over so many steps.

    Returns:
        For every direction ``e_i``: changes of the losses on the test set and on the
        training probe, the rate (fall of ``i`` over the sum of the rises of the others,
        or ``None`` if these fell too), and, for two objectives, the rate to expect to
        first order, ``alpha_j / alpha_i``.
    """
    rows = []
    for each in entry["directions"]:
        beta = np.array(each["beta"])
        if beta.sum() != 1 or beta.max() != 1:
            continue
        i = int(beta.argmax())
        row: dict[str, Any] = {"objective": i + 1, "steps": steps}
        for name in ("test", "probe"):
            losses = np.array(each[f"{name}_losses"])
            change = losses[steps] - losses[0]
            paid = change.sum() - change[i]
            row[f"{name}_change"] = records.rounded(change.tolist())
            rate = -change[i] / paid if paid > 0 else None
            row[f"{name}_rate"] = rate if rate is None else records.rounded(rate)
        alpha = each["alphas"][0]
        if len(alpha) == 2 and alpha[i] > 0:
            row["expected_rate"] = records.rounded(alpha[1 - i] / alpha[i])
        rows.append(row)
    return rows


def coverage(entries: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Hypervolumes and undominated points, of the starts alone and with their traces."""
    result: dict[str, Any] = {"steps": steps}
    for name in ("test_losses", "test_errors", "probe_losses"):
        points = [
            [each[name][: steps + 1] for each in entry["directions"]]
            for entry in entries
        ]
        everything = np.array(points)  # (S, K, steps + 1, m)
        starts = everything[:, 0, 0]
        moved = everything[:, :, 1:].reshape(-1, everything.shape[-1])
        both = np.concatenate([starts, moved])
        reference = MARGIN * starts.max(0)
        kept = non_dominated(both)
        result[name] = {
            "reference": records.rounded(reference.tolist()),
            "hypervolume_starts": records.rounded(hypervolume(starts, reference)),
            "hypervolume": records.rounded(hypervolume(both, reference)),
            "starts_not_dominated": f"{kept[: len(starts)].sum()} of {len(starts)}",
            "points_not_dominated": f"{kept.sum()} of {len(both)}",
        }
    return result


def continuous(
    problem: NetworkProblem, config: ExploreConfig, traced: Traced, folder: Path
) -> dict[str, Any]:
    """Joins the traces, drops what is dominated on the training probe, and measures.

    The front is saved in ``folder / "front"``.
    """
    begin = time.perf_counter()
    parts = config.samples - 1
    front = pareto.ParetoFront.from_trace(traced)
    losses_fn = mean_losses(problem, problem.probe())
    everywhere = np.asarray(front.evaluate(losses_fn, parts), float)
    kept = front.without_dominated(losses_fn, parts)
    test, errors = measure(problem, kept.params, problem.test)
    starts, lanes = traced.losses.shape[:2]
    nodes = np.asarray(traced.losses, float).reshape(-1, problem.num_tasks)
    kept_losses = np.asarray(kept.losses, float)
    reference = MARGIN * np.asarray(traced.losses, float)[:, 0, 0].max(0)
    path = folder / "front"
    if path.exists():
        shutil.rmtree(path)
    kept.save(path)
    return {
        # All directions share their start.
        "traced_points": len(nodes) - (lanes - 1) * starts,
        "samples_per_edge": config.samples,
        "grid_points": len(everywhere),
        "kept_points": len(kept_losses),
        "kept_simplices": int(
            np.ptp(np.asarray(kept.simplices), axis=1).astype(bool).sum()
        ),
        "reference": records.rounded(reference.tolist()),
        "hypervolume_points": records.rounded(hypervolume(nodes, reference)),
        "hypervolume_continuous": records.rounded(hypervolume(everywhere, reference)),
        "grid_losses": records.rounded(everywhere.tolist()),
        "kept_losses": records.rounded(kept_losses.tolist()),
        "kept_test_losses": records.rounded(test.tolist()),
        "kept_test_errors": records.rounded(errors.tolist()),
        "simplices": np.asarray(kept.simplices).tolist(),
        "spent": {
            "passes": 2 * len(everywhere) + len(kept_losses),
            "equivalents": 0,
            "seconds": round(time.perf_counter() - begin, 2),
        },
    }
