"""Min-norm point of the convex hull of the task gradients, from their Gramian."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtl_jax._types import Array, Solution, check_choice
from mtl_jax.solvers.active_set import (
    ScaledGram,
    check_gram,
    minimise_on_simplex,
    scale_gram,
)
from mtl_jax.solvers.qp import nonnegative_qp

SOLVERS = ("auto", "active_set", "closed_form", "frank_wolfe", "jaxopt")


def min_norm_point(
    gram: Array, *, solver: str = "auto", max_iterations: int | None = None
) -> Solution:
    gram = check_gram(gram)
    check_choice("solver", solver, SOLVERS)
    num_tasks = gram.shape[0]
    if solver == "auto":
        solver = "closed_form" if num_tasks <= 2 else "active_set"
    if solver == "closed_form" and num_tasks > 2:
        raise ValueError(
            f"solver='closed_form' needs T <= 2 tasks, got T = {num_tasks}: "
            f"use 'active_set'"
        )
    scaled = scale_gram(gram)
    if num_tasks == 1:
        z, iterations = jnp.ones_like(scaled.norms), jnp.int32(0)
    elif solver == "closed_form":
        z, iterations = _two_tasks(scaled), jnp.int32(0)
    elif solver == "active_set":
        z, _, iterations = minimise_on_simplex(
            scaled,
            jnp.zeros_like(scaled.norms),
            jnp.ones((), gram.dtype),
            max_iterations or 3 * num_tasks + 10,
        )
    elif solver == "jaxopt":
        z, iterations = _jaxopt(scaled, max_iterations or 4000)
    else:
        z, iterations = _frank_wolfe(scaled, max_iterations or 250)
    zero = ~scaled.nonzero
    spread = jnp.where(scaled.finite & zero.any(), zero, True)
    spread = spread / jnp.sum(spread, dtype=gram.dtype)
    total = scaled.inverse_norms @ z
    regular = scaled.finite & ~zero.any() & (total > 0)
    weights = z * scaled.inverse_norms / jnp.where(regular, total, 1)
    weights = jnp.where(regular, weights, spread)
    ok = jnp.where(regular, _is_optimal(scaled, z), scaled.finite & zero.any())
    return Solution(weights, ok, iterations)


def _is_optimal(gram: ScaledGram, z: Array) -> Array:
    eps = float(jnp.finfo(z.dtype).eps)
    z = z / (gram.inverse_norms @ z)
    image = gram.cosines @ z
    square = jnp.maximum(z @ image, 0)
    excess = jnp.max(square * gram.inverse_norms - image)
    return excess <= eps**0.5 * jnp.sqrt(square) + 16 * eps * jnp.sum(z)


def _two_tasks(gram: ScaledGram) -> Array:
    # In units of the smaller norm: d_i = g_i.(g_i - g_j) up to the factor 1 / n_i.
    c = gram.cosines[0, 1]
    a, b = gram.inverse_norms
    first = jnp.maximum(a - c * b, 0)
    second = jnp.maximum(b - c * a, 0)
    z = jnp.stack([first, second])
    return jnp.where(first + second > 0, z, 1)


def _jaxopt(gram: ScaledGram, max_iterations: int) -> tuple[Array, Array]:
    num_tasks = gram.norms.shape[0]
    ridge = 4 * num_tasks * float(jnp.finfo(gram.norms.dtype).eps)
    matrix = gram.cosines + ridge * jnp.eye(num_tasks, dtype=gram.norms.dtype)
    solution = nonnegative_qp(matrix, gram.inverse_norms, max_iterations=max_iterations)
    return solution.value, solution.iterations


def _frank_wolfe(gram: ScaledGram, max_iterations: int) -> tuple[Array, Array]:
    scale = jnp.max(gram.norms)
    ratios = gram.norms / jnp.where(scale > 0, scale, 1)
    matrix = gram.cosines * ratios[:, None] * ratios[None, :]
    num_tasks = ratios.shape[0]

    def body(carry):
        weights, _, iterations = carry
        image = matrix @ weights
        vertex = jnp.argmin(image)
        square, cross = weights @ image, image[vertex]
        length = square - 2 * cross + matrix[vertex, vertex]
        step = jnp.where(
            length > 0, (square - cross) / jnp.where(length > 0, length, 1), 0
        )
        step = jnp.clip(step, 0, 1)
        towards = jnp.arange(num_tasks) == vertex
        weights = jnp.where(
            towards, weights + step * (1 - weights), weights * (1 - step)
        )
        return weights, step <= 0, iterations + 1

    start = jnp.full((num_tasks,), 1 / num_tasks, matrix.dtype)
    weights, _, iterations = jax.lax.while_loop(
        lambda carry: ~carry[1] & (carry[2] < max_iterations),
        body,
        (start, jnp.asarray(False), jnp.int32(0)),
    )
    inverse = jnp.where(gram.nonzero, gram.inverse_norms, 1)
    return weights / inverse, iterations
