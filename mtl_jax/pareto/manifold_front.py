"""Trained Pareto manifolds: their points, evaluation on a grid, and order of losses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from mtl_jax import tree
from mtl_jax._types import Array, ArrayTree, check_choice
from mtl_jax.pareto.members import count_members, member_mixture
from mtl_jax.pareto.simplex_samplers import check_alphas
from mtl_jax.stacking import STRATEGIES, stack_rows


class ManifoldFront(NamedTuple):
    """A trained Pareto manifold as a function: ``front(alpha) -> parameters``.

    Examples:
        >>> front = ManifoldFront(jnp.array([[1.0], [-1.0]]))
        >>> print(front([0.75, 0.25]))
        [0.5]
        >>> print(front.evaluate(lambda x: jnp.concatenate([x, -x]), [[0, 1], [1, 0]]))
        [[-1.  1.]
         [ 1. -1.]]
    """

    members: ArrayTree
    """Leaves ``(M, *p)``."""

    def __call__(self, alpha: Any) -> ArrayTree:
        """The parameters at ``alpha (M,)``, see :func:`mtl_jax.pareto.member_mixture`."""
        return member_mixture(self.members, alpha)

    def evaluate(
        self, function: Callable, grid: Any, *args: Any, **options: Any
    ) -> Any:
        """See :func:`mtl_jax.pareto.evaluate_manifold`."""
        return evaluate_manifold(function, self.members, grid, *args, **options)


def evaluate_manifold(
    function: Callable,
    members: ArrayTree,
    grid: Any,
    *args: Any,
    loop: str = "auto",
    batch_size: int | None = None,
) -> Any:
    """Evaluates every point of a grid in one compiled program.

    Args:
        function: ``function(params, *args)`` of one network to a tree of arrays: losses
            ``(T,)``, accuracies, or both. A network with batch statistics can recompute
            them here, for each point anew, from data among ``args``.
        members: leaves ``(M, *p)``.
        grid: ``(N, M)``, e.g. ``simplex_grid(M)``.
        args: the same for all points.
        loop: ``"map"``, one point after another, memory of one; ``"vmap"``, all at once;
            ``"unroll"``; ``"auto"``: ``"vmap"`` on accelerators, on CPUs ``"unroll"`` for
            networks with convolutions and ``"map"`` for others. Unrolling takes long to
            compile for grids of many points.
        batch_size: if given, a loop over batches of so many points, each at once.

    Returns:
        The function's results with a leading axis ``N``.

    Raises:
        ValueError: for a grid of another shape or off the simplex, or an unknown loop.

    Pass the same function object again, not a new lambda, and nothing is compiled anew;
    arrays bound with ``jax.tree_util.Partial`` are data.

    Examples:
        >>> from mtl_jax.pareto import simplex_grid
        >>> def losses_fn(x):
        ...     return jnp.stack([jnp.sum((x - 1) ** 2), jnp.sum((x + 1) ** 2)])
        >>> members = jnp.array([[1.0], [-1.0]])
        >>> print(evaluate_manifold(losses_fn, members, simplex_grid(2, 3)))
        [[0. 4.]
         [1. 1.]
         [4. 0.]]
    """
    check_choice("loop", loop, STRATEGIES)
    members = jax.tree.map(jnp.asarray, members)
    grid = check_alphas("grid", grid, count_members(members), 2)
    alphas = jnp.asarray(grid, tree.accumulator_dtype(members))
    function = function if isinstance(function, Partial) else Partial(function)
    return _evaluate(function, members, alphas, args, loop=loop, batch_size=batch_size)


@functools.partial(jax.jit, static_argnames=("loop", "batch_size"))
def _evaluate(
    function: Partial,
    members: ArrayTree,
    alphas: Array,
    args: tuple,
    *,
    loop: str,
    batch_size: int | None,
) -> Any:
    def at_point(alpha: Array) -> Any:
        return function(member_mixture(members, alpha), *args)

    if batch_size is not None:
        return lax.map(at_point, alphas, batch_size=batch_size)
    return stack_rows(at_point, alphas, loop)


def monotonicity(losses: Any, weights: Any) -> Array:
    r"""Tells for each task how well its losses are ordered by its weight.

    The share of the pairs of points with different weights of the task in which the
    point with the larger weight has the smaller loss; equal losses count half, losses
    that are not finite as wrong. 1: all pairs are in order; 1/2: by chance.

    Args:
        losses: ``(N, T)``, or any other measure that is to fall.
        weights: task weights of the points, ``(N, T)``: the grid, times the members'
            preferences if they have others than the identity.

    Returns:
        ``(T,)`` in [0, 1]; 1 where no two points differ in weight.

    Raises:
        ValueError: for shapes other than these.

    Examples:
        >>> weights = jnp.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
        >>> losses = jnp.array([[0.0, 5.0], [1.0, 5.0], [4.0, 5.0]])
        >>> print(monotonicity(losses, weights))
        [1.  0.5]
    """
    losses, weights = jnp.asarray(losses), jnp.asarray(weights)
    if losses.ndim != 2 or losses.shape != weights.shape:
        raise ValueError(
            "losses and weights must both have shape (N, T), points by tasks, got "
            f"{losses.shape} and {weights.shape}"
        )
    heavier = weights[:, None, :] - weights[None, :, :] > 1e-6
    difference = losses[None, :, :] - losses[:, None, :]
    right = jnp.where(difference > 0, 1.0, jnp.where(difference == 0, 0.5, 0.0))
    finite = jnp.isfinite(losses)
    right = jnp.where(finite[:, None, :] & finite[None, :, :], right, 0)
    pairs = heavier.sum(axis=(0, 1))
    share = jnp.where(heavier, right, 0).sum(axis=(0, 1)) / jnp.maximum(pairs, 1)
    return jnp.where(pairs > 0, share, 1)
