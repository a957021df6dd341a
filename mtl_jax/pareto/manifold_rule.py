"""What Pareto manifold learning does apart from gradients: points, task weights, spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mtl_jax import tree
from mtl_jax._types import (
    Array,
    ArrayTree,
    StackedTree,
    State,
    Weighting,
    check_count,
    check_num_tasks,
    check_range,
)
from mtl_jax.pareto.balancing import Points, Rule, make_rule
from mtl_jax.pareto.members import count_members
from mtl_jax.pareto.multi_forward import multi_forward_penalty
from mtl_jax.pareto.simplex_samplers import Draw, make_sampler
from mtl_jax.solvers.scaling import full_precision


class ManifoldState(NamedTuple):
    """State of :func:`mtl_jax.pareto.pareto_manifold`."""

    alphas: Array
    """The points at which the next gradients are to be taken, ``(W, M)``."""
    weights: Array
    """Task weights of the last step's points, regulariser included, ``(W, T)``; ones
    before the first."""
    penalty: Array
    """The multi-forward regulariser at the last step's points, before its factor, ``()``;
    zero where the factor is."""
    key: Array
    """Random key of the points after the next, typed ``()``."""
    inner: State
    """State of the balancing."""


class ManifoldRule(NamedTuple):
    """What :func:`pareto_manifold` does, apart from the gradients."""

    balance: Rule
    draw: Draw
    preferences: np.ndarray
    samples: int
    regularizer: float | Array
    temperature: float | Array
    gate: bool
    heads: tree.HeadsSpec
    seed: int

    @property
    def regularized(self) -> bool:
        """Whether the regulariser's factor may differ from zero."""
        return isinstance(self.regularizer, jax.Array) or self.regularizer > 0

    def init(self, members: ArrayTree) -> ManifoldState:
        """The first state for stacked members ``(M, *p)``."""
        count_members(members, len(self.preferences))
        return self.start(members)

    def start(self, params: ArrayTree) -> ManifoldState:
        """The first state for any parameters."""
        tree.resolve_heads(self.heads, params)
        dtype = tree.accumulator_dtype(params)
        num_tasks = self.preferences.shape[1]
        key, draw_key = jax.random.split(jax.random.key(self.seed))
        return ManifoldState(
            alphas=self.draw(draw_key, dtype),
            weights=jnp.ones((self.samples, num_tasks), dtype),
            penalty=jnp.zeros([], dtype),
            key=key,
            inner=self.balance.init(dtype),
        )

    def apply(
        self, grads: StackedTree, state: ManifoldState, losses: Array | None
    ) -> tuple[ArrayTree, ManifoldState]:
        """Gradients ``(W, T, *p)`` to updates ``(M, *p)`` and the new state."""
        check_point_grads(grads, *state.weights.shape)
        new_state = self.update(state, losses, self.shared(grads))
        return spread(state.alphas, new_state.weights, grads), new_state

    def shared(self, grads: StackedTree) -> list[Array] | None:
        """The leaves ``(W, T, *p)`` that the balance looks at."""
        if not self.balance.needs_grads:
            return None
        leaves = jax.tree.leaves(grads)
        marks = tree.resolve_heads(self.heads, grads)
        if marks is None:
            return leaves
        pairs = zip(leaves, jax.tree.leaves(marks), strict=True)
        return [leaf for leaf, is_head in pairs if not is_head]

    @full_precision
    def update(
        self,
        state: ManifoldState,
        losses: Array | None,
        shared: list[Array] | None,
        *,
        own: bool = False,
    ) -> ManifoldState:
        """The state after a step; its ``weights`` are those of the step.

        ``own``: whether the gradients are in the trained parameters already, not in those
        of the mixtures.
        """
        dtype = state.alphas.dtype
        losses = self._check_losses(losses)
        wide = None if losses is None else losses.astype(dtype)
        preferences = state.alphas @ jnp.asarray(self.preferences, dtype)
        squares = jnp.sum(jnp.square(state.alphas), axis=1)
        lengths = jnp.ones_like(squares) if own else jnp.sqrt(squares)
        points = Points(lengths, preferences, wide, shared)
        weights, inner = self.balance.update(points, state.inner)
        weights, penalty = weights.astype(dtype), jnp.zeros([], dtype)
        if self.regularized:
            assert wide is not None
            penalty, slopes = jax.value_and_grad(multi_forward_penalty)(
                wide, preferences, temperature=self.temperature
            )
            factor = jnp.asarray(self.regularizer, dtype)
            if self.gate:
                factor = jnp.where(
                    factor * penalty < jnp.sum(weights * wide), factor, 0
                )
            weights = weights + factor * slopes
        key, draw_key = jax.random.split(state.key)
        return ManifoldState(self.draw(draw_key, dtype), weights, penalty, key, inner)

    def _check_losses(self, losses: Any) -> Array | None:
        if losses is None:
            if not (self.regularized or self.balance.needs_losses):
                return None
            raise ValueError(
                "the regulariser and balances such as 'rwa' and 'full' need the losses: "
                "call update(grads, state, members, losses=losses) with losses of shape "
                "(W, T)"
            )
        wanted = (self.samples, self.preferences.shape[1])
        if jnp.shape(losses) != wanted:
            raise ValueError(
                f"losses must have shape (W, T) = {wanted}, the losses of every task at "
                f"every sampled point, got {jnp.shape(losses)}"
            )
        return lax.stop_gradient(jnp.asarray(losses))


