"""Lines through the points of an empirical front, and how far they leave it (Figure 4)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import mtl_jax
from experiments.explore import ExploreConfig
from experiments.explore_mini_front import MiniProblem
from mtl_jax import metrics
from mtl_jax.pareto import Tangent, hvp, stationarity, tangent

CHAIN = 64
"""Points per edge of the empirical front when distances to it are taken."""


class Lines(NamedTuple):
    """Losses along lines through S points, and what they cost."""

    losses: np.ndarray
    """(S, N, 2)."""
    origin: int
    """Index along the second axis at which the lines pass through their points."""
    spent: dict[str, Any]


def all_lines(
    problem: MiniProblem, points: np.ndarray, config: ExploreConfig
) -> dict[str, Lines]:
    """Descent on either loss, MINRES tangents and random directions from every point.

    Args:
        problem: losses and data.
        points: parameters (S, P).
        config: steps and learning rate, Krylov settings, reach and points of the lines.
    """
    rates = config.learning_rate / np.sqrt(np.arange(1, config.steps + 1))
    descend = _descent(problem, jnp.asarray(rates, jnp.float32))
    rows = [(x, weights) for weights in np.eye(2, dtype=np.float32) for x in points]
    losses, seconds = each_row(descend, rows, problem.data)
    count = len(points)
    steps = count * config.steps
    lines = {}
    for i in range(2):
        part = slice(i * count, (i + 1) * count)
        spent = {"functions": steps + count, "gradients": steps, "hvps": 0}
        spent |= {"seconds": _total(seconds[part])}
        lines[f"descent on loss {i + 1}"] = Lines(np.stack(losses[part]), 0, spent)

    solve = make_tangent(problem, config)
    tangents, solving = each_row(solve, [(x,) for x in points], problem.data)
    noise = np.random.default_rng(config.seed).normal(size=points.shape)
    norms = np.linalg.norm(noise, axis=1, keepdims=True)
    unit = (noise / norms).astype(np.float32)
    rows = [(x, found.direction) for x, found in zip(points, tangents, strict=True)]
    rows += list(zip(points, unit, strict=True))
    reach, number = config.line_reach, config.line_points
    places = np.linspace(-reach, reach, number, dtype=np.float32)
    losses, seconds = each_row(_line(problem, places), rows, problem.data)
    origin, functions = int(np.abs(places).argmin()), count * number
    spent = {
        "functions": functions,
        "gradients": count,
        "hvps": int(sum(found.hvps for found in tangents)),
        "seconds": _total(solving + seconds[:count]),
        "seconds_of_solves": _total(solving),
        "failed_solves": sum(not found.ok for found in tangents),
    }
    lines["MINRES"] = Lines(np.stack(losses[:count]), origin, spent)
    spent = {"functions": functions, "gradients": 0, "hvps": 0}
    spent |= {"seconds": _total(seconds[count:])}
    lines["random direction"] = Lines(np.stack(losses[count:]), origin, spent)
    return lines


def _descent(problem: MiniProblem, rates: jax.Array) -> Callable[..., jax.Array]:
    """Full-batch descent on a weighted sum: losses before, between and after the steps."""

    def path(start: jax.Array, weights: jax.Array, split: Any) -> jax.Array:
        def weighted(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            losses = problem.losses(x, split)
            return weights @ losses, losses

        def step(x: jax.Array, rate: jax.Array) -> tuple[jax.Array, jax.Array]:
            grad, losses = jax.grad(weighted, has_aux=True)(x)
            return x - rate * grad, losses

        end, losses = lax.scan(step, start, rates)
        return jnp.concatenate([losses, problem.losses(end, split)[None]])

    return path


def _line(problem: MiniProblem, places: np.ndarray) -> Callable[..., jax.Array]:
    """Losses at ``x + s * direction`` for all places s."""

    def line(x: jax.Array, direction: jax.Array, split: Any) -> jax.Array:
        return lax.map(
            lambda s: problem.losses(x + s * direction, split), jnp.asarray(places)
        )

    return line


def make_tangent(problem: MiniProblem, config: ExploreConfig) -> Callable[..., Tangent]:
    """``(parameters (P,), data) -> Tangent`` for β = (1, -1).

    The released code draws β from N(0, I). With two objectives and corrected gradients
    every right-hand side is a multiple of ``g1 - g2``, so that β decides sign and length
    only; this one does not vanish at the ends of the front, as e1 does at one of them.
    """

    def solve(x: jax.Array, split: Any) -> Tangent:
        _, grads = mtl_jax.value_and_task_grads(problem.losses)(x, split)
        alpha = stationarity(grads).value
        return tangent(
            hvp(problem.losses, x, alpha, split),
            grads,
            jnp.array([1.0, -1.0]),
            alpha=alpha,
            correction=config.correction,
            solver=config.solver,
            damping=config.damping,
            maxiter=config.maxiter,
            tol=config.tol,
        )

    return solve


def each_row(
    function: Callable[..., Any], rows: Sequence[tuple[Any, ...]], *common: Any
) -> tuple[list[Any], list[float]]:
    """``function(*row, *common)`` for all rows, as NumPy arrays, and seconds of each.

    One program serves all rows; the time to compile it is not counted.
    """
    compiled = jax.jit(function).lower(*rows[0], *common).compile()
    results, seconds = [], []
    for row in rows:
        begin = time.perf_counter()
        results.append(jax.device_get(compiled(*row, *common)))
        seconds.append(time.perf_counter() - begin)
    return results, seconds


def _total(seconds: Sequence[float]) -> float:
    return round(sum(seconds), 2)


def quality(lines: Lines, front: np.ndarray) -> dict[str, float]:
    """How far lines leave a front.

    Args:
        lines: (S, N, 2).
        front: the kept points in order of loss 1, (k, 2).

    Returns:
        ``front_distance``: mean Euclidean distance to the chain through the front's
        points; ``dominated``: share of the lines' points that are worse in both losses
        than one of the front's; ``dominating``: share that is better in both; ``reach``:
        mean distance from the line's point on the front; ``distance_per_reach``: ratio
        of the two means, which does not depend on how far a method goes.
    """
    points = lines.losses.reshape(-1, 2)
    origins = lines.losses[:, lines.origin][:, None]
    reach = np.linalg.norm(lines.losses - origins, axis=-1).mean()
    distance = metrics.front_gap(points, chain(front)).mean()
    differences = points[:, None] - front[None]
    values = {
        "front_distance": distance,
        "dominated": np.any(np.all(differences > 0, axis=-1), axis=1).mean(),
        "dominating": np.any(np.all(differences < 0, axis=-1), axis=1).mean(),
        "reach": reach,
        "distance_per_reach": distance / max(reach, np.finfo(float).tiny),
    }
    return {name: float(f"{value:.4g}") for name, value in values.items()}


def chain(front: np.ndarray) -> np.ndarray:
    """The points (k, 2) joined by straight edges of ``CHAIN`` points each."""
    knots = np.arange(len(front))
    fine = np.linspace(0, len(front) - 1, CHAIN * (len(front) - 1) + 1)
    return np.stack([np.interp(fine, knots, column) for column in front.T], axis=1)
