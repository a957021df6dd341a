"""Types shared by every layer, and the checks that give readable errors."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
ArrayTree = Any
"""Pytree of arrays shaped like the parameters, leaves ``(*p)``."""
StackedTree = Any
"""Pytree of task gradients: the parameters' structure, leaves ``(T, *p)``."""
LossesFn = Callable[..., Any]
"""``losses_fn(params, *args, **kwargs) -> (T,)`` (or ``((T,), aux)``), pure JAX code."""
State = Any
"""Pytree of arrays carried from one step to the next."""


class Statistics(NamedTuple):
    """What a :class:`Weighting` may look at.

    Any field may be ``None`` when the method at hand does not need it.
    """

    gram: Array | None = None
    """Gramian ``G = J Jᵀ`` of the task gradients, ``(T, T)``, float32 or float64."""
    losses: Array | None = None
    """Task losses, ``(T,)``, floating point."""
    cross_gram: Array | None = None
    """Products :math:`\\langle a_s, b_t \\rangle` of task gradients from other batches,
    ``(T, T)``, not symmetric; see the extra arguments of :func:`mtl_jax.aggregate`."""
    revisited_losses: Array | None = None
    """Losses of the previous step's batch at the present parameters, ``(T,)``: what the
    last update did."""


class Weighting(NamedTuple):
    """Pair of pure functions that turns :class:`Statistics` into task weights.

    ``init() -> state`` and ``update(statistics, state) -> (weights (T,), state)``; all
    state is a pytree of arrays.
    """

    init: Callable[[], State]
    update: Callable[[Statistics, State], tuple[Array, State]]
    num_tasks: int
    """Number of tasks ``T``; fixes the shape of whatever carries the weights."""


class Solution(NamedTuple):
    """Result of a solver that never raises inside ``jit`` and never returns NaN."""

    value: Array
    """The solution, or the solver's documented safe answer where ``ok`` is false."""
    ok: Array
    """Whether ``value`` satisfies the optimality conditions, bool ``()``."""
    iterations: Array
    """Iterations spent, int32 ``()``."""


def check_num_tasks(num_tasks: Any) -> None:
    """Raises ``ValueError`` unless ``num_tasks`` is a Python integer >= 1."""
    if isinstance(num_tasks, bool) or not isinstance(num_tasks, int) or num_tasks < 1:
        raise ValueError(
            f"num_tasks must be a Python integer >= 1 (it fixes shapes, so it cannot be "
            f"an array or a schedule), got {num_tasks!r}"
        )


def check_range(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raises ``ValueError`` unless the number ``value`` (of Python or NumPy) lies in it.

    Arrays and tracers pass unchecked, so that ``optax.inject_hyperparams`` works.
    """
    if isinstance(value, jax.Array):
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number, got {value!r}")
    number = float(value)
    above = number > low if open_low else number >= low
    below = number < high if open_high else number <= high
    if not (above and below):
        left, right = "(" if open_low else "[", ")" if open_high else "]"
        raise ValueError(f"{name} must lie in {left}{low}, {high}{right}, got {value}")


def check_count(name: str, value: Any, low: int) -> None:
    """Raises ``ValueError`` unless ``value`` is a Python integer >= ``low``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be a Python integer >= {low}, got {value!r}")


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raises ``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {sorted(choices)}, got {value!r}")


def check_losses(losses: Any) -> None:
    """Raises ``ValueError`` unless ``losses`` is a floating point vector ``(T,)``."""
    if not isinstance(losses, jax.Array):
        raise ValueError(
            f"losses_fn must return one array of shape (T,), got {type(losses).__name__}; "
            "stack the task losses with jnp.stack([...]) (and pass has_aux=True if "
            "losses_fn also returns auxiliary outputs)"
        )
    if losses.ndim != 1 or not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ValueError(
            "losses_fn must return floating point losses of shape (T,), one per task, "
            f"got shape {losses.shape} and dtype {losses.dtype}"
        )
