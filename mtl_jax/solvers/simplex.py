"""Min-norm point of the convex hull of the task gradients, from their Gramian.

Microseconds a call, jitted, float32, one CPU core (random gradients; with conflicts and
row norms over 1e-3..1e3 in brackets), and seconds to compile at T = 10:

===========  =========  =========  =========  =======
solver       T=2        T=10       T=40       compile
===========  =========  =========  =========  =======
closed form  23 (23)    -          -          -
active set   35 (35)    68 (67)    101 (84)   1.4
jaxopt       188 (190)  245 (240)  556 (447)  2.4
Frank-Wolfe  26 (30)    57 (57)    121 (121)  0.7
===========  =========  =========  =========  =======

Frank-Wolfe's update is then still off by a few per cent (T = 3), 12 % (T = 40, random).
So two tasks use the closed form and more the active set, the fastest of those that are
exact. ``python -m experiments bench --part solvers`` measures again.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtl_jax._types import Array, Solution, check_choice
from mtl_jax.solvers.active_set import minimise_on_simplex
from mtl_jax.solvers.qp import nonnegative_qp
from mtl_jax.solvers.scaling import (
    ScaledGram,
    check_gram,
    full_precision,
    scale_gram,
)

SOLVERS = ("auto", "active_set", "closed_form", "frank_wolfe", "jaxopt")


@full_precision
def min_norm_point(
    gram: Array, *, solver: str = "auto", max_iterations: int | None = None
) -> Solution:
    r"""Weights of the point of the gradients' convex hull that is nearest to zero.

    .. math:: \min_{w \in \Delta} \; \|J^\top w\|^2 = \min_{w \in \Delta} \; w^\top M w

    Every solver first divides the rows by their norms, so that neither the common scale
    (1e-30 to 1e30 in float32) nor the rows' own scales cost accuracy. The update
    :math:`J^\top w` is unique; where ``w`` is not, these are the minimisers returned:

    * zero gradients share all the weight equally: the update vanishes, because a task
      with zero gradient makes the point Pareto-stationary;
    * duplicated gradients share their weight equally, to a few per cent (active set);
    * at other Pareto-stationary points the weights are one of the convex combinations
      that vanish to working precision.

    Args:
        gram: Gramian ``M = J J'``, ``(T, T)``, computed at ``Precision.HIGHEST``;
            16-bit and integer types become float32.
        solver: ``"closed_form"`` (``T <= 2``); ``"active_set"``, exact; ``"jaxopt"``,
            the scaled non-negative QP by ADMM, about 1e-5 in float32;
            ``"frank_wolfe"``, the paper's Algorithm 2 from uniform weights with exact
            line search, a few per cent after 250 steps; ``"auto"``, the closed form for
            ``T <= 2``, else the active set.
        max_iterations: bound on the iterations; by default ``3 T + 10`` factorisations
            for the active set, 1000 for jaxopt, 250 for Frank-Wolfe.

    Returns:
        Solution with ``value`` ``(T,)``, non-negative, summing to one. ``ok`` says that
        no task is opposed to the update ``g = J'w`` by more than the optimum allows:
        ``max_i (|g|² - g_i.g) / (|g_i| |g|) <= sqrt(eps)``, or the excess is rounding;
        it depends on no scale and is also true of a run that was cut short near
        enough to the optimum. Where it fails, ``value`` is the last iterate; only for a
        non-finite ``gram`` it is replaced, by uniform weights.

    Raises:
        ValueError: for a ``gram`` that is not square, an unknown ``solver``,
            ``"closed_form"`` with more than two tasks, or ``max_iterations < 1``.

    The released MGDA code clips pair weights to 0.001 and 0.999 and may never stop; here
    they reach 0 and 1, and every loop is bounded.

    >>> weights = min_norm_point(jnp.diag(jnp.array([1.0, 2.0, 4.0]))).value
    >>> [round(float(w), 4) for w in weights]  # (4, 2, 1) / 7
    [0.5714, 0.2857, 0.1429]

    References:
        Sener and Koltun, Multi-Task Learning as Multi-Objective Optimization,
        arXiv:1810.04650; Désidéri, Comptes Rendus Mathématique 350 (2012) 313-318.
    """
    gram = check_gram(gram)
    check_choice("solver", solver, SOLVERS)
    num_tasks = gram.shape[0]
    if solver == "auto":
        solver = "closed_form" if num_tasks <= 2 else "active_set"
    if solver == "closed_form" and num_tasks > 2:
        raise ValueError(
            f"solver='closed_form' needs T <= 2 tasks, got T = {num_tasks}: use "
            f"'active_set'"
        )
    if max_iterations is not None and max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")

    scaled = scale_gram(gram)
    if solver == "closed_form":
        z, iterations = _closed_form(scaled), jnp.int32(0)
    elif solver == "active_set":
        linear, radius = jnp.zeros_like(scaled.norms), jnp.ones((), gram.dtype)
        limit = max_iterations or 3 * num_tasks + 10
        z, _, iterations = minimise_on_simplex(scaled, linear, radius, limit)
    elif solver == "jaxopt":
        z, iterations = _nonnegative_form(scaled, max_iterations or 1000)
    else:
        z, iterations = _frank_wolfe(scaled, max_iterations or 250)

    zero = ~scaled.nonzero
    total = scaled.inverse_norms @ z
    regular = scaled.finite & ~zero.any() & (total > 0)
    z = z / jnp.where(regular, total, 1)
    sharing = zero | ~(scaled.finite & zero.any())
    shared = sharing / jnp.sum(sharing, dtype=gram.dtype)
    return Solution(
        value=jnp.where(regular, z * scaled.inverse_norms, shared),
        ok=jnp.where(regular, _is_optimal(scaled, z), scaled.finite & zero.any()),
        iterations=iterations,
    )


def _is_optimal(gram: ScaledGram, z: Array) -> Array:
    eps = float(jnp.finfo(z.dtype).eps)
    image = gram.cosines @ z
    square = jnp.maximum(z @ image, 0)
    excess = jnp.max(square * gram.inverse_norms - image)
    return excess <= eps**0.5 * jnp.sqrt(square) + 16 * eps * jnp.sum(z)


def _closed_form(gram: ScaledGram) -> Array:
    if gram.norms.shape[0] == 1:
        return jnp.ones_like(gram.norms)
    # z_i = w_i n_i, and w_1 : w_2 = g_2.(g_2 - g_1) : g_1.(g_1 - g_2), clipped at zero.
    cosine, inverse = gram.cosines[0, 1], gram.inverse_norms
    z = jnp.maximum(inverse - cosine * inverse[::-1], 0)
    return jnp.where(z.any(), z, 1)


def _nonnegative_form(gram: ScaledGram, max_iterations: int) -> tuple[Array, Array]:
    """``z`` is proportional to the minimiser of ``½ b'Cb - c'b`` over ``b >= 0``."""
    eps = float(jnp.finfo(gram.norms.dtype).eps)
    diagonal = 1 + 4 * gram.norms.shape[0] * eps  # the ridge makes it unique
    matrix = jnp.fill_diagonal(gram.cosines, diagonal, inplace=False)
    solution = nonnegative_qp(matrix, gram.inverse_norms, max_iterations=max_iterations)
    return solution.value, solution.iterations


def _frank_wolfe(gram: ScaledGram, max_iterations: int) -> tuple[Array, Array]:
    # On the gradients themselves, as in the paper: relative to the largest norm.
    largest = jnp.max(gram.norms)
    norms = gram.norms / jnp.where(largest > 0, largest, 1)
    matrix = gram.cosines * norms[:, None] * norms[None, :]
    vertices = jnp.eye(norms.shape[0], dtype=norms.dtype)

    def body(carry):
        weights, _, iterations = carry
        image = matrix @ weights
        nearest = jnp.argmin(image)
        descent = weights @ image - image[nearest]
        length = descent - image[nearest] + matrix[nearest, nearest]
        step = jnp.clip(descent / jnp.where(length > 0, length, jnp.inf), 0, 1)
        weights = weights + step * (vertices[nearest] - weights)
        return weights, step > 0, iterations + 1

    weights, _, iterations = jax.lax.while_loop(
        lambda carry: carry[1] & (carry[2] < max_iterations),
        body,
        (jnp.full_like(norms, 1 / norms.shape[0]), jnp.asarray(True), jnp.int32(0)),
    )
    return weights / jnp.where(gram.nonzero, gram.inverse_norms, 1), iterations
