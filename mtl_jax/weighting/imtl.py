"""IMTL-G: equal projections of the update on all task gradients."""

from __future__ import annotations

import jax.numpy as jnp

from mtl_jax._types import Array, Solution, Statistics, Weighting
from mtl_jax.solvers.pseudo import pseudo_solve
from mtl_jax.solvers.scaling import scale_gram
from mtl_jax.weighting._base import from_solver, gram_of, guarded


def imtl_g(num_tasks: int, *, descent: bool = False) -> Weighting:
    r"""Impartial multi-task learning (gradient part): equal cosines with every task.

    The weights solve :math:`\langle \Delta, g_t / \|g_t\| \rangle = \mathrm{const}` with
    :math:`\sum_t w_t = 1`, i.e. :math:`w \propto M^{+} d` for the Gramian ``M`` and the
    norms ``d``. On the matrix of cosines ``C`` that is :math:`q = C^{+} 1`,
    :math:`w_t \propto q_t / d_t`: the direction ignores the gradients' scales. Weights may
    be negative.

    Where weights of both signs nearly cancel in their sum, the update is very long. With
    eleven tasks training failed; with the update of the shared parameters divided by its
    norm before Adam (``docs/guide.md``) it came level with equal weights (QM9 in
    ``docs/results``).

    Args:
        num_tasks: number of tasks ``T``.
        descent: Weights of both signs can have a negative sum; scaled to the sum 1 their
            update then makes every loss rise. ``True`` scales them to the sum -1 there,
            so that every loss falls; the paper and the released codes do not.

    Returns:
        A weighting that needs the Gramian. The pseudo-inverse makes singular Gramians
        (duplicated gradients, ``T > P``) safe, where LibMTL raises and nash-mtl returns
        (1, 0, ...); at a Pareto-stationary point it would be blind to the convex
        combination that vanishes, so there the weights are that one. Tasks with zero
        gradient get weight 0. If the weights cannot be normalised to the sum 1 (their
        sum vanishes), equal weights are returned and the state counts a fallback. The
        paper applies the rule to the gradients of the shared representation; this is
        the rule for whatever gradients come in.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.imtl_g(2)
        >>> gram = jnp.diag(jnp.array([4.0, 1.0]))
        >>> weights, _ = weighting.update(mtl_jax.Statistics(gram), weighting.init())
        >>> print(*(f"{w:.3f}" for w in weights))
        0.333 0.667

    References:
        Liu et al., *Towards Impartial Multi-task Learning*, ICLR 2021
    """

    def solve(statistics: Statistics) -> Solution:
        return equal_cosines(gram_of(statistics, num_tasks, "imtl_g"), descent)

    return from_solver(num_tasks, solve)


def equal_cosines(gram: Array, descent: bool = False) -> Solution:
    """Weights with sum 1 whose update has the same cosine with every task gradient.

    With ``descent`` the sum is -1 where that makes the cosine positive.
    """
    scaled = scale_gram(gram)
    num_tasks = gram.shape[0]
    solution, null = pseudo_solve(scaled, jnp.ones(num_tasks, gram.dtype))
    # What C maps to zero. Where it is a convex combination of the tasks, that
    # combination vanishes: the point is Pareto stationary.
    size = jnp.sqrt(jnp.sum(jnp.square(null)))
    stationary = (size > 1e-3) & (null >= -1e-3 * size).all()
    solution = jnp.where(stationary, jnp.maximum(null, 0), solution)
    unscaled = solution * scaled.inverse_norms
    total, size = unscaled.sum(), jnp.abs(unscaled).sum()
    regular = jnp.abs(total) > 8 * jnp.finfo(gram.dtype).eps * size
    sum_to_be = jnp.abs(total) if descent else total
    weights = unscaled / jnp.where(regular, sum_to_be, 1)
    equal = jnp.full_like(weights, 1 / num_tasks)
    weights = jnp.where(scaled.nonzero.any(), weights, equal)
    valid = (regular | ~scaled.nonzero.any()) & scaled.finite
    return guarded(weights, valid, equal)
