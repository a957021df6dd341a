"""What every weighting shares: access to the statistics, states, solver wrapping."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax._types import (
    Array,
    Solution,
    State,
    Statistics,
    Weighting,
    check_num_tasks,
)
from mtl_jax.solvers.scaling import full_precision


class EmptyState(NamedTuple):
    """State of a weighting that remembers nothing."""


class SolverState(NamedTuple):
    """State of a weighting that solves a problem at every step."""

    fallbacks: Array
    """How often the solver failed and its safe answer was used, int32 ``()``."""


def gram_of(statistics: Statistics, num_tasks: int, method: str) -> Array:
    """Returns the Gramian, ``(T, T)``, at least float32.

    Raises:
        ValueError: if it is missing or has another shape.
    """
    gram = statistics.gram
    if gram is None:
        raise ValueError(
            f"{method} needs the Gramian of the task gradients: pass "
            "Statistics(gram=...), e.g. from mtl_jax.tree.gram(task_grads)"
        )
    return _checked("the Gramian", gram, (num_tasks, num_tasks))


def losses_of(statistics: Statistics, num_tasks: int, method: str) -> Array:
    """Returns the losses, ``(T,)``, at least float32.

    Raises:
        ValueError: if they are missing or have another shape.
    """
    if statistics.losses is None:
        raise ValueError(
            f"{method} needs the task losses: call update(task_grads, state, params, "
            "losses=losses) with losses of shape (num_tasks,)"
        )
    return _checked("losses", statistics.losses, (num_tasks,))


def _checked(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    array = jnp.asarray(value)
    if array.shape != shape:
        raise ValueError(
            f"{name} must have shape {shape} for {shape[0]} tasks, got {array.shape}"
        )
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def static_weights(
    name: str,
    weights: Sequence[float] | Array | None,
    num_tasks: int,
    default: float,
) -> np.ndarray | Array:
    """Returns given task weights as an array ``(T,)``, or ``default`` everywhere.

    Raises:
        ValueError: unless there are ``T`` finite numbers.
    """
    if weights is None:
        return np.full(num_tasks, default)
    if isinstance(weights, jax.Array):
        if weights.shape != (num_tasks,):
            raise ValueError(
                f"{name} must have shape ({num_tasks},), got {weights.shape}"
            )
        return weights
    array = np.asarray(weights, np.float64)
    if array.shape != (num_tasks,) or not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be {num_tasks} finite numbers, one per task, got {weights!r}"
        )
    return array


def preference_weights(
    name: str,
    weights: Sequence[float] | Array | None,
    num_tasks: int,
    default: float,
) -> np.ndarray | Array:
    """As :func:`static_weights`, for numbers that say how much each task counts.

    Raises:
        ValueError: also for negative numbers, or zeros only (arrays of JAX go unchecked).
    """
    given = static_weights(name, weights, num_tasks, default)
    if isinstance(given, np.ndarray) and ((given < 0).any() or not given.any()):
        raise ValueError(
            f"{name} must be non-negative numbers, not all zero, got {given.tolist()}"
        )
    return given


def stateless(num_tasks: int, weights_of: Callable[[Statistics], Array]) -> Weighting:
    """Makes a weighting of a pure function of the statistics.

    Args:
        num_tasks: number of tasks ``T``.
        weights_of: statistics -> weights ``(T,)``.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> inverse = stateless(2, lambda statistics: 1 / statistics.losses)
        >>> tx = mtl_jax.aggregate(inverse)
        >>> state = tx.init(jnp.zeros(1))
        >>> grads, losses = jnp.array([[1.0], [6.0]]), jnp.array([1.0, 2.0])
        >>> print(tx.update(grads, state, losses=losses)[0])
        [4.]
    """
    check_num_tasks(num_tasks)

    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        return weights_of(statistics), state

    return Weighting(EmptyState, update, num_tasks)


def from_solver(num_tasks: int, solve: Callable[[Statistics], Solution]) -> Weighting:
    """Makes a weighting of a solver; its state counts the fallbacks.

    Args:
        num_tasks: number of tasks ``T``.
        solve: statistics -> :class:`Solution` with the weights ``(T,)``, which are a safe
            answer where ``ok`` is false. Its matrix products run at full precision.

    Examples:
        >>> import jax.numpy as jnp
        >>> def solve(statistics):
        ...     square = statistics.gram[0, 0]
        ...     value = jnp.where(square > 0, 1 / square, 1)
        ...     return Solution(value[None], square > 0, jnp.zeros([], jnp.int32))
        >>> weighting = from_solver(1, solve)
        >>> statistics = Statistics(jnp.zeros((1, 1)))
        >>> weights, state = weighting.update(statistics, weighting.init())
        >>> print(weights, state.fallbacks)
        [1.] 1
    """
    check_num_tasks(num_tasks)
    solve = full_precision(solve)

    def init() -> SolverState:
        return SolverState(jnp.zeros([], jnp.int32))

    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        solution = solve(statistics)
        failed = (~solution.ok).astype(jnp.int32)
        return solution.value, SolverState(state.fallbacks + failed)

    return Weighting(init, update, num_tasks)


def positive_or(weights: Array, losses: Array, safe: Array) -> Solution:
    """``weights`` where all losses are positive, as logarithms need, else ``safe``."""
    return guarded(weights, (losses > 0).all(), safe)


def cross_gram_of(statistics: Statistics, num_tasks: int, method: str) -> Array:
    """Returns the products with other batches' gradients, or the Gramian without them.

    Raises:
        ValueError: if both are missing or have another shape.
    """
    if statistics.cross_gram is None:
        return gram_of(statistics, num_tasks, method)
    return _checked("cross_gram", statistics.cross_gram, (num_tasks, num_tasks))


def revisited_losses_of(statistics: Statistics, num_tasks: int, method: str) -> Array:
    """Returns the previous batch's losses at the present parameters, or the losses."""
    if statistics.revisited_losses is None:
        return losses_of(statistics, num_tasks, method)
    return _checked("revisited_losses", statistics.revisited_losses, (num_tasks,))


def descend(
    optimizer: optax.GradientTransformation,
    gradient: Array,
    parameters: Array,
    opt_state: State,
) -> tuple[Array, State]:
    """One step of the optimiser of a weighting's own trained parameters."""
    step, opt_state = optimizer.update(gradient, opt_state, parameters)
    return jnp.asarray(optax.apply_updates(parameters, step)), opt_state


def bounded_logs(logs: Array) -> Array:
    """Clips learned logarithms to a third of their dtype's range, 29.6 in float32.

    A loss that stays at zero would drive them on until ``exp`` overflows.
    """
    limit = math.log(float(jnp.finfo(logs.dtype).max)) / 3
    return jnp.clip(logs, -limit, limit)


def through_softmax(gradient: Array, weights: Array) -> Array:
    """Pulls a gradient back from the softmax ``weights`` to the logits."""
    return weights * (gradient - jnp.sum(weights * gradient))


def guarded(weights: Array, valid: Array, safe: Array) -> Solution:
    """Returns ``weights`` where ``valid`` and all finite, else ``safe``, as a solution."""
    ok = valid & jnp.isfinite(weights).all()
    return Solution(jnp.where(ok, weights, safe), ok, jnp.zeros([], jnp.int32))
