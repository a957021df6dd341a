"""Krylov residuals on the 1,500 x 1,500 Hessian, and a solve on device against SciPy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import scipy.sparse.linalg

import mtl_jax
from experiments import programs
from experiments.explore import ExploreConfig
from experiments.explore_mini_front import MiniProblem
from experiments.explore_mini_lines import make_tangent
from mtl_jax.pareto import correct_gradients, hvp, stationarity
from mtl_jax.solvers import minres

REPEATS = 7
WAYS = {
    "device": "MINRES as one program",
    "host": "SciPy's MINRES calls a jitted product",
    "host_linearised": "the same, linearised once per solve",
}


def residuals(
    problem: MiniProblem, points: np.ndarray, config: ExploreConfig
) -> tuple[np.ndarray, list[bool]]:
    """Residual norms after 0, 1, ... iterations relative to the right-hand side.

    Args:
        problem: losses and data.
        points: parameters (S, P).
        config: ``residual_maxiter`` iterations of the solver.

    Returns:
        (S, residual_maxiter + 1), as MINRES' recurrence has them, and for each point
        whether negative curvature was met: the Hessian is indefinite there.
    """
    endless = dataclasses.replace(config, maxiter=config.residual_maxiter, tol=0.0)
    solve = jax.jit(make_tangent(problem, endless))
    infos = [jax.device_get(solve(x, problem.data).info) for x in points]
    tiny = np.finfo(np.float32).tiny  # where there is no right-hand side: zeros
    curves = [info.residual_norms / max(info.residual_norms[0], tiny) for info in infos]
    return np.stack(curves), [bool(info.negative_curvature) for info in infos]


def on_device_against_host(
    problem: MiniProblem, point: np.ndarray, config: ExploreConfig
) -> dict[str, Any]:
    """Times ``maxiter`` MINRES iterations in one program and by SciPy on the host.

    SciPy calls a jitted Hessian-vector product, as the released code does in PyTorch:
    either the gradient is differentiated anew in every call, or it is linearised once
    per solve. All start from zero with the same weights and right-hand side, never stop
    early, and are timed in turns. Memory is XLA's: temporaries and results of a way's
    largest program, arguments not counted.
    """
    split, count = problem.data, config.maxiter
    _, grads = jax.jit(mtl_jax.value_and_task_grads(problem.losses))(point, split)
    alpha = stationarity(grads).value
    rhs = np.asarray(correct_gradients(grads, alpha)[0])

    def weighted(x: jax.Array, data: Any) -> jax.Array:
        return alpha @ problem.losses(x, data)

    def solve(x: jax.Array, b: jax.Array, data: Any) -> jax.Array:
        matvec = hvp(problem.losses, x, alpha, data)
        return minres(matvec, b, maxiter=count, tol=0.0)[0]

    def fresh(x: jax.Array, v: jax.Array, data: Any) -> jax.Array:
        return hvp(problem.losses, x, alpha, data)(v)

    def linear_map(x: jax.Array, data: Any) -> Any:
        return jax.linearize(lambda y: jax.grad(weighted)(y, data), x)[1]

    linearise = programs.compile_program(linear_map, point, split)
    linear = linearise.call()
    made = {
        "device": programs.compile_program(solve, point, rhs, split),
        "fresh_product": programs.compile_program(fresh, point, rhs, split),
        "linearised_product": programs.compile_program(_apply, linear, rhs),
        "linearise": linearise,
        "gradient": programs.compile_program(jax.grad(weighted), point, split),
    }
    product = _compiled(made["fresh_product"])
    apply = _compiled(made["linearised_product"])
    counts: dict[str, int] = {}

    def host(name: str, prepare: Callable[[], Callable[[Any], Any]]) -> Callable:
        def run() -> np.ndarray:
            multiply, counts[name] = prepare(), 0

            def matvec(v: np.ndarray) -> np.ndarray:
                counts[name] += 1
                return np.asarray(multiply(np.asarray(v, rhs.dtype)))

            size = len(rhs)
            make: Any = scipy.sparse.linalg.LinearOperator  # the stub has no matvec
            operator = make((size, size), matvec=matvec, dtype=rhs.dtype)
            return scipy.sparse.linalg.minres(operator, rhs, rtol=0.0, maxiter=count)[0]

        return run

    def start_fresh() -> Callable[[Any], Any]:
        return lambda v: product(point, v, split)

    def start_linearised() -> Callable[[Any], Any]:
        here = linearise.call()
        return lambda v: apply(here, v)

    solves = {
        "device": made["device"].call,
        "host": host("host", start_fresh),
        "host_linearised": host("host_linearised", start_linearised),
    }
    results = {name: np.asarray(run()) for name, run in solves.items()}
    seconds = programs.interleaved(solves, REPEATS)
    parts = programs.interleaved(
        {name: each.call for name, each in made.items() if name != "device"}, REPEATS
    )
    parents = {
        "device": ("device",),
        "host": ("fresh_product",),
        "host_linearised": ("linearise", "linearised_product"),
    }
    return {
        "iterations": count,
        "repeats": REPEATS,
        "ways": {
            name: {
                "what": WAYS[name],
                "ms": round(1e3 * seconds[name], 3),
                "times_device": round(seconds[name] / seconds["device"], 3),
                "hvps": counts.get(name, count),
                "megabytes": round(max(made[part].megabytes for part in uses), 1),
                "relative_difference": _difference(results[name], results["device"]),
            }
            for name, uses in parents.items()
        },
        "parts_ms": {name: round(1e3 * each, 3) for name, each in parts.items()},
    }


def _compiled(program: programs.Program) -> Callable[..., Any]:
    """The function of a program, without its arguments."""
    call: Any = program.call
    return call.func


def _apply(linear: Any, v: jax.Array) -> jax.Array:
    return linear(v)


def _difference(found: np.ndarray, other: np.ndarray) -> float:
    norm = max(float(np.linalg.norm(other)), float(np.finfo(np.float32).tiny))
    return float(f"{np.linalg.norm(found - other) / norm:.3g}")


def iterations_until(curves: np.ndarray, level: float) -> list[int | None]:
    """First iteration at which each curve (S, N) is at most ``level``."""
    below = curves <= level
    return [int(row.argmax()) if row.any() else None for row in below]
