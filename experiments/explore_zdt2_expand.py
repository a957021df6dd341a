"""Figure 3 of the study ``explore``: first-in-first-out expansion of a Pareto set."""

from __future__ import annotations

import collections
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import mtl_jax
from experiments.explore import ExploreConfig
from mtl_jax.data.zdt2 import zdt2_losses, zdt2_sample
from mtl_jax.pareto import hvp, stationarity, tangent

STILL = 1e-5
"""The corrector stops at descent directions, or steps, shorter than this."""
SHRINK = 0.9
"""Factor of the corrector's step after a value that is too high."""
MAX_CORRECTIONS = 10_000

Expand = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""``(point (3,), random numbers (K, 2)) -> (children (K, 3), HVPs ())``."""


class Expansion(NamedTuple):
    """One method's points over all seeds, and what it spent."""

    explored: np.ndarray
    """Losses of the children before correction, (E, 2)."""
    corrected: np.ndarray
    """Losses of the archive: the starts and the corrected children, (E + seeds, 2)."""
    expand: dict[str, int]
    """Functions, gradients and HVPs of the directions."""
    optimise: dict[str, int]
    """The same of the corrections."""
    unconverged: int
    """Corrections cut off after ``MAX_CORRECTIONS`` gradients."""
    seconds: float
    """Without compilation."""


class Corrected(NamedTuple):
    """Where the corrector ended and what it spent; also its state."""

    point: jax.Array
    done: jax.Array
    functions: jax.Array
    gradients: jax.Array


def expand_minres(config: ExploreConfig) -> Expansion:
    """Children at ``point + step_size * v``, v the unit solution of ``H v = Jᵀβ``.

    β is drawn from N(0, I) for every child.
    """

    def expand(point: jax.Array, betas: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, grads = mtl_jax.value_and_task_grads(zdt2_losses)(point)
        alpha = stationarity(grads).value
        matvec = hvp(zdt2_losses, point, alpha)
        solve = functools.partial(
            tangent,
            matvec,
            grads,
            alpha=alpha,
            correction=config.correction,
            solver=config.solver,
            damping=config.damping,
            maxiter=config.maxiter,
            tol=config.tol,
        )
        tangents = jax.vmap(solve)(betas)
        children = point[None] + config.step_size * tangents.direction
        return children, tangents.hvps.sum()

    return _explore(config, expand, lambda rng, shape: rng.normal(size=shape))


def expand_weighted(config: ExploreConfig) -> Expansion:
    """Children one normalised gradient step away, with weights moved by up to 10 %.

    The direction is ``-Jᵀα'``, ``α'`` proportional to α times U(0.9, 1.1) per weight: the
    first step of descent on another weighted sum.
    """

    def expand(point: jax.Array, factors: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, grads = mtl_jax.value_and_task_grads(zdt2_losses)(point)
        weights = stationarity(grads).value[None] * factors
        directions = (weights / weights.sum(1, keepdims=True)) @ grads
        norms = jnp.linalg.norm(directions, axis=1, keepdims=True)
        children = point[None] - config.step_size * directions / norms
        return children, jnp.zeros([], jnp.int32)

    return _explore(config, expand, lambda rng, shape: rng.uniform(0.9, 1.1, shape))


def correct(point: jax.Array) -> Corrected:
    """MGDA with backtracking until nothing moves: back to the Pareto set.

    Descends along ``d = -Jᵀα``, α the min-norm weights; a step ``η d`` starts at η = 1
    and shrinks until no loss is higher than before. Counts one function (both
    objectives) and one gradient per step, and one function per trial of η.

    Args:
        point: (3,).
    """

    def step(state: Corrected) -> Corrected:
        losses, grads = mtl_jax.value_and_task_grads(zdt2_losses)(state.point)
        direction = -stationarity(grads).value @ grads
        norm = jnp.linalg.norm(direction)
        still = norm < STILL
        eta, tries = _line_search(state.point, losses, direction, still)
        return Corrected(
            jnp.where(still, state.point, state.point + eta * direction),
            still | (eta * norm < STILL),
            state.functions + 1 + tries,
            state.gradients + 1,
        )

    def unfinished(state: Corrected) -> jax.Array:
        return ~state.done & (state.gradients < MAX_CORRECTIONS)

    zero = jnp.zeros([], jnp.int32)
    start = Corrected(jnp.asarray(point), jnp.zeros([], bool), zero, zero)
    return lax.while_loop(unfinished, step, start)


_correct_all = jax.jit(jax.vmap(correct))
_evaluate = jax.jit(jax.vmap(zdt2_losses))


def _line_search(
    point: jax.Array, losses: jax.Array, direction: jax.Array, skip: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Step ``η`` and how many were tried; ends, for ``η d`` falls below rounding."""

    def rejected(carry: tuple[Any, Any, Any]) -> jax.Array:
        return ~skip & (carry[1] > losses).any()

    def shrink(carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        eta = SHRINK * carry[0]
        return eta, zdt2_losses(point + eta * direction), carry[2] + 1

    first = jnp.ones([], point.dtype), zdt2_losses(point + direction), jnp.int32(1)
    eta, _, tries = lax.while_loop(rejected, shrink, first)
    return eta, jnp.where(skip, 0, tries)


def _explore(
    config: ExploreConfig,
    expand: Expand,
    draw: Callable[[np.random.RandomState, tuple[int, int]], np.ndarray],
) -> Expansion:
    """Expands the oldest point, corrects its children, until the archive is full."""
    expand = jax.jit(expand)
    shape = (config.children, 2)
    first = zdt2_sample(config.seeds[0])
    warm, _ = expand(first, np.ones(shape))  # compiles, not timed
    _evaluate(_correct_all(warm).point)
    explored, corrected, unconverged = [], [], 0
    spent = collections.Counter()
    begin = time.perf_counter()
    for seed in config.seeds:
        rng = np.random.RandomState(seed)
        rng.uniform(size=2)  # the start's, which zdt2_sample draws from the same stream
        start = np.asarray(zdt2_sample(seed))
        queue = collections.deque([start])
        archive = [start]
        while len(archive) <= config.archive:
            children, hvps = expand(queue.popleft(), draw(rng, shape))
            results = jax.device_get(_correct_all(children))
            spent["expansions"] += 1
            spent["hvps"] += int(hvps)
            spent["functions"] += int(results.functions.sum())
            spent["gradients"] += int(results.gradients.sum())
            unconverged += int((~results.done).sum())
            explored.append(np.asarray(_evaluate(children)))
            queue.extend(results.point)
            archive.extend(results.point)
        corrected += archive
    seconds = time.perf_counter() - begin
    return Expansion(
        np.concatenate(explored),
        np.asarray(_evaluate(np.stack(corrected))),
        {"functions": 0, "gradients": spent["expansions"], "hvps": spent["hvps"]},
        {"functions": spent["functions"], "gradients": spent["gradients"], "hvps": 0},
        unconverged,
        seconds,
    )
