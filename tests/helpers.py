"""Stacked task gradients for the tests: trees, and families of Jacobians."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest


def params_of(dtype=jnp.float32):
    """Parameters with nesting, several ranks and a scalar; P = 24."""
    return {
        "encoder": {"kernel": jnp.zeros((4, 3), dtype), "bias": jnp.zeros(3, dtype)},
        "scale": jnp.zeros((), dtype),
        "heads": {"kernel": jnp.zeros((2, 2, 2), dtype)},
    }


def tree_of(jacobian, dtype=jnp.float32):
    """Unravels rows ``(T, 24)`` into a stacked tree shaped like :func:`params_of`."""
    rows = jnp.asarray(jacobian, dtype)
    num_tasks = rows.shape[0]
    return {
        "encoder": {
            "kernel": rows[:, :12].reshape(num_tasks, 4, 3),
            "bias": rows[:, 12:15],
        },
        "scale": rows[:, 15],
        "heads": {"kernel": rows[:, 16:].reshape(num_tasks, 2, 2, 2)},
    }


def rows_of(tree):
    """Inverse of :func:`tree_of`, also for combined updates (then one row)."""
    leaves = [
        tree["encoder"]["kernel"],
        tree["encoder"]["bias"],
        tree["scale"],
        tree["heads"]["kernel"],
    ]
    base_ranks = (2, 1, 0, 3)
    flat = []
    for leaf, rank in zip(leaves, base_ranks, strict=True):
        leaf = np.asarray(leaf, np.float64)
        flat.append(leaf.reshape(*leaf.shape[: leaf.ndim - rank], -1))
    return np.concatenate(flat, axis=-1)


def jacobian_of(seed: int, num_tasks: int, num_params: int = 24) -> np.ndarray:
    """Random rows that conflict: a common direction plus noise, norms over a decade."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(1, num_params))
    rows = rng.normal(size=(num_tasks, num_params)) + 0.4 * common
    return rows * 10 ** rng.uniform(-0.5, 0.5, size=(num_tasks, 1))


def adversarial_jacobians(num_params: int = 24):
    """Yields ``(name, jacobian)``: what breaks released codes."""
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(2, num_params))
    base = jacobian_of(3, 3, num_params)
    yield "zeros", np.zeros((3, num_params))
    yield "zero row", base * np.array([[1.0], [0.0], [1.0]])
    yield "duplicates", np.stack([a, a, b])
    yield "identical", np.stack([a, a, a])
    yield "opposed", np.stack([a, -a])
    yield "opposed, unequal", np.stack([a, -3 * a, b])
    yield "nearly parallel", np.stack([a, a + 1e-7 * b, a - 1e-7 * b])
    yield "nearly opposed", np.stack([a, -a + 1e-6 * b])
    yield "stationary", np.stack([a, b, -0.3 * a - 0.6 * b])
    yield "one task", a[None]
    yield "norms 1e-15", 1e-15 * base
    yield "norms 1e15", 1e15 * base
    yield "norms 1e-6 to 1e6", base * np.array([[1e-6], [1.0], [1e6]])
    low_rank = rng.normal(size=(12, 2)) @ rng.normal(size=(2, num_params))
    yield "rank 2, 12 tasks", low_rank
    yield "more tasks than parameters", jacobian_of(5, 40, num_params)


def slow_but(keep, values):
    """Parameters for ``parametrize``: those not in ``keep`` are marked slow."""
    return [
        value
        if value in keep
        else pytest.param(
            *(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow
        )
        for value in values
    ]
