"""Float64 oracle for the Nash bargaining weights, from the Jacobian itself."""

from collections.abc import Iterator

import numpy as np

from tests.references import cone


def weights(jacobian: np.ndarray) -> np.ndarray:
    """``alpha > 0`` with ``J J' alpha = 1 / alpha``, for rows that are not zero.

    Damped Newton on the unit rows ``U``. Each step solves ``(I + B U U' B) y = -r`` as
    a least-squares problem in ``U' B``, so ``U U'`` is never formed and what it would
    lose by rounding is kept. The result is checked before it is returned.
    """
    norms = np.linalg.norm(jacobian, axis=1)
    rows = np.asarray(jacobian, np.float64) / norms[:, None]
    beta = np.ones(len(rows))
    for _ in range(10_000):
        scaled = beta[:, None] * rows
        residual = scaled @ scaled.sum(0) - 1
        stacked = np.vstack([np.eye(len(rows)), scaled.T])
        right = np.concatenate([-residual, np.zeros(rows.shape[1])])
        step = np.linalg.lstsq(stacked, right, rcond=None)[0]
        decrement = np.sqrt(max(0.0, -residual @ step))
        beta = beta * (1 + step / (1 if decrement < 0.25 else 1 + decrement))
        if decrement < 1e-12:
            break
    alpha = beta / norms
    np.testing.assert_allclose(beta * (rows @ (beta @ rows)), 1, atol=1e-9)
    return alpha


def well_posed(rng: np.random.Generator, num_tasks: int) -> Iterator:
    """Named Jacobians far enough from stationarity for float32, no zero rows."""
    for name, jacobian in cone.well_posed(rng, num_tasks):
        if name not in ("zero row", "negative"):
            yield name, jacobian
    yield "tight", rng.normal(size=(num_tasks, num_tasks + 1))
    yield "one parameter", rng.uniform(0.5, 2, size=(num_tasks, 1))


def equicorrelated(num_tasks: int, cosine: float) -> np.ndarray:
    """Cosine Gramian with every pair of tasks at the same cosine."""
    return (1 - cosine) * np.eye(num_tasks) + cosine
