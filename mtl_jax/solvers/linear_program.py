"""Small linear programs on a simplex, solved exactly by trying every vertex."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax._types import Array, Solution
from mtl_jax.solvers.scaling import full_precision

LARGEST = 6


@full_precision
def maximise_on_vertices(
    objective: Array, total: Array, matrix: Array, bounds: Array
) -> Solution:
    r"""Maximises ``objective'z`` over ``z >= 0, total'z = 1, matrix z >= bounds``.

    The set is a polytope, so one of its vertices is a maximiser; each is the solution of
    a ``T x T`` system with ``T - 1`` of the ``T + C`` inequalities tight. All systems are
    solved at once, and the solutions that violate an inequality by more than rounding are
    left out: no pivoting rules, no cycling, nothing to diverge. With ``C = T + 1`` that is
    21 systems for three variables and 1287 for six.

    Args:
        objective: ``(T,)``, ``T <= 6``, of order one like all the others.
        total: ``(T,)``, positive.
        matrix: ``(C, T)``.
        bounds: ``(C,)``; ``-inf`` for no constraint.

    Returns:
        Solution with ``value`` ``(T,)``: the mean of the vertices that are best to
        rounding, so that equal variables get equal values; ``ok`` says that there are
        vertices. Where not, ``value`` is the middle of the simplex. ``iterations`` counts
        vertices.

    Raises:
        ValueError: for more than six variables.

    >>> objective, ones = jnp.array([1.0, 2.0]), jnp.ones(2)
    >>> matrix, bounds = jnp.array([[1.0, 0.0]]), jnp.array([0.25])
    >>> maximise = jax.jit(maximise_on_vertices)  # one compilation, not many
    >>> print(maximise(objective, ones, matrix, bounds).value)
    [0.25 0.75]
    """
    size, dtype = objective.shape[0], objective.dtype
    if size > LARGEST:
        raise ValueError(
            f"linear programs are solved by their vertices for up to {LARGEST} variables, "
            f"got {size}"
        )
    eps = 16 * size * float(jnp.finfo(dtype).eps)
    rows = jnp.concatenate([jnp.eye(size, dtype=dtype), matrix])
    limits = jnp.concatenate([jnp.zeros(size, dtype), bounds])
    bounded = limits > -jnp.inf
    limits = jnp.where(bounded, limits, 0)
    tight = np.array(list(itertools.combinations(range(len(rows)), size - 1)), int)
    tight = tight.reshape(math.comb(len(rows), size - 1), size - 1)

    scaled = total / jnp.max(total)
    first = jnp.broadcast_to(scaled, (len(tight), 1, size))
    systems = jnp.concatenate([first, rows[tight]], axis=1)
    right = jnp.full((len(tight), 1), 1 / jnp.max(total), dtype)
    right = jnp.concatenate([right, limits[tight]], axis=1)
    points = jnp.linalg.solve(systems, right[..., None])[..., 0]

    solved = jnp.isfinite(points).all(axis=1) & bounded[tight].all(axis=1)
    points = jnp.where(solved[:, None], points, 0)
    sizes = jnp.abs(points) @ jnp.abs(rows).T + jnp.abs(limits)[None]
    slack = points @ rows.T - limits[None] + eps * sizes
    # Entries of a point are rounded relative to its largest, not to themselves.
    slack = slack.at[:, :size].add(eps * jnp.max(jnp.abs(points), axis=1)[:, None])
    solved &= ((slack >= 0) | ~bounded[None]).all(axis=1)
    sums = points @ total
    solved &= jnp.abs(sums - 1) <= jnp.sqrt(eps)
    points = jnp.maximum(points, 0)

    values = jnp.where(solved, points @ objective, -jnp.inf)
    rounding = eps * (points @ jnp.abs(objective))
    best = solved & (values + rounding >= jnp.max(values - rounding))
    count = jnp.sum(best)
    mean = best.astype(dtype) @ points / jnp.maximum(count, 1)
    return Solution(
        value=jnp.where(count > 0, mean, 1 / (size * total)),
        ok=count > 0,
        iterations=jnp.asarray(len(tight), jnp.int32),
    )


def relaxing(
    objective: Array, total: Array, matrix: Array, bounds: Array, extra: int
) -> Solution:
    """As :func:`maximise_on_vertices`, without row ``extra`` where nothing satisfies it."""
    relaxed = bounds.at[extra].set(-jnp.inf)
    both = jax.vmap(maximise_on_vertices, (None, None, None, 0))(
        objective, total, matrix, jnp.stack([bounds, relaxed])
    )
    pick = jnp.where(both.ok[0], 0, 1)
    return Solution(both.value[pick], both.ok[pick], both.iterations[0])
