"""Quadratic programs through jaxopt; the only file that imports jaxopt.

jaxopt is no longer maintained, so that replacing it must cost one file.
"""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp

from mtl_jax._types import Array, Solution


def nonnegative_qp(
    matrix: Array,
    linear: Array,
    *,
    tolerance: float | None = None,
    max_iterations: int = 1000,
) -> Solution:
    r"""Minimises ``½ b'Cb - c'b`` over ``b >= 0`` with jaxopt's ``BoxOSQP``.

    Scale the problem first: entries of order one (a unit diagonal) are assumed.

    Args:
        matrix: symmetric positive definite ``C``, ``(T, T)``, float32 or float64.
        linear: ``c``, ``(T,)``.
        tolerance: jaxopt's stopping tolerance on the residuals; by default 1e-6 in
            float32 and 1e-10 in float64, about the least that ADMM reaches.
        max_iterations: bound on the ADMM iterations.

    Returns:
        Solution with ``value`` ``(T,)``, zeros where the solver broke down; ``ok`` tells
        whether jaxopt's own residual is below ``tolerance``.

    References:
        Stellato et al., OSQP, arXiv:1711.08013; Blondel et al., arXiv:2105.15183.
    """
    if tolerance is None:
        tolerance = _tolerance(matrix)
    size = linear.shape[0]
    params, state = _run(
        matrix,
        linear,
        jnp.eye(size, dtype=matrix.dtype),
        jnp.zeros_like(linear),
        jnp.full_like(linear, jnp.inf),
        tolerance,
        max_iterations,
    )
    value = jnp.maximum(params.primal[0], 0)
    finite = jnp.all(jnp.isfinite(value))
    return Solution(
        value=jnp.where(finite, value, 0),
        ok=finite & (state.error <= tolerance),
        iterations=jnp.asarray(state.iter_num, jnp.int32),
    )


def simplex_constrained_qp(
    matrix: Array, linear: Array, *, max_iterations: int = 1000
) -> Solution:
    r"""Minimises ``½ w'Aw - b'w`` over ``w >= 0, 1'w = 1`` with jaxopt's ``BoxOSQP``.

    Scale the problem first: entries of order one are assumed.

    Args:
        matrix: symmetric positive semi-definite ``A``, ``(T, T)``, float32 or float64.
        linear: ``b``, ``(T,)``.
        max_iterations: bound on the ADMM iterations.

    Returns:
        Solution with ``value`` ``(T,)``, not negative, zeros where the solver broke down;
        its sum is one up to jaxopt's tolerance, 1e-6 in float32.
    """
    size, dtype = linear.shape[0], matrix.dtype
    identity = jnp.eye(size, dtype=dtype)
    one, zeros = jnp.ones(1, dtype), jnp.zeros(size, dtype)
    tolerance = _tolerance(matrix)
    params, state = _run(
        matrix,
        linear,
        jnp.concatenate([jnp.ones((1, size), dtype), identity]),
        jnp.concatenate([one, zeros]),
        jnp.concatenate([one, jnp.full(size, jnp.inf, dtype)]),
        tolerance,
        max_iterations,
    )
    value = jnp.maximum(params.primal[0], 0)
    finite = jnp.all(jnp.isfinite(value))
    return Solution(
        value=jnp.where(finite, value, 0),
        ok=finite & (state.error <= tolerance),
        iterations=jnp.asarray(state.iter_num, jnp.int32),
    )


def _tolerance(matrix: Array) -> float:
    return max(8 * float(jnp.finfo(matrix.dtype).eps), 1e-10)


def _run(
    matrix: Array,
    linear: Array,
    rows: Array,
    low: Array,
    high: Array,
    tolerance: float,
    max_iterations: int,
) -> Any:
    """Minimises ``½ x'Ax - b'x`` over ``low <= rows x <= high``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="JAXopt is no longer maintained")
        from jaxopt import BoxOSQP

    solver = BoxOSQP(
        eq_qp_solve="lu",
        tol=tolerance,
        maxiter=max_iterations,
        implicit_diff=False,
    )
    with jax.numpy_rank_promotion("allow"):  # jaxopt broadcasts implicitly
        return solver.run(
            init_params=None,
            params_obj=(matrix, -linear),
            params_eq=rows,
            params_ineq=(low, high),
        )
