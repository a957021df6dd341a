"""Compiled evaluation of a front of edges or triangles: lengths, samples, losses.

Points are made one at a time (or ``batch_size`` at a time) in a ``lax.map``, so that no
more parameters are held than the front's own and the results.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from mtl_jax import tree
from mtl_jax._types import Array, ArrayTree, check_losses


@jax.jit
def interpolate(
    params: ArrayTree, simplices: Array, simplex: Any, weights: Any
) -> ArrayTree:
    """The corners of one simplex combined with ``weights (d,)``, leaves ``(*p)``."""
    nodes = simplices[simplex]
    corners = jax.tree.map(lambda leaf: leaf[nodes], params)
    return tree.combine(jnp.asarray(weights, tree.accumulator_dtype(params)), corners)


@jax.jit
def along(params: ArrayTree, simplices: Array, ends: Array, t: Any) -> ArrayTree:
    """Parameters at the share ``t`` of the whole length ``ends[-1]``, leaves ``(*p)``."""
    place = jnp.clip(t, 0, 1).astype(ends.dtype) * ends[-1]
    # The first edge that reaches the place: never one of length zero behind it.
    edge = jnp.minimum(jnp.searchsorted(ends, place), len(ends) - 1)
    start = jnp.where(edge > 0, ends[edge - 1], 0)
    length = ends[edge] - start
    weight = (place - start) / jnp.where(length > 0, length, 1)
    return interpolate(params, simplices, edge, jnp.stack([1 - weight, weight]))


def edge_ends(params: ArrayTree, simplices: Array) -> Array:
    """Arc length in parameter space up to the end of each edge, ``(e,)``, not falling.

    Single points have length zero; if there is nothing else, each counts as one.
    """
    lengths = np.asarray(_edge_lengths(params, simplices))
    if not lengths.any():
        lengths = np.ones_like(lengths)
    # In sequence and on the host: a parallel prefix sum may fall by a rounding error.
    return jnp.asarray(np.cumsum(lengths, dtype=np.float64), lengths.dtype)


@jax.jit
def _edge_lengths(params: ArrayTree, simplices: Array) -> Array:
    dtype = tree.accumulator_dtype(params)

    def length(nodes: Array) -> Array:
        squares = [
            jnp.sum(jnp.square(leaf[nodes[1]].astype(dtype) - leaf[nodes[0]]))
            for leaf in jax.tree.leaves(params)
        ]
        return jnp.sqrt(sum(squares, jnp.zeros((), dtype)))

    return lax.map(length, simplices)


@functools.partial(jax.jit, static_argnames="batch_size")
def sample(
    params: ArrayTree,
    simplices: Array,
    origin: Array | np.ndarray,
    weights: Array | np.ndarray,
    batch_size: int | None,
) -> ArrayTree:
    """Parameters at ``weights (N, d)`` of the simplices ``origin (N,)``, stacked."""

    def point(place: tuple[Array, Array]) -> ArrayTree:
        return interpolate(params, simplices, *place)

    return lax.map(point, (origin, weights), batch_size=batch_size)


@functools.partial(jax.jit, static_argnames="batch_size")
def evaluate(
    losses_fn: Partial,
    params: ArrayTree,
    simplices: Array,
    origin: Array | np.ndarray,
    weights: Array | np.ndarray,
    batch_size: int | None,
) -> Array:
    """Losses ``(N, m)`` at the same points; arrays bound in ``losses_fn`` are data."""

    def point(place: tuple[Array, Array]) -> Array:
        losses = losses_fn(interpolate(params, simplices, *place))
        check_losses(losses)
        return losses

    return lax.map(point, (origin, weights), batch_size=batch_size)
