"""The point of a front that suits a preference best, in NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mtl_jax.metrics import non_dominated


def nearest_index(losses: ArrayLike, preference: ArrayLike) -> int:
    r"""Number of the point with the least weighted Chebyshev distance to the ideal.

    .. math:: \arg\min_{j \text{ not dominated}} \; \max_i \;
        r_i \, \frac{f_i(x_j) - z_i}{Z_i - z_i}

    with :math:`z` and :math:`Z` the least and the greatest losses among the points that
    are not dominated. So the scales of the losses do not matter, and a larger
    :math:`r_i` asks for a smaller loss ``i``: equal ones give the middle of the front,
    and ``e_i`` the end where loss ``i`` is least. Of equally good points the one with the
    smallest sum of normalised losses is taken, then the first.

    Args:
        losses: ``(n, m)``, finite, ``n >= 1``.
        preference: ``r``, ``(m,)``, finite, not negative, not all zero; only its
            direction matters.

    Returns:
        A number in ``0 .. n - 1``.

    Raises:
        ValueError: for another preference.

    Examples:
        >>> losses = [[0.0, 9.0], [1.0, 4.0], [3.0, 3.0], [4.0, 1.0]]
        >>> [nearest_index(losses, r) for r in ([1, 0], [2, 1], [1, 1], [0, 1])]
        [0, 1, 1, 3]
    """
    values, wanted = np.asarray(losses, float), np.asarray(preference, float)
    if wanted.shape != values.shape[1:]:
        raise ValueError(
            f"preference must have shape {values.shape[1:]}, one number per objective, got "
            f"shape {wanted.shape}"
        )
    if not np.isfinite(wanted).all() or wanted.min() < 0 or not wanted.any():
        raise ValueError(
            "preference must be finite, not negative and not all zero, got "
            f"{wanted.tolist()}"
        )
    candidates = np.flatnonzero(non_dominated(values))
    values = values[candidates]
    spread = np.ptp(values, axis=0)
    scaled = (values - values.min(0)) / np.where(spread > 0, spread, 1)
    order = np.lexsort((scaled.sum(1), (wanted * scaled).max(1)))
    return int(candidates[order[0]])
