"""Pareto manifold learning in NumPy float64, by loops, and its closed forms; problems."""

from itertools import pairwise, product
from math import prod

import jax.numpy as jnp
import numpy as np


def member_updates(alphas, weights, grads):
    """Chain rule of the mixture, ``(W, M), (W, T), (W, T, n)`` to ``(M, n)``."""
    total = np.zeros((alphas.shape[1], grads.shape[2]))
    for w, m, t in product(*map(range, (*alphas.shape, weights.shape[1]))):
        total[m] += alphas[w, m] * weights[w, t] * grads[w, t]
    return total


def penalty(losses, weights, temperature=1.0):
    """Multi-forward regulariser; no two points may have equal weights."""
    total = 0.0
    for t in range(losses.shape[1]):
        order = sorted(range(len(losses)), key=lambda w: -weights[w, t])
        terms = [
            np.exp(temperature * max(losses[high, t] - losses[low, t], 0))
            for high, low in pairwise(order)
        ]
        total += np.log(np.mean(terms))
    return total


def running_factors(history, window):
    """``rwa`` factors from all losses so far, ``(n, T)``."""
    if len(history) < window:
        return np.ones(history.shape[1])
    means = history[-window:].mean(axis=0)
    return 1 - means / means.sum()


def grid(num_members, num_points):
    """All points of the simplex with the given number along an edge, sorted."""
    steps = num_points - 1
    every = product(range(steps + 1), repeat=num_members)
    points = sorted((p for p in every if sum(p) == steps), reverse=True)
    return np.array(points) / steps


def monotonicity(losses, weights):
    """Share of the pairs in order."""
    shares = []
    for t in range(losses.shape[1]):
        right = pairs = 0
        for i, j in product(range(len(losses)), repeat=2):
            if weights[i, t] > weights[j, t]:
                pairs += 1
                right += (np.sign(losses[j, t] - losses[i, t]) + 1) / 2
        shares.append(right / pairs)
    return np.array(shares)


def dirichlet_moment(concentration, powers):
    """``E[prod alpha_m ** powers_m]`` for integer powers."""

    def rising(x, n):
        return prod(x + k for k in range(n))

    top = prod(rising(concentration, n) for n in powers)
    return top / rising(concentration * len(powers), sum(powers))


def line_optimum(scales, concentration):
    """Members that minimise the mean of ``sum_t alpha_t c_t |x - a_t|^2`` for two tasks.

    As coordinates along the line from ``a_1`` (0) to ``a_2`` (1).
    """

    def moment(*members):
        powers = np.bincount(members, minlength=2)
        return dirichlet_moment(concentration, [int(n) for n in powers])

    matrix, right = np.zeros((2, 2)), np.zeros(2)
    for m, t in product(range(2), repeat=2):
        right[m] += scales[t] * t * moment(m, t)
        for k in range(2):
            matrix[m, k] += scales[t] * moment(m, t, k)
    return np.linalg.solve(matrix, right)


def points_of(seed, samples, num_tasks, num_members=None, num_params=24):
    """Random alphas, losses and gradients in float64."""
    rng = np.random.default_rng(seed)
    alphas = rng.dirichlet(np.ones(num_members or num_tasks), samples)
    losses = rng.uniform(0.5, 3, (samples, num_tasks))
    return alphas, losses, rng.normal(size=(samples, num_tasks, num_params))


def quadratics(x, centres, scales):
    """``c_i |x - a_i|^2`` for ``x (n,)``, centres ``(T, n)``, scales ``(T,)``."""
    return scales * jnp.sum(jnp.square(x[None] - centres), axis=1)
