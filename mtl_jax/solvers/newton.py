"""Damped Newton's method for smooth barriers on the positive orthant."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from mtl_jax._types import Array, Solution


class _Loop(NamedTuple):
    point: Array
    size: Array
    iterations: Array
    converged: Array
    done: Array


def damped_newton(
    step: Callable[[Array], tuple[Array, Array]],
    start: Array,
    *,
    full_below: float,
    tolerance: float,
    max_iterations: int,
) -> Solution:
    """Repeats a Newton step until it is short, or only moves rounding errors.

    Args:
        step: positive point ``(T,)`` -> next point, and the size of the Newton step
            ``()``; must be a full step where that is below ``full_below``.
        start: positive ``(T,)``.
        full_below: size of steps from which on full ones converge quadratically.
        tolerance: size of the last step.
        max_iterations: bound on the steps.

    Returns:
        The last point that was finite and positive; ``ok`` tells whether the steps
        converged, or stagnated where they are full.

    Examples:
        >>> import jax.numpy as jnp
        >>> def step(x):  # of x - log(x)
        ...     ratio = 1 - x
        ...     size = jnp.abs(ratio).max()
        ...     return x * (1 + ratio / (1 + size * (size >= 0.25))), size
        >>> options = {"full_below": 0.25, "tolerance": 1e-6, "max_iterations": 64}
        >>> solution = damped_newton(step, jnp.array([0.1, 5.0]), **options)
        >>> print(solution.value.round(5))
        [1. 1.]
    """

    def body(loop: _Loop) -> _Loop:
        moved, size = step(loop.point)
        # Rounding of an almost stationary Gramian can make the Hessian indefinite.
        broken = ~jnp.all(jnp.isfinite(moved) & (moved > 0))
        # Exact full steps more than halve a small size: the rest is rounding.
        full = (size < full_below) & (loop.size < full_below)
        settled = full & (size > loop.size / 2)
        converged = ~broken & ((size <= tolerance) | settled)
        return _Loop(
            jnp.where(broken, loop.point, moved),
            size,
            loop.iterations + 1,
            converged,
            converged | broken,
        )

    def unfinished(loop: _Loop) -> Array:
        return ~loop.done & (loop.iterations < max_iterations)

    infinite = jnp.asarray(jnp.inf, start.dtype)
    none, false = jnp.asarray(0, jnp.int32), jnp.asarray(False)
    loop = lax.while_loop(unfinished, body, _Loop(start, infinite, none, false, false))
    return Solution(loop.point, loop.converged, loop.iterations)


def newton_step(hessian: Array, gradient: Array) -> tuple[Array, Array]:
    """Returns ``-H^-1 g`` by Cholesky, ``(T,)``, and the decrement ``sqrt(g' H^-1 g)``."""
    factor = lax.linalg.cholesky(hessian, symmetrize_input=False)
    half = lax.linalg.triangular_solve(
        factor, gradient[:, None], left_side=True, lower=True
    )
    step = -lax.linalg.triangular_solve(
        factor, half, left_side=True, lower=True, transpose_a=True
    )[:, 0]
    return step, jnp.sqrt(jnp.sum(jnp.square(half)))
