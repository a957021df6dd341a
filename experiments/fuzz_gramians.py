"""Families of random Gramians for the fuzz: every scale, rank and kind of conflict."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Family = Callable[[np.random.Generator, int, int], np.ndarray]
"""``(rng, count, T) -> task gradients (count, T, P)`` of norms about one, float64."""


def _random(rng: np.random.Generator, count: int, num_tasks: int) -> np.ndarray:
    size = 2 * num_tasks + 2
    return rng.normal(size=(count, num_tasks, size)) / size**0.5


def _log_uniform(
    rng: np.random.Generator, low: float, high: float, *shape: int
) -> np.ndarray:
    return 10 ** rng.uniform(low, high, size=shape)


def _conflicting(rng: np.random.Generator, count: int, num_tasks: int) -> np.ndarray:
    rows = _random(rng, count, num_tasks)
    part = rng.uniform(0.3, 0.98, size=(count, 1, 1))
    return rows - part * rows.mean(1, keepdims=True)


def _badly_scaled(rng: np.random.Generator, count: int, num_tasks: int) -> np.ndarray:
    rows = _conflicting(rng, count, num_tasks)
    return rows * _log_uniform(rng, -5, 5, count, num_tasks, 1)


def _low_rank(rng: np.random.Generator, count: int, num_tasks: int) -> np.ndarray:
    rank = rng.integers(1, num_tasks + 1, size=(count, 1, 1))
    rows = rng.normal(size=(count, num_tasks, num_tasks))
    rows = np.where(np.arange(num_tasks) < rank, rows, 0) / rank**0.5
    rows[::2, :, 0] = np.abs(rows[::2, :, 0])  # half of them with a common descent
    return rows


def _rank_one(rng: np.random.Generator, count: int, num_tasks: int) -> np.ndarray:
    factors = _log_uniform(rng, -2, 2, count, num_tasks, 1)
    signs = rng.choice([-1.0, 1.0], size=(count, num_tasks, 1))
    signs[::2] = 1
    return factors * signs


def _zero_rows(rng: np.random.Generator, count: int, num_tasks: int) -> np.ndarray:
    keep = rng.uniform(size=(count, num_tasks, 1)) < rng.uniform(size=(count, 1, 1))
    return _conflicting(rng, count, num_tasks) * keep


def _duplicates(rng: np.random.Generator, count: int, num_tasks: int) -> np.ndarray:
    rows = _conflicting(rng, count, num_tasks)
    chosen = rng.integers(0, (num_tasks + 1) // 2, size=(count, num_tasks, 1))
    return np.take_along_axis(rows, chosen, axis=1)


def _opposed(rng: np.random.Generator, count: int, num_tasks: int) -> np.ndarray:
    signs = rng.choice([-1.0, 1.0], size=(count, num_tasks, 1))
    return signs * _duplicates(rng, count, num_tasks)


def _nearly_parallel(
    rng: np.random.Generator, count: int, num_tasks: int
) -> np.ndarray:
    rows = _random(rng, count, num_tasks)
    return rows[:, :1] + _log_uniform(rng, -6, -1, count, 1, 1) * rows


def _near_stationary(
    rng: np.random.Generator, count: int, num_tasks: int
) -> np.ndarray:
    rows = _random(rng, count, num_tasks)
    balance = rng.dirichlet(np.ones(num_tasks), size=(count, 1))
    slack = _log_uniform(rng, -7, -1, count, 1, 1)
    return rows - (1 - slack) * (balance @ rows)


FAMILIES: dict[str, Family] = {
    "random": _random,
    "conflicting": _conflicting,
    "badly scaled": _badly_scaled,
    "low rank": _low_rank,
    "rank one": _rank_one,
    "zero rows": _zero_rows,
    "duplicates": _duplicates,
    "opposed": _opposed,
    "nearly parallel": _nearly_parallel,
    "near stationary": _near_stationary,
}


def gramians(
    rng: np.random.Generator, family: str, count: int, num_tasks: int
) -> np.ndarray:
    """Random Gramians ``(count, T, T)``, float32, of one family.

    All are multiplied by a common scale, so that the gradients' norms cover 1e-15 to
    1e15 and the Gramians 1e-30 to 1e30. Computed in float64 and rounded once.
    """
    rows = FAMILIES[family](rng, count, num_tasks)
    reach = 10 if family == "badly scaled" else 15
    rows = rows * _log_uniform(rng, -reach, reach, count, 1, 1)
    rows = rows * np.where(np.linalg.norm(rows, axis=2) > 1e-15, 1, 0)[..., None]
    products = rows @ rows.transpose(0, 2, 1)
    return products.astype(np.float32)
