"""The ZDT2 variant in NumPy, and its closed forms on the Pareto set."""

from typing import NamedTuple

import numpy as np


def losses(x) -> np.ndarray:
    """By ZDT2's own formula on the mapped variables, (2,)."""
    square = x[1] ** 2 + x[2] ** 2
    mapped = np.array([np.sin(x[0] + square), np.cos(square), np.cos(square)]) / 2 + 0.5
    g = 1 + 9 / 2 * mapped[1:].sum()
    return np.array([mapped[0], g * (1 - (mapped[0] / g) ** 2)])


class OnFront(NamedTuple):
    """What is known in closed form at a point with ``x2² + x3² = π``."""

    gradients: np.ndarray  # (2, 3)
    alpha: np.ndarray  # (2,), the weights of stationarity
    hessian: np.ndarray  # (3, 3), of alpha @ losses


def on_front(x) -> OnFront:
    """With c = cos(x1 + π), w = (1, 2 x2, 2 x3), r = (0, 2 x2, 2 x3) and u = f1."""
    u, c = (1 + np.sin(x[0] + np.pi)) / 2, np.cos(x[0] + np.pi)
    w, r = np.array([1, 2 * x[1], 2 * x[2]]), np.array([0, 2 * x[1], 2 * x[2]])
    first = c * w / 2
    alpha = np.array([2 * u, 1]) / (1 + 2 * u)
    # The second derivative of f1 cancels: alpha1 meets it with alpha2 (-2 u).
    bowl = 4.5 * (1 + u**2) * np.outer(r, r)
    hessian = alpha[1] * (bowl - c**2 / 2 * np.outer(w, w))
    return OnFront(np.stack([first, -2 * u * first]), alpha, hessian)


def tangent(x, beta) -> np.ndarray:
    """Minimum-norm solution of ``H v = J' beta``, a multiple of the first axis."""
    u, c = (1 + np.sin(x[0] + np.pi)) / 2, np.cos(x[0] + np.pi)
    length = -(1 + 2 * u) * (beta[0] - 2 * u * beta[1]) / c
    return np.array([length, 0, 0])
