"""Quadratic programs through jaxopt; the only file that imports jaxopt.

jaxopt is no longer maintained, so that replacing it must cost one file.
"""

from __future__ import annotations

import warnings

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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="JAXopt is no longer maintained")
        from jaxopt import BoxOSQP

    if tolerance is None:
        tolerance = max(8 * float(jnp.finfo(matrix.dtype).eps), 1e-10)
    size = linear.shape[0]
    solver = BoxOSQP(
        eq_qp_solve="lu",
        tol=tolerance,
        maxiter=max_iterations,
        implicit_diff=False,
    )
    with jax.numpy_rank_promotion("allow"):  # jaxopt broadcasts implicitly
        params, state = solver.run(
            init_params=None,
            params_obj=(matrix, -linear),
            params_eq=jnp.eye(size, dtype=matrix.dtype),
            params_ineq=(jnp.zeros_like(linear), jnp.full_like(linear, jnp.inf)),
        )
    value = jnp.maximum(params.primal[0], 0)
    finite = jnp.all(jnp.isfinite(value))
    return Solution(
        value=jnp.where(finite, value, 0),
        ok=finite & (state.error <= tolerance),
        iterations=jnp.asarray(state.iter_num, jnp.int32),
    )
