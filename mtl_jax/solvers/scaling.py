"""Gramians split into cosines and norms: what makes float32 solvers exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

from mtl_jax._types import Array

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Runs all matrix products inside ``function`` at the precision of their dtype.

    Accelerators multiply float32 matrices in TF32 or bfloat16 unless told not to.
    """
    return jax.default_matmul_precision("highest")(function)


class ScaledGram(NamedTuple):
    """A Gramian with its row norms taken out, so that every number is of order one.

    ``z_i = w_i n_i / min(n)`` are the scaled weights: ``w = z * inverse_norms``.
    """

    cosines: Array
    """``C_ij = M_ij / (n_i n_j)``, ``(T, T)``, zero in the rows of zero gradients."""
    inverse_norms: Array
    """``min(n) / n_i`` in ``(0, 1]``, ``(T,)``, zero for zero gradients."""
    norms: Array
    """``n_i = sqrt(M_ii)``, ``(T,)``."""
    nonzero: Array
    """Which task gradients are not zero, bool ``(T,)``."""
    finite: Array
    """Whether the whole Gramian is finite, bool ``()``."""


def check_gram(gram: Array) -> Array:
    """Returns ``gram`` in floating point; ``ValueError`` unless it is ``(T, T)``."""
    gram = jnp.asarray(gram)
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] < 1:
        raise ValueError(f"gram must have shape (T, T) with T >= 1, got {gram.shape}")
    return gram.astype(jnp.promote_types(gram.dtype, jnp.float32))


def scale_gram(gram: Array) -> ScaledGram:
    """Splits a Gramian into cosines and norms; a non-finite one becomes the identity."""
    finite = jnp.all(jnp.isfinite(gram))
    gram = jnp.where(finite, gram, jnp.eye(gram.shape[0], dtype=gram.dtype))
    norms = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
    nonzero = norms > 0
    divisors = jnp.where(nonzero, norms, jnp.inf)
    # Two divisions, because the product of two norms may leave float32's range.
    cosines = gram / divisors[:, None] / divisors[None, :]
    smallest = jnp.min(divisors)
    inverse_norms = jnp.where(nonzero, jnp.where(nonzero.any(), smallest, 1), 0)
    inverse_norms = inverse_norms / jnp.where(nonzero, norms, 1)
    return ScaledGram(cosines, inverse_norms, norms, nonzero, finite)
