"""Eigenvalues of graded Gramians to high relative accuracy: one-sided Jacobi."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from mtl_jax._types import Array
from mtl_jax.solvers.scaling import ScaledGram, full_precision

MAX_SWEEPS = 24


class GramSpectrum(NamedTuple):
    """Eigendecomposition ``M = V diag(sigma**2) V'`` of a Gramian."""

    singular_values: Array
    """``sigma``, singular values of the Jacobian in units of its largest row norm,
    ``(T,)``, unordered."""
    vectors: Array
    """``V``, orthogonal ``(T, T)``, one eigenvector per column."""
    kept: Array
    """Which of them belong to the numerical rank, bool ``(T,)``."""


@full_precision
def gram_spectrum(scaled: ScaledGram) -> GramSpectrum:
    """Returns the eigendecomposition of a Gramian split into cosines and norms.

    A dense eigensolver's errors are relative to the largest eigenvalue, so gradients
    whose norms span 1e3 lose all digits of the smallest one in float32. One-sided Jacobi
    rotations on the task gradients themselves, in the coordinates ``C = X'X``, keep them:
    their errors depend on the condition of the cosines only (Demmel & Veselić, 1992).

    The rank is that of the cosines, eigenvalues up to ``T`` times the machine epsilon
    counting as zero: the scales of the gradients play no part in it.

    Args:
        scaled: from ``scale_gram``.
    """
    num_tasks = scaled.norms.shape[0]
    dtype = scaled.norms.dtype
    eps = float(jnp.finfo(dtype).eps)
    values, basis = jnp.linalg.eigh(scaled.cosines)
    resolved = values > num_tasks * eps * jnp.max(values)
    roots = jnp.sqrt(jnp.where(resolved, values, 0))
    largest = jnp.max(scaled.norms)
    lengths = scaled.norms / jnp.where(largest > 0, largest, 1)
    columns = (roots[:, None] * basis.T) * lengths[None, :]
    columns, vectors = _orthogonalise(columns, eps)
    sizes = jnp.sqrt(jnp.sum(jnp.square(columns), axis=0))
    rank = resolved.sum()
    order = jnp.argsort(-sizes)
    kept = jnp.zeros(num_tasks, bool).at[order].set(jnp.arange(num_tasks) < rank)
    return GramSpectrum(sizes, vectors, kept & (sizes > 0))


def _orthogonalise(columns: Array, eps: float) -> tuple[Array, Array]:
    """Rotates pairs of columns until all are orthogonal; returns them and the rotation."""
    num_tasks = columns.shape[0]
    eye = jnp.eye(num_tasks, dtype=columns.dtype)
    if num_tasks == 1:
        return columns, eye
    pairs = jnp.asarray(_round_robin(num_tasks))

    def rotate(carry: tuple[Array, Array], pair: Array):
        # Columns of both matrices side by side: one gather and one scatter serve both.
        stacked, worst = carry
        p, q = pair
        left, right = stacked[:, p], stacked[:, q]
        x, y = left[:num_tasks], right[:num_tasks]
        alpha, beta = jnp.sum(x * x, axis=0), jnp.sum(y * y, axis=0)
        gamma = jnp.sum(x * y, axis=0)
        size = jnp.sqrt(alpha) * jnp.sqrt(beta)
        cosine = jnp.abs(gamma) / jnp.where(size > 0, size, 1)
        needed = (cosine > eps) & (p != q)
        safe = jnp.where(needed, gamma, 1)
        zeta = (beta - alpha) / (2 * safe)
        sign = jnp.where(zeta >= 0, 1.0, -1.0).astype(zeta.dtype)
        tangent = sign / (jnp.abs(zeta) + jnp.sqrt(1 + jnp.square(zeta)))
        tangent = jnp.where(needed, tangent, 0)
        cos = lax.rsqrt(1 + jnp.square(tangent))
        sin = cos * tangent
        moved_left = cos[None, :] * left - sin[None, :] * right
        moved_right = sin[None, :] * left + cos[None, :] * right
        # Padding pairs a column with itself: both writes then leave it as it was.
        stacked = stacked.at[:, p].set(moved_left).at[:, q].set(moved_right)
        worst = jnp.maximum(worst, jnp.max(jnp.where(needed, cosine, 0)))
        return (stacked, worst), None

    def sweep(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        stacked, _, count = state
        start = (stacked, jnp.zeros([], columns.dtype))
        (stacked, worst), _ = lax.scan(rotate, start, pairs)
        return stacked, worst, count + 1

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        _, worst, count = state
        return (worst > num_tasks * eps) & (count < MAX_SWEEPS)

    count = jnp.zeros([], jnp.int32)
    start = (jnp.concatenate([columns, eye]), jnp.ones([], columns.dtype), count)
    stacked, _, _ = lax.while_loop(unfinished, sweep, start)
    return stacked[:num_tasks], stacked[num_tasks:]


def _round_robin(num_tasks: int) -> np.ndarray:
    """All pairs in rounds of disjoint ones, ``(rounds, 2, T // 2)``, by the circle method.

    With odd ``T`` one column sits out each round, paired with itself in the padding.
    """
    players = num_tasks + num_tasks % 2
    circle, rounds = list(range(players)), []
    for _ in range(players - 1):
        half = players // 2
        left, right = circle[:half], circle[half:][::-1]
        pairs = [
            (min(a, b), min(a, b)) if max(a, b) == num_tasks else (a, b)
            for a, b in zip(left, right, strict=True)
        ]
        rounds.append(np.array(pairs).T)
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return np.stack(rounds)
