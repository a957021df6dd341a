"""Sets of preference vectors for studies of fronts, in NumPy."""

from __future__ import annotations

import math

import numpy as np

from mtl_jax._types import check_count, check_range


def mdmtn_preferences() -> np.ndarray:
    """Returns the 90 vectors ``(k0, k1, k2)`` of the study of Hotegni et al.

    ``k0`` is the importance of the sparsity objective: 19 vectors with ``k0 = 0``, 17 with
    0.1, and 18 each with 0.01, 0.001 and 0.0001, in that order.

    Returns:
        float64 ``(90, 3)``, rows on the simplex.

    Examples:
        >>> print(mdmtn_preferences()[[0, 19, 36]])
        [[0.   0.05 0.95]
         [0.1  0.05 0.85]
         [0.01 0.1  0.89]]

    References:
        Hotegni, Berkemeier and Peitz, 2023, arXiv:2308.12243
    """
    rows = [(0.0, i / 20, 1 - i / 20) for i in range(1, 20)]
    rows += [(0.1, i / 20, 0.9 - i / 20) for i in range(1, 18)]
    for k0 in (1e-2, 1e-3, 1e-4):
        values = [i / 10 for i in range(1, 10)]
        rows += [(k0, value, 1 - k0 - value) for value in values]
        rows += [(k0, 1 - k0 - value, value) for value in values]
    return np.array(rows)


def dirichlet_preferences(
    num_points: int, num_objectives: int, *, concentration: float = 1.0, seed: int = 0
) -> np.ndarray:
    """Returns random preference vectors; an even lattice is ``pareto.simplex_grid``.

    Args:
        num_points: ``N >= 1``.
        num_objectives: ``T >= 1``.
        concentration: of the symmetric Dirichlet distribution; 1 is uniform on the
            simplex, larger values prefer its middle.
        seed: of the draw.

    Returns:
        float64 ``(N, T)``, rows on the simplex.

    Raises:
        ValueError: for numbers out of range.

    Examples:
        >>> dirichlet_preferences(5, 3).sum(axis=1)
        array([1., 1., 1., 1., 1.])
    """
    check_count("num_points", num_points, 1)
    check_count("num_objectives", num_objectives, 1)
    check_range("concentration", concentration, 0, math.inf, open_low=True)
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(num_objectives, concentration), num_points)
