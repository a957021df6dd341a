"""Quadratic objectives, whose Pareto sets, tangents and distances are known; in NumPy."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize


class Quadratics(NamedTuple):
    """``f_i(x) = (x - c_i)' A_i (x - c_i) / 2``, float64."""

    matrices: np.ndarray
    """``A``, ``(m, n, n)``, symmetric positive definite."""
    centres: np.ndarray
    """``c``, ``(m, n)``."""

    def losses(self, x):
        """``(..., n)`` to ``(..., m)``."""
        offsets = np.asarray(x, np.float64)[..., None, :] - self.centres
        images = np.einsum("mij,...mj->...mi", self.matrices, offsets)
        return 0.5 * (offsets * images).sum(axis=-1)

    def jacobian(self, x):
        """``(m, n)``."""
        return np.einsum("mij,mj->mi", self.matrices, np.asarray(x) - self.centres)

    def hessian(self, alpha):
        """Of the weighted sum, ``(n, n)``."""
        return np.einsum("m,mij->ij", alpha, self.matrices)

    def point(self, alpha):
        """The Pareto point where the weighted sum is least, ``(n,)``."""
        rhs = np.einsum("m,mij,mj->i", alpha, self.matrices, self.centres)
        return np.linalg.solve(self.hessian(alpha), rhs)

    def tangent(self, alpha, beta, damping=0.0):
        """``(H + damping I)^-1 J' beta`` at the Pareto point of ``alpha``."""
        hessian = self.hessian(alpha) + damping * np.eye(self.centres.shape[1])
        return np.linalg.solve(hessian, self.jacobian(self.point(alpha)).T @ beta)

    def distance(self, x):
        """Euclidean distance from ``x`` to the Pareto set of two objectives."""

        def square(weight):
            return np.sum((self.point(np.array([weight, 1 - weight])) - x) ** 2)

        found = scipy.optimize.minimize_scalar(
            square, bounds=(0, 1), method="bounded", options={"xatol": 1e-12}
        )
        return np.sqrt(found.fun)


SHEET = Quadratics(
    np.stack([np.diag([1.0, 4.0]), np.diag([3.0, 1.0])]),
    np.array([[0.0, 0.0], [1.0, 1.0]]),
)
"""The worked example: at equal weights x = (0.75, 0.2), H = diag(2, 2.5)."""

SPHERES = Quadratics(
    np.tile(np.eye(4), (3, 1, 1)),
    np.array([[0.0, 0, 0, 1], [2, 1, 0, 0], [0, 3, 1, 0]]),
)
"""Three objectives with unit matrices: the Pareto set is the triangle of the centres."""


def random_quadratics(seed, num_objectives, size):
    """Condition numbers of about ten."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(num_objectives, size, size)) / np.sqrt(size)
    matrices = factors @ factors.transpose(0, 2, 1) + 0.5 * np.eye(size)
    return Quadratics(matrices, rng.normal(size=(num_objectives, size)))


def quadratic_losses(params, matrices, centres):
    """The losses in JAX, of any pytree with as many entries as the problem has."""
    x = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(params)])
    offsets = x[None] - centres
    return 0.5 * jnp.einsum("mi,mij,mj->m", offsets, matrices, offsets)


def losses_fn_of(problem, dtype=jnp.float32):
    """:func:`quadratic_losses` of this problem, as a function of the parameters only."""
    matrices, centres = (np.asarray(array, dtype) for array in problem)
    return lambda params: quadratic_losses(params, matrices, centres)
