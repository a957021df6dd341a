"""Aligned-MTL: task gradients made orthogonal and equally long before they are added."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from mtl_jax._types import (
    Array,
    Solution,
    Statistics,
    Weighting,
    check_choice,
    check_num_tasks,
)
from mtl_jax.solvers.jacobi import gram_spectrum
from mtl_jax.solvers.scaling import scale_gram
from mtl_jax.weighting._base import from_solver, gram_of, guarded, static_weights


def aligned_mtl(
    num_tasks: int,
    *,
    preference: Sequence[float] | Array | None = None,
    scale: str = "min",
) -> Weighting:
    r"""Aligns the principal components of the task gradients (condition number 1).

    With :math:`M = V \Lambda V^\top` restricted to the eigenvalues above the rank
    threshold, :math:`w = \sqrt{s}\, V \Lambda^{-1/2} V^\top \pi` for the preference
    :math:`\pi`: the gradients are replaced by the nearest orthogonal system of length
    :math:`\sqrt s`. With full rank and ``scale="min"``,
    :math:`\|\Delta\| = \sqrt{\lambda_{\min}} \|\pi\|`.

    Args:
        num_tasks: number of tasks ``T``.
        preference: ``T`` numbers; ``1/T`` each by default, as in TorchJD (LibMTL: ones).
        scale: ``s``: ``"min"`` (the paper), or TorchJD's ``"median"`` and ``"rmse"`` (the
            mean of the kept eigenvalues).

    Returns:
        A weighting that needs the Gramian. The rank is that of the cosines, so that small
        gradients count however large the others are (the released code drops eigenvalues
        up to :math:`\lambda_{\max} T \epsilon`, which in float32 happens once norms differ
        by 1e3); the eigenvalues come from :func:`mtl_jax.solvers.gram_spectrum`. All-zero
        gradients give the preference (the update is zero), and a non-finite Gramian too,
        counted as a fallback.

    Raises:
        ValueError: for a wrong number of preferences or an unknown scale.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.aligned_mtl(2)
        >>> gram = jnp.diag(jnp.array([4.0, 1.0]))
        >>> weights, _ = weighting.update(mtl_jax.Statistics(gram), weighting.init())
        >>> print(*(f"{w:.3f}" for w in weights))
        0.250 0.500

    References:
        Senushkin et al., *Independent Component Alignment for Multi-Task Learning*, 2023,
        arXiv:2305.19000
    """
    check_num_tasks(num_tasks)
    check_choice("scale", scale, ("min", "median", "rmse"))
    given = static_weights("preference", preference, num_tasks, 1.0 / num_tasks)

    def solve(statistics: Statistics) -> Solution:
        gram = gram_of(statistics, num_tasks, "aligned_mtl")
        scaled = scale_gram(gram)
        pi = jnp.asarray(given, gram.dtype)
        sizes, vectors, kept = gram_spectrum(scaled)
        count = jnp.maximum(kept.sum(), 1)
        if scale == "min":
            root = jnp.min(sizes, where=kept, initial=jnp.inf)
        elif scale == "median":
            ascending = jnp.sort(jnp.where(kept, sizes, jnp.inf))
            root = ascending[(count - 1) // 2]
        else:
            root = jnp.sqrt(jnp.sum(jnp.square(sizes), where=kept) / count)
        ratios = jnp.where(kept, root / jnp.where(kept, sizes, 1), 0)
        weights = vectors @ (ratios * (vectors.T @ pi))
        weights = jnp.where(kept.any(), weights, pi)
        return guarded(weights, scaled.finite, pi)

    return from_solver(num_tasks, solve)
