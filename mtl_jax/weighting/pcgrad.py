"""PCGrad: projects each task gradient off those it conflicts with."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mtl_jax._types import (
    Array,
    State,
    Statistics,
    Weighting,
    check_choice,
    check_num_tasks,
)
from mtl_jax.weighting._base import gram_of


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
        orders = jax.vmap(lambda k: jax.random.permutation(k, num_tasks))(
            jax.random.split(draw_key, num_tasks)
        )
        norms = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
        safe_norms = jnp.where(norms > 0, norms, 1)
        cosines = gram / safe_norms[:, None] / safe_norms[None, :]
        rows = _project_all(
            cosines, orders
        )  # in units of ||g_i|| and of unit gradients
        weights = (rows * (norms[:, None] / safe_norms[None, :])).sum(axis=0)
        return factor * weights, PcgradState(key)

    return Weighting(init, update, num_tasks)


def _project_all(cosines: Array, orders: Array) -> Array:
    """Row ``i``: coefficients of :math:`g_i' / \\|g_i\\|` in the unit task gradients."""
    num_tasks = cosines.shape[0]
    tasks = jnp.arange(num_tasks)

    def project(position: Array, rows: Array) -> Array:
        others = orders[:, position]
        products = jnp.sum(rows * cosines[others], axis=1)
        conflict = (products < 0) & (others != tasks)
        # A zero gradient has a zero row of cosines, hence never conflicts.
        return rows.at[tasks, others].add(jnp.where(conflict, -products, 0))

    eye = jnp.eye(num_tasks, dtype=cosines.dtype)
    return lax.fori_loop(0, num_tasks, project, eye)
