"""Trained Pareto manifolds: their points, evaluation on a grid, and order of losses."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from mtl_jax import storage, tree
from mtl_jax._types import Array, ArrayTree, State, check_choice
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

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the members into a new folder, by orbax; complete or not at all.

        Args:
            folder: must not exist yet; its parents are made.

        Raises:
            ValueError: if the folder exists.
            OSError: if it cannot be written.
            ImportError: without ``orbax-checkpoint``.
        """
        count_members(self.members)
        storage.write_arrays(folder, {"members": self.members})

    @classmethod
    def load(
        cls, folder: str | os.PathLike, *, like: ArrayTree = None
    ) -> ManifoldFront:
        """Reads what :meth:`save` wrote; all arrays are equal bit for bit.

        Args:
            folder: the folder.
            like: parameters of the structure to return, found by the leaves' paths (their
                shapes and values do not matter). Needed where containers are not
                dictionaries; by default parameters are nested dictionaries and lists.

        Returns:
            The front. Without 64-bit mode float64 arrays become float32, as anywhere.

        Raises:
            FileNotFoundError: if there is no such folder.
            ValueError: if it is damaged, holds something else, or does not fit ``like``.
            ImportError: without ``orbax-checkpoint``.
        """
        found = storage.read_arrays(folder)
        if not isinstance(found, dict) or set(found) != {"members"}:
            raise ValueError(f"{folder} holds no Pareto manifold: it lacks 'members'")
        try:
            members = found["members"]
            if like is not None:
                members = storage.match(members, like)
            count_members(members)
        except ValueError as error:
            raise ValueError(f"{folder} holds another manifold: {error}") from None
        return cls(jax.tree.map(jnp.asarray, members))


def evaluate_manifold(
    function: Callable,
    members: ArrayTree,
    grid: Any,
    *args: Any,
    stats: Callable[[ArrayTree], State] | None = None,
    loop: str = "auto",
    batch_size: int | None = None,
) -> Any:
    """Evaluates every point of a grid of a Pareto manifold in one compiled program.

    Args:
        function: ``function(params, *args)`` of one network to a tree of arrays: losses
            ``(T,)``, accuracies, or both.
        members: leaves ``(M, *p)``.
        grid: ``(N, M)``, e.g. ``simplex_grid(M)``.
        args: the same for all points.
        stats: if given, the function is called as ``function(params, stats(params),
            *args)``, with batch statistics of its own at each point: see
            :func:`mtl_jax.pareto.recalibration`. Without it, pass the shared statistics
            as the first of ``args``, and the same function compares both.
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
    members = jax.tree.map(jnp.asarray, members)
    check_alphas("grid", grid, count_members(members), 2)
    at_mixture = Partial(_at_mixture, _as_partial(function), _as_partial(stats))
    options = {"loop": loop, "batch_size": batch_size}
    return evaluate_family(at_mixture, members, grid, *args, **options)


def _at_mixture(
    function: Callable, stats: Callable | None, members: ArrayTree, alpha: Array, *args
) -> Any:
    params = member_mixture(members, alpha)
    if stats is not None:
        args = (stats(params), *args)
    return function(params, *args)


def evaluate_family(
    function: Callable,
    family: ArrayTree,
    grid: Any,
    *args: Any,
    loop: str = "auto",
    batch_size: int | None = None,
) -> Any:
    """Evaluates a family of networks at every point of a grid in one compiled program.

    The same evaluation as :func:`evaluate_manifold` for whatever else maps a point of the
    simplex to a network: low-rank members, hypernetworks, networks with the ray as input.

    Args:
        function: ``function(family, alpha, *args)`` with ``alpha (M,)`` to a tree of
            arrays.
        family: parameters of the family, any pytree.
        grid: ``(N, M)``, e.g. ``simplex_grid(M)``.
        args: the same for all points.
        loop: as of :func:`evaluate_manifold`.
        batch_size: as there.

    Returns:
        The function's results with a leading axis ``N``.

    Raises:
        ValueError: for a grid of another shape or off the simplex, or an unknown loop.

    Examples:
        >>> def losses_fn(family, alpha, x):
        ...     return alpha * (family["w"] @ alpha - x) ** 2
        >>> family = {"w": jnp.array([1.0, 3.0])}
        >>> print(evaluate_family(losses_fn, family, [[1, 0], [0.5, 0.5]], 0.0))
        [[1. 0.]
         [2. 2.]]
    """
    check_choice("loop", loop, STRATEGIES)
    family = jax.tree.map(jnp.asarray, family)
    shape = np.shape(grid)
    grid = check_alphas("grid", grid, shape[-1] if shape else 0, 2)
    alphas = jnp.asarray(grid, tree.accumulator_dtype(family))
    function = _as_partial(function)
    return _evaluate(function, family, alphas, args, loop=loop, batch_size=batch_size)


def _as_partial(function: Any) -> Any:
    """A function as a pytree, so that it may be an argument of a compiled one."""
    return (
        function
        if function is None or isinstance(function, Partial)
        else Partial(function)
    )


@functools.partial(jax.jit, static_argnames=("loop", "batch_size"))
def _evaluate(
    function: Partial,
    family: ArrayTree,
    alphas: Array,
    args: tuple,
    *,
    loop: str,
    batch_size: int | None,
) -> Any:
    def at_point(alpha: Array) -> Any:
        return function(family, alpha, *args)

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
