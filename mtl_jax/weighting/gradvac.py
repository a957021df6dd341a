"""GradVac: raises the cosines between task gradients to their running averages."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax._types import (
    Array,
    State,
    Statistics,
    Weighting,
    check_num_tasks,
    check_range,
)
from mtl_jax.weighting._base import gram_of
from mtl_jax.weighting._pairs import sweep_pairs


class GradvacState(NamedTuple):
    """State of :func:`gradvac`."""

    key: Array
    """Random key of the next step, typed ``()``."""
    targets: Array
    """:math:`\\hat\\rho_{ij}`, float ``(T, T)``."""


def gradvac(num_tasks: int, *, beta: float = 0.5, seed: int = 0) -> Weighting:
    r"""Gradient vaccine: PCGrad with a learned target for every cosine instead of zero.

    For every task ``i`` over the other tasks ``j`` in random order, with
    :math:`\rho = \cos(g_i', g_j)`: if :math:`\rho < \hat\rho_{ij}`, adds

    .. math:: \frac{\|g_i'\| (\hat\rho \sqrt{1-\rho^2} - \rho \sqrt{1-\hat\rho^2})}
                   {\|g_j\| \sqrt{1-\hat\rho^2}}\, g_j

    which makes the cosine :math:`\hat\rho_{ij}`; then in any case
    :math:`\hat\rho_{ij} \leftarrow (1-\beta) \hat\rho_{ij} + \beta \rho`. The update is
    :math:`\sum_i g_i'`. The targets start at zero: the first step is PCGrad's.

    Args:
        num_tasks: number of tasks ``T``.
        beta: :math:`\beta` in [0, 1], speed of the averages; 0.5 in LibMTL.
        seed: seed of the key in the state; each step draws one order per task.

    Returns:
        A weighting that needs the Gramian. The paper's groups (whole model, layer,
        matrix) are :func:`mtl_jax.groupwise`. Gradients of norm zero are skipped and
        leave their targets alone; LibMTL adds 1e-8 to the denominators instead.

    Raises:
        ValueError: if ``beta`` is out of range.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> tx = mtl_jax.gradvac(2)
        >>> grads = jnp.array([[1.0, 0.0], [-1.0, 1.0]])
        >>> update, _ = tx.update(grads, tx.init(jnp.zeros(2)))
        >>> print(*(f"{x:.2f}" for x in update))
        0.50 1.50

    References:
        Wang et al., *Gradient Vaccine*, 2020, arXiv:2010.05874
    """
    check_num_tasks(num_tasks)
    check_range("beta", beta, 0, 1)
    tasks = jnp.arange(num_tasks)

    def init() -> GradvacState:
        return GradvacState(
            jax.random.key(seed), jnp.zeros((num_tasks, num_tasks), float)
        )

    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        gram = gram_of(statistics, num_tasks, "gradvac")
        present = jnp.diagonal(gram) > 0

        def correct(
            others: Array, products: Array, sizes: Array, targets: Array
        ) -> tuple[Array, Any]:
            rho = products / jnp.where(sizes > 0, sizes, 1)
            rho = jnp.clip(rho, -1, 1)
            target = targets[tasks, others]
            wanted = target.astype(rho.dtype)
            far = jnp.sqrt(jnp.maximum(1 - jnp.square(wanted), 0))
            gap = wanted * jnp.sqrt(1 - jnp.square(rho)) - rho * far
            added = sizes * gap / jnp.where(far > 0, far, 1)
            # A target of one would take an infinite step.
            added = jnp.where((rho < wanted) & (far > 0), added, 0)
            seen = (others != tasks) & present & present[others]
            moved = (1 - beta) * target + beta * rho.astype(target.dtype)
            return added, targets.at[tasks, others].set(jnp.where(seen, moved, target))

        key, draw_key = jax.random.split(state.key)
        weights, targets = sweep_pairs(gram, draw_key, correct, state.targets)
        return weights, GradvacState(key, targets)

    return Weighting(init, update, num_tasks)
