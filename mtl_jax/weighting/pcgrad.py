"""PCGrad: projects each task gradient off those it conflicts with."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax._types import (
    Array,
    State,
    Statistics,
    Weighting,
    check_choice,
    check_num_tasks,
)
from mtl_jax.weighting._base import gram_of
from mtl_jax.weighting._pairs import sweep_pairs


class PcgradState(NamedTuple):
    """State of :func:`pcgrad`."""

    key: Array
    """Random key of the next step, typed ``()``."""


def pcgrad(num_tasks: int, *, reduction: str = "sum", seed: int = 0) -> Weighting:
    r"""Gradient surgery: removes from each gradient what points against another task.

    For every task ``i``, starting from :math:`g_i' = g_i`, over the other tasks ``j`` in
    random order: if :math:`\langle g_i', g_j \rangle < 0`, then
    :math:`g_i' \leftarrow g_i' - \langle g_i', g_j\rangle / \|g_j\|^2 \, g_j`. The update
    is :math:`\sum_i g_i'`. Every :math:`g_i'` is a combination of the task gradients, so
    everything happens on the Gramian in :math:`O(T^3)`.

    Args:
        num_tasks: number of tasks ``T``.
        reduction: ``"sum"`` as in the paper and nash-mtl's default, or ``"mean"``.
        seed: seed of the key in the state; each step draws one order per task.

    Returns:
        A weighting that needs the Gramian; its state holds the random key. Task ``i``
        itself is left out of its order, as in the paper and TorchJD (nash-mtl and LibMTL
        include it, and LibMTL adds 1e-8 to the squared norms). Gradients of norm zero are
        skipped.

    Raises:
        ValueError: for an unknown reduction.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.pcgrad(2)
        >>> gram = jnp.array([[4.0, -1.0], [-1.0, 1.0]])
        >>> weights, _ = weighting.update(mtl_jax.Statistics(gram), weighting.init())
        >>> print(*(f"{w:.3f}" for w in weights))
        1.250 2.000

    References:
        Yu et al., *Gradient Surgery for Multi-Task Learning*, 2020, arXiv:2001.06782
    """
    check_num_tasks(num_tasks)
    check_choice("reduction", reduction, ("sum", "mean"))
    factor = 1.0 if reduction == "sum" else 1.0 / num_tasks

    def init() -> PcgradState:
        return PcgradState(jax.random.key(seed))

    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        gram = gram_of(statistics, num_tasks, "pcgrad")
        key, draw_key = jax.random.split(state.key)
        weights, _ = sweep_pairs(gram, draw_key, _project, ())
        return factor * weights, PcgradState(key)

    return Weighting(init, update, num_tasks)


def _project(others: Array, products: Array, sizes: Array, memory: Any) -> Any:
    """Removes what points against the other task."""
    del others, sizes
    return jnp.where(products < 0, -products, 0), memory