def make_manifold_rule(
    num_tasks: int,
    *,
    num_members: int | None = None,
    preferences: Any = None,
    samples: int = 1,
    sampler: Any = "dirichlet",
    concentration: float | Sequence[float] = 1.0,
    balance: str | Weighting | Rule = "ls",
    epsilon: float = 1e-3,
    window: int = 25,
    regularizer: float | Array = 0.0,
    temperature: float | Array = 1.0,
    gate: bool = False,
    heads: tree.HeadsSpec = None,
    seed: int = 0,
) -> ManifoldRule:
    """Checks the options of :func:`pareto_manifold`."""
    check_num_tasks(num_tasks)
    check_count("window", window, 1)
    check_range("epsilon", epsilon, 0, open_low=True)
    check_range("regularizer", regularizer, 0)
    check_range("temperature", temperature, 0, open_low=True)
    table = _preferences(preferences, num_members, num_tasks)
    return ManifoldRule(
        balance=make_rule(balance, num_tasks, epsilon=epsilon, window=window),
        draw=make_sampler(sampler, len(table), samples, concentration),
        preferences=table,
        samples=samples,
        regularizer=regularizer,
        temperature=temperature,
        gate=gate,
        heads=heads,
        seed=seed,
    )


def spread(alphas: Array, weights: Array, grads: StackedTree) -> ArrayTree:
    r"""Returns :math:`\sum_{wt} \alpha_{wm} c_{wt} g_{wt}`, leaves ``(M, *p)``.

    Args:
        alphas: ``(W, M)``.
        weights: ``(W, T)``, of the same dtype.
        grads: leaves ``(W, T, *p)``.
    """
    coefficients = alphas.T[:, :, None] * weights[None, :, :]

    def leaf_spread(leaf: Array) -> Array:
        dtype = jnp.promote_types(leaf.dtype, coefficients.dtype)
        return lax.dot_general(
            coefficients.astype(dtype),
            leaf.astype(dtype),
            (((1, 2), (0, 1)), ((), ())),
            precision=lax.Precision.HIGHEST,
        ).astype(leaf.dtype)

    return jax.tree.map(leaf_spread, grads)


def check_point_grads(grads: StackedTree, samples: int, num_tasks: int) -> None:
    """Raises ``ValueError`` unless every leaf is floating point ``(W, T, *p)``."""
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    if not leaves:
        raise ValueError("the tree of gradients has no leaves")
    for path, leaf in leaves:
        shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
        if shape[:2] != (samples, num_tasks) or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"leaf {tree.path_name(path) or '(the whole tree)'!r} of the gradients has "
                f"shape {shape} and dtype {dtype}, expected floating point "
                f"({samples}, {num_tasks}, ...): one gradient per sampled point and task "
                "(mtl_jax.pareto.value_and_manifold_grads returns them so)"
            )


def _preferences(
    preferences: Any, num_members: int | None, num_tasks: int
) -> np.ndarray:
    """The members' task weights ``(M, T)``, float64."""
    if num_members is not None:
        check_count("num_members", num_members, 1)
    if preferences is None:
        if num_members not in (None, num_tasks):
            raise ValueError(
                f"with num_members={num_members} for {num_tasks} tasks say what each "
                "member stands for: preferences of shape (M, T), one row of task weights "
                "per member"
            )
        return np.eye(num_tasks)
    table = np.asarray(preferences, np.float64)
    rows = table.shape[0] if num_members is None and table.ndim == 2 else num_members
    if table.shape != (rows, num_tasks):
        raise ValueError(
            f"preferences must have shape (M, T) = ({rows or 'M'}, {num_tasks}), got "
            f"{table.shape}"
        )
    sums = table.sum(axis=1)
    if not (table >= 0).all() or not np.allclose(sums, 1, atol=1e-3):
        raise ValueError(
            "each row of preferences must lie on the simplex (entries >= 0 with sum 1), "
            f"got the rows {table.tolist()}"
        )
    return table
