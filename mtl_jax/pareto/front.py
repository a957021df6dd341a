"""A continuous Pareto front: interpolation between traced points, kept where it is good."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from mtl_jax import storage, tree
from mtl_jax._types import Array, ArrayTree, LossesFn, check_range
from mtl_jax.metrics import non_dominated
from mtl_jax.pareto import assemble, grid, mesh
from mtl_jax.pareto import preference as preference_rule

NAMES = ("params", "losses", "simplices")


@jax.tree_util.register_pytree_node_class
class ParetoFront:
    r"""Points of a Pareto front, joined to edges or triangles along which it continues.

    On an edge from :math:`x_a` to :math:`x_b` the front's parameters are
    :math:`(1 - w) x_a + w x_b`, and on a triangle the same with three weights. Where the
    corners are Pareto-stationary points at distance :math:`h`, the parameters between
    them are off the Pareto set by :math:`O(h^2)`, and the losses off the front by
    :math:`O(h^4)`: the first-order change of :math:`\alpha \cdot f` vanishes there.
    The released code has no interpolation; the paper describes it in words.

    A front is a pytree, so it passes through ``jit``; building, pruning, saving and
    loading one is host code.

    Args:
        params: the points' parameters, leaves ``(n, *p)``, floating point.
        losses: their losses ``(n, m)``, ``m >= 2``, finite.
        simplices: integers ``(e, 2)``, edges, or ``(e, 3)``, triangles: numbers of points
            in ``0 .. n - 1``. Two equal ones ``(i, i)`` are a single point, which
            ``front(t)`` passes over.
        preferences: task weights that belong to the points, ``(n, m)``, such as the
            convex combination of task gradients that vanishes there; carried along.

    Attributes:
        ends: Euclidean length in parameter space up to the end of each edge, ``(e,)``;
            ``None`` for triangles.

    Raises:
        ValueError: for shapes, numbers or dtypes other than these.

    Examples:
        >>> x = jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 3.0]])
        >>> losses_fn = lambda x: jnp.stack([x[0] + x[1], 2 - x[0]])
        >>> front = ParetoFront(x, jax.vmap(losses_fn)(x), [[0, 1], [1, 2]])
        >>> front
        ParetoFront(3 points, 2 edges, 2 objectives)
        >>> print(front(0.5))  # half of the length 1 + 3
        [1. 1.]
        >>> print(front.evaluate(losses_fn, 2)[:, 0])
        [0.  0.5 1.  2.5 4. ]
        >>> front.without_dominated(losses_fn, 2)
        ParetoFront(3 points, 2 edges, 2 objectives)

    References:
        Ma, Du and Matusik, *Efficient Continuous Pareto Exploration in Multi-Task
        Learning*, 2020, arXiv:2006.16434
    """

    def __init__(
        self,
        params: ArrayTree,
        losses: Any,
        simplices: Any,
        preferences: Any = None,
    ) -> None:
        assemble.check_parts(assemble.Parts(params, losses, simplices, preferences))
        self.params = jax.tree.map(jnp.asarray, params)
        self.losses = jnp.asarray(losses)
        self.simplices = jnp.asarray(np.asarray(simplices), jnp.int32)
        self.preferences = None if preferences is None else jnp.asarray(preferences)
        is_chain = self.simplices.shape[1] == 2
        self.ends = grid.edge_ends(self.params, self.simplices) if is_chain else None

    def tree_flatten(self) -> tuple[tuple, None]:
        """Children for JAX: everything is data."""
        fields = (self.params, self.losses, self.simplices, self.preferences)
        return (*fields, self.ends), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Sequence[Any]) -> ParetoFront:
        """Rebuilds a front around any leaves, unchecked."""
        front = object.__new__(cls)
        front.params, front.losses, front.simplices = children[:3]
        front.preferences, front.ends = children[3:]
        return front

    def __repr__(self) -> str:
        (points, objectives), (count, width) = self.losses.shape, self.simplices.shape
        kind = "edges" if width == 2 else "triangles"
        return f"ParetoFront({points} points, {count} {kind}, {objectives} objectives)"

    def __call__(self, t: float | Array) -> ArrayTree:
        """Parameters at the share ``t`` of the front's whole length.

        The edges are passed in their order, each in proportion to its length in parameter
        space. Where one edge does not start at the end of the one before, between two
        chains or where a piece was removed, the parameters jump.

        Args:
            t: scalar in ``[0, 1]``; for many values ``jax.vmap(front)(ts)``. Arrays are
                clipped to the interval, so that it works under ``jit``.

        Returns:
            The parameters, leaves ``(*p)``.

        Raises:
            ValueError: on a front of triangles (use :meth:`at`), for an array that is not
                a scalar, or a number outside the interval.
        """
        if self.ends is None:
            raise ValueError(
                "front(t) needs a front of edges, and this one has triangles: use "
                "front.at(simplex, weights)"
            )
        if np.ndim(t):
            raise ValueError(
                f"t must be a scalar, got shape {np.shape(t)}: use jax.vmap(front)(t)"
            )
        if not isinstance(t, jax.Array):
            check_range("t", np.asarray(t).item(), 0, 1)
        return grid.along(self.params, self.simplices, self.ends, t)

    def at(self, simplex: int | Array, weights: Any) -> ArrayTree:
        """Parameters at barycentric ``weights`` of one simplex; works under ``jit``.

        Args:
            simplex: its number, ``0 .. e - 1``.
            weights: ``(2,)`` on an edge, ``(3,)`` on a triangle, of sum one (not checked).

        Returns:
            The parameters, leaves ``(*p)``, in the dtypes of the points.

        Raises:
            ValueError: for weights of another shape, or a number that is not there.
        """
        count, width = self.simplices.shape
        if np.shape(weights) != (width,):
            raise ValueError(
                f"weights must have shape ({width},), one per corner of the simplex, got "
                f"{np.shape(weights)}"
            )
        if isinstance(simplex, int | np.integer) and not 0 <= simplex < count:
            raise ValueError(f"simplex must lie in 0 .. {count - 1}, got {simplex}")
        weights = jnp.asarray(weights, tree.accumulator_dtype(self.params))
        return grid.interpolate(self.params, self.simplices, simplex, weights)

    def nearest(self, preference: Any) -> ArrayTree:
        """Parameters of the point that suits a preference best.

        It minimises ``max_i r_i * normalised loss_i`` among the front's points that are
        not dominated, see :func:`mtl_jax.pareto.preference.nearest_index`; between points
        nothing is searched, so refine the front first:
        ``front.without_dominated(losses_fn, 10).nearest([1, 2])``.

        Args:
            preference: ``r``, ``(m,)``, not negative; a larger ``r_i`` asks for a smaller
                loss ``i``.

        Returns:
            The parameters, leaves ``(*p)``.

        Raises:
            ValueError: for another shape, or numbers that are negative, not finite or
                all zero.
        """
        index = self.nearest_index(preference)
        return jax.tree.map(lambda leaf: leaf[index], self.params)

    def nearest_index(self, preference: Any) -> int:
        """Number of the point that :meth:`nearest` returns, for its losses and the like."""
        return preference_rule.nearest_index(np.asarray(self.losses), preference)

    def sample(self, per_simplex: int, *, batch_size: int | None = None) -> ArrayTree:
        """Parameters on a regular grid of the front, ``per_simplex`` parts to an edge.

        Args:
            per_simplex: ``k >= 1``. An edge has its ends and ``k - 1`` points between
                them, a triangle ``(k + 1)(k + 2) / 2`` points; those that simplices share
                occur once. ``1`` gives the points themselves, in the simplices' order.
            batch_size: so many points are made at a time, one after another by default.

        Returns:
            Stacked parameters, leaves ``(N, *p)``, in the order of the simplices.

        Raises:
            ValueError: for ``per_simplex < 1``.
        """
        origin, weights, _ = self._grid(per_simplex)
        return self._sample(origin, weights, batch_size)

    def evaluate(
        self,
        losses_fn: LossesFn,
        per_simplex: int,
        *,
        batch_size: int | None = None,
    ) -> Array:
        """Losses on the grid of :meth:`sample`, without storing its parameters.

        One ``lax.map`` under ``jit``; the same ``losses_fn`` is compiled once.

        Args:
            losses_fn: ``losses_fn(params) -> (m,)``, floating point. Arrays that it
                closes over become constants of the compiled program: bind large ones with
                ``jax.tree_util.Partial(function, arrays)``.
            per_simplex: parts of an edge, as in :meth:`sample`.
            batch_size: so many points are evaluated at a time by ``vmap``.

        Returns:
            losses ``(N, m)``, as they come: they may be non-finite.

        Raises:
            ValueError: for ``per_simplex < 1``, or losses of another shape.
        """
        origin, weights, _ = self._grid(per_simplex)
        return self._evaluate(losses_fn, origin, weights, batch_size)

    def without_dominated(
        self,
        losses_fn: LossesFn,
        per_simplex: int,
        *,
        batch_size: int | None = None,
    ) -> ParetoFront:
        """The front's grid without the points that others on it dominate.

        The grid of :meth:`sample` is evaluated, and an edge or triangle of it is kept if
        none of its corners is dominated (the weak rule of
        :func:`mtl_jax.metrics.non_dominated`; non-finite losses count as dominated). Good
        points that lose all their neighbours stay, at the end, as single points; so the
        new points are exactly those of the grid that are not dominated.

        Args:
            losses_fn: as in :meth:`evaluate`, like the other arguments.
            per_simplex: parts of an edge; every part becomes an edge of its own.
            batch_size: so many points are evaluated at a time by ``vmap``.

        Returns:
            A new front with the evaluated losses; preferences are interpolated.

        Raises:
            ValueError: as :meth:`evaluate`, or if no point of the grid has finite losses.
        """
        origin, weights, finer = self._grid(per_simplex)
        losses = self._evaluate(losses_fn, origin, weights, batch_size)
        values = np.asarray(losses)
        keep = np.asarray(np.isfinite(values).all(axis=1))
        if not keep.any():
            raise ValueError(
                "losses_fn gave non-finite losses everywhere on the front: nothing is left"
            )
        keep[keep] = non_dominated(values[keep])
        nodes, simplices = mesh.keep_nodes(finer, keep)
        origin, weights = origin[nodes], weights[nodes]
        params = self._sample(origin, weights, batch_size)
        preferences = None
        if self.preferences is not None:
            corners = np.asarray(self.preferences)[np.asarray(self.simplices)[origin]]
            preferences = np.einsum("nd,ndm->nm", weights, corners).astype(
                corners.dtype
            )
        return ParetoFront(params, values[nodes], simplices, preferences)

    @classmethod
    def from_trace(
        cls,
        trace: Any,
        *,
        join: bool = False,
        neighbours: Sequence[tuple[int, int]] | None = None,
    ) -> ParetoFront:
        """Joins the points of a trace to a front.

        Two objectives give edges. The two directions of a start are one chain through it
        (any other number of directions are chains of their own); chains are turned and
        ordered so that loss 1 rises. With ``join`` there is one chain through all starts
        instead: the points that are not dominated, in the order of loss 1. It is
        continuous, but neighbours from different starts need not lie near each other in
        parameter space, and there interpolation can fail: see :meth:`without_dominated`.

        Three objectives give triangles: between each two neighbouring directions of a
        start, from step to step. Neighbours are found from the first steps, by their
        angle in the plane that they span (:func:`mtl_jax.pareto.mesh.fan_neighbours`).

        A chain ends before the first point with non-finite losses; points that nothing
        is joined to become single points. Dominated ones stay, but with ``join``.

        Args:
            trace: with fields ``params``, leaves ``(S, K, N + 1, *p)``, and ``losses``
                ``(S, K, N + 1, m)``: ``S`` starts, ``K`` directions, the start itself at
                step 0; and, if it has them, ``alphas``, shaped like the losses, which
                become the preferences.
            join: one chain for all starts, for two objectives.
            neighbours: pairs of directions to span triangles between, for three
                objectives; found by angle by default.

        Returns:
            The front of all traced points that are used.

        Raises:
            ValueError: for other shapes, another number of objectives, a trace without a
                finite point, three objectives with all steps on one line, or an option
                that belongs to another number of objectives.
        """
        return cls(*assemble.parts_of_trace(trace, join, neighbours))

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the front into a new folder, by orbax; complete or not at all.

        Args:
            folder: must not exist yet; its parents are made.

        Raises:
            ValueError: if the folder exists.
            OSError: if it cannot be written.
            ImportError: without ``orbax-checkpoint``.
        """
        names = [*NAMES, "preferences"][: 3 if self.preferences is None else 4]
        storage.write_arrays(folder, {name: getattr(self, name) for name in names})

    @classmethod
    def load(cls, folder: str | os.PathLike, *, like: ArrayTree = None) -> ParetoFront:
        """Reads a front that :meth:`save` wrote; all arrays are equal bit for bit.

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
        if not isinstance(found, dict) or not set(NAMES) <= set(found):
            raise ValueError(
                f"{folder} holds no Pareto front: it lacks some of {NAMES}"
            )
        try:
            if like is not None:
                found["params"] = storage.match(found["params"], like)
            return cls(*[found.get(name) for name in (*NAMES, "preferences")])
        except ValueError as error:
            raise ValueError(f"{folder} holds another front: {error}") from None

    def _grid(self, per_simplex: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        integer = isinstance(per_simplex, int | np.integer)
        if isinstance(per_simplex, bool) or not integer or per_simplex < 1:
            raise ValueError(
                f"per_simplex must be an integer >= 1, got {per_simplex!r}"
            )
        return mesh.refine(np.asarray(self.simplices), int(per_simplex))

    def _sample(
        self, origin: np.ndarray, weights: np.ndarray, batch_size: int | None
    ) -> ArrayTree:
        return grid.sample(self.params, self.simplices, origin, weights, batch_size)

    def _evaluate(
        self,
        losses_fn: LossesFn,
        origin: np.ndarray,
        weights: np.ndarray,
        batch_size: int | None,
    ) -> Array:
        # A Partial is a pytree: its function is static, arrays bound in it are data.
        function = losses_fn if isinstance(losses_fn, Partial) else Partial(losses_fn)
        losses = grid.evaluate(
            function, self.params, self.simplices, origin, weights, batch_size
        )
        if losses.shape[1] != self.losses.shape[1]:
            raise ValueError(
                f"losses_fn returns {losses.shape[1]} losses, but the front has "
                f"{self.losses.shape[1]} objectives"
            )
        return losses
