"""What the methods for the modified weighted Chebyshev problem share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from mtl_jax._types import Array, check_num_tasks, check_range
from mtl_jax.weighting._base import static_weights

_TOLERANCE = 1e-3  # of the sum of the importance: enough for the paper's 0.9999 - v


class Objectives(NamedTuple):
    r"""The constraints :math:`h_i = k_i [(L_i - a_i) + \epsilon \sum_j (L_j - a_j)]`.

    Objectives with :math:`k_i = 0` are dropped, from the sum, too.
    """

    importance: np.ndarray | Array
    """:math:`k`, ``(T,)``."""
    reference: np.ndarray | Array
    """:math:`a`, ``(T,)``."""
    epsilon: float | Array

    def active(self) -> Array:
        """Which objectives count, bool ``(T,)``."""
        return jnp.asarray(self.importance) > 0

    def values(self, losses: Array) -> Array:
        """:math:`h`, ``(T,)``; zero where not active."""
        active = self.active()
        k = jnp.asarray(self.importance, losses.dtype)
        gaps = jnp.where(active, losses - jnp.asarray(self.reference, losses.dtype), 0)
        return k * (gaps + self.epsilon * jnp.sum(gaps))

    def task_weights(self, multipliers: Array) -> Array:
        r""":math:`\sum_i m_i \nabla h_i = \sum_j w_j \nabla L_j`, ``(T,)``."""
        scaled = jnp.asarray(self.importance, multipliers.dtype) * multipliers
        weights = scaled + self.epsilon * jnp.sum(scaled)
        return jnp.where(self.active(), weights, 0)

    def jacobian(self, dtype: Any) -> Array:
        r""":math:`B_{ij} = \partial h_i / \partial L_j`, ``(T, T)``."""
        size = jnp.shape(self.importance)[0]
        k, active = jnp.asarray(self.importance, dtype), self.active().astype(dtype)
        spread = jnp.eye(size, dtype=dtype) + self.epsilon * active[None, :]
        return k[:, None] * spread


def make_objectives(
    num_tasks: int, importance: Any, reference: Any, epsilon: float | Array
) -> Objectives:
    """Checks the problem's numbers.

    Raises:
        ValueError: for an importance off the simplex, or other bad numbers.
    """
    check_num_tasks(num_tasks)
    check_range("epsilon", epsilon, 0)
    k = static_weights("importance", importance, num_tasks, 1 / num_tasks)
    if not isinstance(k, Tracer):
        values = np.asarray(k, np.float64)
        if (values < 0).any() or abs(values.sum() - 1) > _TOLERANCE:
            raise ValueError(
                "importance must lie on the simplex (entries >= 0 with sum 1), got "
                f"{values.tolist()} with sum {values.sum():.6g}; divide by the sum"
            )
    if isinstance(reference, int | float):
        check_range("reference", reference, -np.inf, np.inf)
        reference = np.full(num_tasks, float(reference))
    a = static_weights("reference", reference, num_tasks, 0.0)
    return Objectives(k, a, epsilon)


def check_reference(losses: Array, reference: Sequence[float] | Any) -> Array:
    """Returns whether a loss lies below its reference, ``()``.

    Raises:
        ValueError: if one does and the values are known (not inside ``jit``).
    """
    bound = jnp.asarray(reference, losses.dtype)
    below = losses < bound
    if not isinstance(below, Tracer) and bool(below.any()):
        raise ValueError(
            "reference must lie below every loss (it is an ideal point, e.g. zeros), got "
            f"losses {np.asarray(losses).tolist()} and reference "
            f"{np.asarray(bound).tolist()}"
        )
    return jnp.any(below)
