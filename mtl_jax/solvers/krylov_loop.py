"""The loop that MINRES and CG share: scaling, warm start, stops, history."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from mtl_jax._types import Array, ArrayTree, check_range
from mtl_jax.solvers import vectors
from mtl_jax.tree import accumulator_dtype

CONVERGED = 0
"""The residual is small enough."""
MAXITER = 1
"""The iterations are used up."""
LEAST_SQUARES = 2
"""MINRES: ``|A r|`` is small, so that no ``x`` has a noticeably smaller residual, or none
that the dtype could tell."""
NEGATIVE_CURVATURE = 3
"""CG: a search direction ``p`` has ``p.A p <= 0``, up to rounding."""
NOT_FINITE = 4
"""``b``, ``x0``, ``matvec`` or the next iterate has an entry that is not finite."""

RUNNING = -1
# Multiples of eps. A few hundred products with vectors that have lost some orthogonality
# blur |A r| far more than a single inner product is blurred.
_ROUNDING = 16
_SLOPE_ROUNDING = 256

Matvec = Callable[[ArrayTree], ArrayTree]


class KrylovInfo(NamedTuple):
    """How a Krylov solve went; every field is an array, also under ``jit``."""

    iterations: Array
    """Products with the matrix, int32 ``()``; a given ``x0`` costs one more. A last one
    that ended in ``LEAST_SQUARES``, ``NEGATIVE_CURVATURE`` or ``NOT_FINITE`` counts,
    though it leaves ``x`` as it was."""
    residual_norm: Array
    """Norm of the last residual, float32 or float64 ``()``, by the method's recurrence."""
    residual_norms: Array
    """``|b - (A + damping I) x_k|`` after ``k`` iterations, ``(maxiter + 1,)``; entries
    after the last iteration repeat the last value."""
    stop: Array
    """Why it stopped, int32 ``()``: a constant of :mod:`mtl_jax.solvers.krylov`."""
    negative_curvature: Array
    """Whether a direction without positive curvature was met, bool ``()``."""


class Target(NamedTuple):
    """When to stop, for a first residual of norm one."""

    residual: Array
    """The norm of the residual to reach."""
    slope: Array
    """The ``|A r| / |A| |r|`` at which the residual counts as least."""
    rounding: float
    """What a number of order one that is made of inner products may be off by."""


class Loop(NamedTuple):
    """What the iterations carry; ``x`` solves the system of the scaled first residual."""

    x: ArrayTree
    state: Any
    """The method's own."""
    residual: Array
    residuals: Array
    iterations: Array
    stop: Array
    negative_curvature: Array


class Step(NamedTuple):
    """What a method proposes; taken only where ``verdict`` is ``RUNNING``.

    It must be another one where ``x`` or ``residual`` is not finite.
    """

    x: ArrayTree
    state: Any
    residual: Array
    verdict: Array
    negative_curvature: Array


