"""The volume that a front dominates, in NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mtl_jax.metrics.fronts import check_points


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    r"""Volume of what the points dominate, up to the reference point; larger is better.

    .. math:: \lambda\Big(\bigcup_{f \in F} [f_1, r_1] \times \dots \times [f_m, r_m]\Big)

    Exact. One, two and three objectives are computed here, the third by slices, in
    ``O(n^2)``; more of them by the package ``moocore``, imported only then.

    Dominated points and duplicates add nothing, and neither does a point that is not
    smaller than the reference in every objective: its box is empty or flat. (The released
    helper, for two objectives, counts dominated points negatively and boxes outside the
    reference with their sign.) The order of the points does not matter.

    Args:
        points: objectives ``(n, m)``, finite, minimised; ``n`` may be 0.
        reference: the reference point ``(m,)``, finite: worse than all points of interest.

    Returns:
        The volume, ``>= 0``.

    Raises:
        ValueError: for arrays that are not finite or of other shapes.
        ImportError: for four or more objectives without ``moocore``.

    Examples:
        >>> hypervolume([[0, 2], [1, 1], [2, 2], [9, 0]], [3, 3])
        5.0
        >>> hypervolume([[0, 0, 1], [1, 1, 0]], [2, 2, 2])
        5.0

    References:
        Zitzler and Thiele, *Multiobjective Evolutionary Algorithms*, IEEE Transactions
        on Evolutionary Computation 3 (1999) 257-271; Fonseca, Paquete and López-Ibáñez,
        *An improved dimension-sweep algorithm for the hypervolume indicator*, CEC 2006
    """
    values, corner = check_points("points", points), np.asarray(reference, float)
    num_objectives = values.shape[1]
    if corner.shape != (num_objectives,) or not np.isfinite(corner).all():
        raise ValueError(
            f"reference must be one finite point of {num_objectives} objectives, like "
            f"the points, got {reference!r}"
        )
    # From here on extents below the reference: larger is better.
    extents = corner[None, :] - values
    extents = extents[(extents > 0).all(1)]
    if not len(extents):
        return 0.0
    if num_objectives == 1:
        return float(extents.max())
    if num_objectives == 2:
        return _area(extents[np.argsort(-extents[:, 0])])
    if num_objectives == 3:
        return _volume(extents)
    return _any_volume(extents)


def _area(extents: np.ndarray) -> float:
    """Area of the boxes from zero to ``extents (n, 2)``, which fall in the first entry."""
    heights = np.maximum.accumulate(extents[:, 1])
    return float(extents[:, 0] @ np.diff(heights, prepend=0.0))


def _volume(extents: np.ndarray) -> float:
    """Volume of boxes ``(n, 3)``: areas between the levels of the third entry."""
    extents = extents[np.argsort(-extents[:, 0])]
    order = np.argsort(-extents[:, 2])
    levels = extents[order, 2]
    # A box that starts at a lower level has height zero till then, which adds no area.
    slices = np.stack([extents[:, 0], np.zeros(len(extents))], axis=1)
    volume = 0.0
    for index, thickness in zip(order, levels - np.append(levels[1:], 0), strict=True):
        slices[index, 1] = extents[index, 1]
        if thickness:
            volume += thickness * _area(slices)
    return float(volume)


def _any_volume(extents: np.ndarray) -> float:
    try:
        import moocore
    except ImportError:
        raise ImportError(
            f"the hypervolume of {extents.shape[1]} objectives needs the package "
            "moocore: pip install moocore"
        ) from None
    return float(moocore.hypervolume(-extents, ref=np.zeros(extents.shape[1])))
