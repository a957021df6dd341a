"""Scores of multi-task runs, in NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def delta_m(
    metrics: ArrayLike, baseline: ArrayLike, higher_is_better: ArrayLike
) -> float:
    r"""Mean relative loss against single-task networks, in percent; lower is better.

    .. math:: \Delta m = \frac{100}{k} \sum_i (-1)^{\delta_i} \frac{M_i - B_i}{B_i}

    with :math:`\delta_i = 1` where a higher :math:`M_i` is better. The mean runs over
    metrics, as in Nash-MTL and CAGrad; LibMTL averages within each task first, and its
    sign is the opposite.

    Args:
        metrics: the method's metrics :math:`M`, ``(k,)``.
        baseline: the single-task networks' metrics :math:`B`, ``(k,)``, none zero.
        higher_is_better: bool ``(k,)``, or one bool for all.

    Returns:
        The score; negative if the method beats the single-task networks on average.

    Raises:
        ValueError: for shapes that do not fit, or a baseline of zero.

    Examples:
        >>> print(delta_m([0.45, 2.2], [0.5, 2.0], [True, False]))  # 10 % worse in both
        10.0

    References:
        Maninis et al., *Attentive Single-Tasking of Multiple Tasks*, 2019,
        arXiv:1904.08918
    """
    values, base = np.asarray(metrics, float), np.asarray(baseline, float)
    if values.ndim != 1 or not values.size or values.shape != base.shape:
        raise ValueError(
            "metrics and baseline must be vectors of the same length >= 1, got shapes "
            f"{values.shape} and {base.shape}"
        )
    if not base.all():
        raise ValueError("baseline must not contain zeros: Δm divides by it")
    signs = np.where(_directions(higher_is_better, len(values)), -1.0, 1.0)
    return round(float(100 * np.mean(signs * (values - base) / base)), 12)


def mean_rank(
    table: ArrayLike, higher_is_better: ArrayLike | Sequence[bool]
) -> np.ndarray:
    """Rank of each method averaged over the metrics; 1 is the best, ties are averaged.

    Args:
        table: ``(methods, metrics)``; leave the single-task networks out, as published.
        higher_is_better: bool ``(metrics,)``, or one bool for all.

    Returns:
        Mean ranks ``(methods,)``.

    Raises:
        ValueError: for shapes that do not fit.

    Examples:
        >>> print(mean_rank([[0.9, 3.0], [0.8, 2.0], [0.9, 4.0]], [True, False]))
        [1.75 2.   2.25]
    """
    values = np.asarray(table, float)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"table must be (methods, metrics), got shape {values.shape}")
    signs = np.where(_directions(higher_is_better, values.shape[1]), -1.0, 1.0)
    costs = values * signs[None, :]
    better = (costs[None, :, :] < costs[:, None, :]).sum(1)
    equal = (costs[None, :, :] == costs[:, None, :]).sum(1)  # counts the method itself
    return (better + (equal + 1) / 2).mean(1)


def _directions(higher_is_better: ArrayLike, count: int) -> np.ndarray:
    flags = np.asarray(higher_is_better, bool)
    if flags.shape not in ((), (count,)):
        raise ValueError(
            f"higher_is_better must be one bool or {count}, one per metric, got shape "
            f"{flags.shape}"
        )
    return np.broadcast_to(flags, (count,))