def solve(
    start: Callable[[ArrayTree], Any],
    step: Callable[[Matvec, Loop, Target], Step],
    matvec: Matvec,
    b: ArrayTree,
    *,
    x0: ArrayTree | None,
    damping: float | Array,
    maxiter: int,
    tol: float | Array,
) -> tuple[ArrayTree, KrylovInfo]:
    """Runs a method on the system divided by the norm of its first residual.

    Args:
        start: unit vector of the first residual -> the method's state.
        step: one iteration, ``(matvec, loop, target) -> Step``.
        matvec, b, x0, damping, maxiter, tol: see :func:`mtl_jax.solvers.krylov.minres`.

    Returns:
        ``(x, info)``, see there.

    Raises:
        ValueError: see there.
    """
    b = vectors.as_vector("b", b)
    maxiter = _checked_maxiter(maxiter)
    check_range("tol", tol, 0)
    apply = _damped(matvec, b, damping)
    dtype = accumulator_dtype(b)
    eps = float(jnp.finfo(dtype).eps)

    b_norm = vectors.norm(b)
    first, residual = _first_residual(apply, b, x0, b_norm)
    # A square of 1e-30 is zero in float32: only the unit vector enters the recurrences.
    scale = vectors.norm(residual)
    usable = vectors.all_finite(first)
    finite = usable & jnp.isfinite(b_norm) & jnp.isfinite(scale)
    first = vectors.select(usable, first, vectors.zeros(first))
    tol = jnp.asarray(tol, dtype)
    bound = jnp.maximum(tol, _ROUNDING * eps) * b_norm
    target = Target(
        residual=bound / jnp.where(scale > 0, scale, 1),
        slope=jnp.maximum(tol, _SLOPE_ROUNDING * eps),
        rounding=_ROUNDING * eps,
    )
    stop = jnp.where(scale <= bound, CONVERGED, RUNNING)

    loop = lax.while_loop(
        lambda loop: loop.stop == RUNNING,
        lambda loop: _advance(loop, step(apply, loop, target), target, maxiter),
        Loop(
            x=vectors.zeros(residual),
            state=start(vectors.divide(residual, scale)),
            residual=jnp.ones((), dtype),
            residuals=jnp.ones(maxiter + 1, dtype),
            iterations=jnp.int32(0),
            stop=jnp.where(finite, stop, NOT_FINITE).astype(jnp.int32),
            negative_curvature=jnp.asarray(False),
        ),
    )
    after = jnp.arange(maxiter + 1) > loop.iterations
    residuals = jnp.where(after, loop.residual, loop.residuals)
    residuals = residuals * jnp.where(finite, scale, jnp.inf)

    x = vectors.cast_like(vectors.add_scaled(first, scale, loop.x), b)
    fits = vectors.all_finite(x)  # not so where b is huge and A tiny
    residuals = jnp.where(fits, residuals, residuals[0])
    return vectors.select(fits, x, vectors.cast_like(first, b)), KrylovInfo(
        iterations=loop.iterations,
        residual_norm=residuals[-1],
        residual_norms=residuals,
        stop=jnp.where(fits, loop.stop, NOT_FINITE),
        negative_curvature=loop.negative_curvature,
    )


def _advance(loop: Loop, new: Step, target: Target, maxiter: int) -> Loop:
    taken = new.verdict == RUNNING
    iterations = loop.iterations + 1
    residual = jnp.where(taken, new.residual, loop.residual)
    ending = jnp.where(iterations >= maxiter, MAXITER, RUNNING)
    ending = jnp.where(residual <= target.residual, CONVERGED, ending)
    return Loop(
        x=vectors.select(taken, new.x, loop.x),
        state=new.state,
        residual=residual,
        residuals=loop.residuals.at[iterations].set(residual),
        iterations=iterations,
        stop=jnp.where(taken, ending, new.verdict).astype(jnp.int32),
        negative_curvature=loop.negative_curvature | new.negative_curvature,
    )


def _checked_maxiter(maxiter: Any) -> int:
    try:
        count = operator.index(maxiter)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(
            "maxiter must be a Python integer >= 1 (it fixes the length of the history), "
            f"got {maxiter!r}"
        )
    return count


def _damped(matvec: Matvec, b: ArrayTree, damping: float | Array) -> Matvec:
    """``v -> A v + damping v`` on wide vectors."""

    def apply(v: ArrayTree) -> ArrayTree:
        image = vectors.as_vector("matvec(b)", matvec(vectors.cast_like(v, b)))
        vectors.check_like("matvec(b)", image, "b", b)
        image = vectors.cast_like(image, v)
        if isinstance(damping, int | float) and damping == 0:
            return image
        return vectors.add_scaled(image, damping, v)

    return apply


def _first_residual(
    apply: Matvec, b: ArrayTree, x0: ArrayTree | None, b_norm: Array
) -> tuple[ArrayTree, ArrayTree]:
    """The start and its residual, both wide."""
    wide = vectors.widen(b)
    if x0 is None:
        return vectors.zeros(wide), wide
    x0 = vectors.as_vector("x0", x0)
    vectors.check_like("x0", x0, "b", b)
    start = vectors.cast_like(vectors.cast_like(x0, b), wide)
    start = vectors.select(b_norm == 0, vectors.zeros(wide), start)
    return start, vectors.add_scaled(wide, -1, apply(start))
