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
        A weighting that needs the Gramian. Eigenvalues up to :math:`\lambda_{\max} T
        \epsilon` count as zero, with the machine epsilon of the Gramian. All-zero
        gradients give the preference (the update is zero), and a non-finite Gramian too,
        counted as a fallback.

    Raises:
        ValueError: for a wrong number of preferences or an unknown scale.

    References:
        Senushkin et al., *Independent Component Alignment for Multi-Task Learning*, 2023,
        arXiv:2305.19000
    """
    check_num_tasks(num_tasks)
    check_choice("scale", scale, ("min", "median", "rmse"))
    given = static_weights("preference", preference, num_tasks, 1.0 / num_tasks)

    def solve(statistics: Statistics) -> Solution:
        gram = gram_of(statistics, num_tasks, "aligned_mtl")
        finite = jnp.isfinite(gram).all()
        pi = jnp.asarray(given, gram.dtype)
        largest = jnp.max(jnp.diagonal(gram))
        unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
        values, vectors = jnp.linalg.eigh(jnp.where(finite, gram / unit, 0))
        threshold = num_tasks * jnp.finfo(gram.dtype).eps * jnp.max(values)
        kept = values > threshold
        count = jnp.maximum(kept.sum(), 1)
        if scale == "min":
            size = jnp.min(values, where=kept, initial=jnp.inf)
        elif scale == "median":
            # Eigenvalues ascend, so the kept ones are the last `count`.
            size = values[num_tasks - count + (count - 1) // 2]
        else:
            size = jnp.where(kept, values, 0).sum() / count
        roots = jnp.sqrt(size / jnp.where(kept, values, 1))
        weights = vectors @ (jnp.where(kept, roots, 0) * (vectors.T @ pi))
        weights = jnp.where(kept.any(), weights, pi)
        return guarded(weights, finite, pi)

    return from_solver(num_tasks, solve)
