"""The pseudo-inverse of the matrix of cosines, refined."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from mtl_jax._types import Array
from mtl_jax.solvers.scaling import ScaledGram, full_precision


class PseudoSolution(NamedTuple):
    """``C q = target`` for the cosines ``C``, as far as it has a solution."""

    solution: Array
    """:math:`q = C^{+} b`, ``(T,)``; zero for tasks with zero gradient."""
    null: Array
    """The part of ``b`` that ``C`` maps to zero, ``(T,)``."""


@full_precision
def pseudo_solve(scaled: ScaledGram, target: Array) -> PseudoSolution:
    r"""Returns :math:`C^{+} b` for the cosines of a Gramian: least squares, least norm.

    Eigenvalues up to ``T`` times the machine epsilon count as zero; one step of refinement
    on the range of ``C`` recovers the digits that the eigendecomposition lost.

    Args:
        scaled: from ``scale_gram``.
        target: ``b``, ``(T,)``; tasks with zero gradient take no part.

    Examples:
        >>> import jax.numpy as jnp
        >>> from mtl_jax.solvers.scaling import scale_gram
        >>> print(pseudo_solve(scale_gram(jnp.ones((2, 2))), jnp.ones(2)).solution)
        [0.5 0.5]
    """
    num_tasks = target.shape[0]
    values, vectors = jnp.linalg.eigh(scaled.cosines)
    threshold = num_tasks * jnp.finfo(values.dtype).eps * jnp.max(values)
    kept = values > threshold
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    target = jnp.where(scaled.nonzero, target.astype(values.dtype), 0)
    solution = vectors @ (inverse * (vectors.T @ target))
    residual = target - scaled.cosines @ solution
    solution = solution + vectors @ (inverse * (vectors.T @ residual))
    return PseudoSolution(solution, target - vectors @ (kept * (vectors.T @ target)))
