"""ConFIG: a direction with equal cosines, as long as the gradients agree on it."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from mtl_jax._types import Array, Solution, Statistics, Weighting, check_num_tasks
from mtl_jax.solvers.pseudo import pseudo_solve
from mtl_jax.solvers.scaling import scale_gram
from mtl_jax.weighting._base import from_solver, gram_of, guarded, static_weights


def config(
    num_tasks: int, *, preference: Sequence[float] | Array | None = None
) -> Weighting:
    r"""Conflict-free inverse gradients: preset cosines, and a length of its own.

    .. math:: x = U^{+} \pi, \qquad
              \Delta = \Big(\sum_t \langle g_t, \hat x \rangle\Big) \hat x

    for the unit task gradients ``U`` and ``x`` scaled to unit length. With the cosines
    ``C`` and the norms ``d``: :math:`q = C^{+} \pi`, :math:`x = \sum_t (q_t / d_t) g_t`,
    :math:`\|x\|^2 = q^\top C q`. The direction is that of IMTL-G for equal preferences;
    the length shrinks as the gradients disagree.

    Args:
        num_tasks: number of tasks ``T``.
        preference: :math:`\pi`, the ratios of the cosines; ones by default.

    Returns:
        A weighting that needs the Gramian (the released code needs the gradients). Tasks
        with zero gradient get weight 0. No task conflicts with the update as long as the
        gradients are linearly independent; where they all cancel, it is zero.

    Raises:
        ValueError: for a wrong number of preferences.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> tx = mtl_jax.config(2)
        >>> grads = jnp.array([[1.0, 0.0], [0.0, 3.0]])
        >>> print(tx.update(grads, tx.init(jnp.zeros(2)))[0])
        [2. 2.]

    References:
        Liu et al., *ConFIG: Towards Conflict-free Training of Physics Informed Neural
        Networks*, 2024, arXiv:2408.11104
    """
    check_num_tasks(num_tasks)
    given = static_weights("preference", preference, num_tasks, 1.0)

    def solve(statistics: Statistics) -> Solution:
        gram = gram_of(statistics, num_tasks, "config")
        scaled = scale_gram(gram)
        target = jnp.asarray(given, gram.dtype)
        target = jnp.where(scaled.nonzero, target, 0)
        q, null = pseudo_solve(scaled, target)
        products = scaled.cosines @ q  # of x with the unit gradients
        square = q @ products
        eps = float(jnp.finfo(gram.dtype).eps)
        alive = (target @ target - null @ null > eps**0.5) & (square > 0)
        length = (products @ scaled.norms) / jnp.where(alive, square, 1)
        weights = q / jnp.where(scaled.nonzero, scaled.norms, 1) * length
        zeros = jnp.zeros_like(weights)
        weights = jnp.where(alive, weights, zeros)
        return guarded(weights, scaled.finite, zeros)

    return from_solver(num_tasks, solve)
