"""Sweeps over pairs of tasks in random order, on the Gramian: PCGrad, GradVac."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mtl_jax._types import Array

Correction = Callable[[Array, Array, Array, Any], tuple[Array, Any]]
"""``(others (T,), products (T,), norms (T,), memory) -> (coefficients (T,), memory)``: for
every task ``i``, what to add of the unit gradient of task ``others[i]``."""


def sweep_pairs(
    gram: Array, key: Array, correct: Correction, memory: Any
) -> tuple[Array, Any]:
    r"""Corrects every task's gradient by the others, each in its own random order.

    The corrected :math:`g_i'` is a combination of the task gradients, so everything
    happens on the matrix of cosines in :math:`O(T^3)`, in units of :math:`\|g_i\|`.

    Args:
        gram: ``(T, T)``.
        key: typed ``()``; draws the orders.
        correct: called once for every position in the orders, with the product of
            :math:`g_i'` and the unit gradient of ``others[i]``, and the norm of
            :math:`g_i'`. What it returns for ``i`` itself and for zero gradients is not
            used.
        memory: passed through the calls.

    Returns:
        Task weights of :math:`\sum_i g_i'`, ``(T,)``, and the memory.
    """
    num_tasks = gram.shape[0]
    tasks = jnp.arange(num_tasks)
    orders = jax.vmap(lambda k: jax.random.permutation(k, num_tasks))(
        jax.random.split(key, num_tasks)
    )
    norms = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
    safe_norms = jnp.where(norms > 0, norms, 1)
    cosines = gram / safe_norms[:, None] / safe_norms[None, :]

    def visit(position: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        rows, memory = carry
        others = orders[:, position]
        products = jnp.sum(rows * cosines[others], axis=1)
        images = jnp.matmul(rows, cosines, precision="highest")
        sizes = jnp.sqrt(jnp.maximum(jnp.sum(rows * images, axis=1), 0))
        added, memory = correct(others, products, sizes, memory)
        usable = (others != tasks) & (norms[others] > 0) & (norms > 0)
        return rows.at[tasks, others].add(jnp.where(usable, added, 0)), memory

    start = (jnp.eye(num_tasks, dtype=cosines.dtype), memory)
    rows, memory = lax.fori_loop(0, num_tasks, visit, start)
    weights = (rows * (norms[:, None] / safe_norms[None, :])).sum(axis=0)
    return weights, memory
