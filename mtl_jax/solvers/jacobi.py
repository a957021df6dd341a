"""Eigenvalues of graded Gramians to high relative accuracy: one-sided Jacobi."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
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
    """Rotates pairs of columns until all are orthogonal; returns them and the rotation.

    All pairs meet once a sweep, in rounds of disjoint ones by the circle method: column
    0 stays, the others move on by one place, and a sweep ends in the order it began.
    """
    num_tasks = columns.shape[0]
    half = (num_tasks + 1) // 2
    # Row i holds column i of both matrices; a zero row is the odd one's partner.
    rows = jnp.concatenate([columns.T, jnp.eye(num_tasks, dtype=columns.dtype)], axis=1)
    rows = jnp.pad(rows, ((0, 2 * half - num_tasks), (0, 0)))

    def rotate(carry: tuple[Array, Array, Array], _: None):
        left, right, worst = carry
        x, y = left[:, :num_tasks], right[:, :num_tasks]
        alpha, beta = jnp.sum(x * x, axis=1), jnp.sum(y * y, axis=1)
        gamma = jnp.sum(x * y, axis=1)
        size = jnp.sqrt(alpha) * jnp.sqrt(beta)
        cosine = jnp.abs(gamma) / jnp.where(size > 0, size, 1)
        needed = cosine > eps
        safe = jnp.where(needed, gamma, 1)
        zeta = (beta - alpha) / (2 * safe)
        sign = jnp.where(zeta >= 0, 1.0, -1.0).astype(zeta.dtype)
        tangent = sign / (jnp.abs(zeta) + jnp.sqrt(1 + jnp.square(zeta)))
        tangent = jnp.where(needed, tangent, 0)[:, None]
        cos = lax.rsqrt(1 + jnp.square(tangent))
        sin = cos * tangent
        left, right = cos * left - sin * right, sin * left + cos * right
        worst = jnp.maximum(worst, jnp.max(jnp.where(needed, cosine, 0)))
        if half > 1:
            left, right = (
                jnp.concatenate([left[:1], right[:1], left[1:-1]]),
                jnp.concatenate([right[1:], left[-1:]]),
            )
        return (left, right, worst), None

    def sweep(state: tuple[Array, Array, Array, Array]):
        left, right, _, count = state
        start = (left, right, jnp.zeros([], columns.dtype))
        carry, _ = lax.scan(rotate, start, length=2 * half - 1)
        return *carry, count + 1

    def unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
        _, _, worst, count = state
        return (worst > num_tasks * eps) & (count < MAX_SWEEPS)

    worst, count = jnp.ones([], columns.dtype), jnp.zeros([], jnp.int32)
    start = (rows[:half], rows[half:][::-1], worst, count)
    left, right, _, _ = lax.while_loop(unfinished, sweep, start)
    rows = jnp.concatenate([left, right[::-1]])[:num_tasks]
    return rows[:, :num_tasks].T, rows[:, num_tasks:].T
