"""How the tasks are weighted at each sampled point of a Pareto manifold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mtl_jax import tree
from mtl_jax._types import Array, State, Statistics, Weighting
from mtl_jax.combined import needs_gram

BALANCES = ("full", "gradnorm", "ls", "rwa")


class Points(NamedTuple):
    """The sampled points of one step."""

    lengths: Array
    r"""Norms of the gradients in all trained parameters together over those of the rows
    of ``shared``, ``(W,)``: :math:`\|\alpha_w\|` for members, else 1."""
    preferences: Array
    """Of the tasks, ``(W, T)``."""
    losses: Array | None
    """``(W, T)``."""
    shared: list[Array] | None
    """Task gradients at the points, leaves ``(W, T, *p)``, without heads; ``None`` for
    rules that do not look at them."""


class Rule(NamedTuple):
    """Pair of pure functions that balances the tasks at every point."""

    init: Callable[[Any], State]
    """``init(dtype) -> state``."""
    update: Callable[[Points, State], tuple[Array, State]]
    """``update(points, state) -> (task weights (W, T), state)``."""
    needs_losses: bool
    needs_grads: bool
    """Whether ``shared`` is looked at."""
    fixed: bool = False
    """Whether the weights are the preferences, whatever losses and gradients are."""


class RunningLosses(NamedTuple):
    """State of the running averages."""

    window: Array
    """The last losses, oldest first, ``(window, T)``."""
    seen: Array
    """How many points were seen, up to the window's length, int32 ``()``."""


def make_rule(
    balance: str | Weighting | Rule, num_tasks: int, *, epsilon: float, window: int
) -> Rule:
    """Returns the rule that ``balance`` names; arguments as in ``pareto_manifold``."""
    if isinstance(balance, Rule):
        return balance
    if isinstance(balance, Weighting):
        return _from_weighting(balance, num_tasks)
    if balance not in BALANCES:
        raise ValueError(
            f"balance must be one of {list(BALANCES)}, a weighting such as "
            f"mtl_jax.weighting.nash_mtl({num_tasks}) or a rule such as "
            f"mtl_jax.pareto.cosmos_balance(), got {balance!r}"
        )
    with_norms, with_averages = (
        balance in ("gradnorm", "full"),
        balance in ("rwa", "full"),
    )

    def init(dtype: Any) -> State:
        if not with_averages:
            return ()
        return RunningLosses(
            jnp.zeros((window, num_tasks), dtype), jnp.zeros([], jnp.int32)
        )

    def update(points: Points, state: State) -> tuple[Array, State]:
        weights = points.preferences
        if with_averages:
            assert points.losses is not None
            factors, state = _running(points.losses, state)
            weights = weights * factors[None, :]
        if with_norms:
            weights = weights / (_member_norms(points) + epsilon)
        return weights, state

    return Rule(
        init,
        update,
        needs_losses=with_averages,
        needs_grads=with_norms,
        fixed=balance == "ls",
    )


def _member_norms(points: Points) -> Array:
    """Norms of the losses' gradients in all members' parameters together, ``(W, T)``.

    Member m's gradient is alpha_m times the mixture's.
    """
    norms = jax.vmap(tree.task_norms)(points.shared)
    return norms * points.lengths.astype(norms.dtype)[:, None]


def _running(losses: Array, state: RunningLosses) -> tuple[Array, RunningLosses]:
    """Factors ``(T,)`` from the losses before this step, and the new averages."""
    length, num_tasks = state.window.shape
    means = jnp.mean(state.window, axis=0)
    total = means.sum()
    # One task's share is all, and shares of negative losses mean nothing.
    known = (state.seen >= length) & (means >= 0).all() & (total > 0)
    known = known & (num_tasks > 1)
    factors = jnp.where(known, 1 - means / jnp.where(total > 0, total, 1), 1)
    recent = jnp.concatenate([state.window, losses.astype(state.window.dtype)])[
        -length:
    ]
    # One loss that is not finite must not stay in the averages for the window's length.
    recent = jnp.where(jnp.isfinite(recent), recent, means[None, :])
    seen = jnp.minimum(state.seen + losses.shape[0], length)
    return factors, RunningLosses(recent, seen)


def _from_weighting(weighting: Weighting, num_tasks: int) -> Rule:
    """Preferences times the weights of each point, one point after another."""
    if weighting.num_tasks != num_tasks:
        raise ValueError(
            f"balance is a weighting of {weighting.num_tasks} tasks, expected {num_tasks}"
        )
    with_gram = needs_gram(weighting)

    def update(points: Points, state: State) -> tuple[Array, State]:
        gram = jax.vmap(tree.gram)(points.shared) if with_gram else None

        def at_point(state: State, point: tuple) -> tuple[State, Array]:
            weights, state = weighting.update(Statistics(*point), state)
            return state, weights

        state, weights = lax.scan(
            at_point, state, (gram, points.losses), length=len(points.lengths)
        )
        return points.preferences * weights.astype(points.preferences.dtype), state

    def init(dtype: Any) -> State:
        del dtype
        return weighting.init()

    return Rule(init, update, needs_losses=False, needs_grads=with_gram)
