"""One point of a network's front: gradients, weights, tangents; and what they cost."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.explore import ExploreConfig
from experiments.explore_problems import NetworkProblem, losses_on
from mtl_jax import pareto

Array = jax.Array
ACCOUNTING = (
    "one gradient-equivalent: forward and backward pass of one loss, or one weighted sum, "
    "over one batch of training. The gradients of m objectives on a batch count m; a "
    "Hessian-vector product on n examples counts 2 n / batch_size, and so does the "
    "linearisation before a solve"
)


class Units(NamedTuple):
    """Gradient-equivalents of the parts of a predictor step, see ``ACCOUNTING``."""

    gradients: float
    """All objectives over the batches of a step."""
    hvp: float
    """One product; and the linearisation before the first."""


def units(problem: NetworkProblem, config: ExploreConfig) -> Units:
    """What the parts of one step count."""
    count, _, examples = sizes(problem, config)
    hvp = 2 * examples / config.batch_size
    return Units(problem.num_tasks * count, hvp)


def sizes(problem: NetworkProblem, config: ExploreConfig) -> tuple[int, int, int]:
    """Batches of the gradients, examples in each, and examples of the Hessian.

    Raises:
        ValueError: if an epoch has fewer batches.
    """
    epoch = problem.train_size // config.batch_size
    count = config.gradient_batches or max(1, epoch // 4)
    if count > epoch:
        raise ValueError(
            f"gradient_batches must be at most the {epoch} of an epoch, got {count}"
        )
    return count, config.batch_size, min(config.hvp_batch, problem.train_size)


def draw(problem: NetworkProblem, config: ExploreConfig) -> Callable[[Array], Any]:
    """``key -> ((rows (n, B),), (rows (1, h),))``: examples of a step, no two alike.

    The first for the gradients, the second for the Hessian, drawn independently.
    """
    count, batch, examples = sizes(problem, config)

    def batches(key: Array) -> tuple[tuple[Array], tuple[Array]]:
        first, second = (
            jax.random.permutation(each, problem.train_size)
            for each in jax.random.split(key)
        )
        return (first[: count * batch].reshape(count, batch),), (
            second[:examples][None],
        )

    return batches


class Point(NamedTuple):
    """Parameters with their gradients, and the batch that their Hessian is taken on."""

    params: Any
    grads: Any
    """Mean task gradients, leaves ``(m, *p)``."""
    alpha: Array
    """Stationarity weights ``(m,)``."""
    rows: Array
    """Examples of the Hessian, int32 ``(1, h)``."""


class Tools:
    """Compiled functions of one problem: the parts that a traced step consists of."""

    def __init__(self, problem: NetworkProblem, config: ExploreConfig) -> None:
        self.problem, self.config = problem, config
        self.at = jax.jit(self._at)
        self._solves: dict[int, Callable[..., Any]] = {}

    def point(self, params: Any, seed: int) -> Point:
        """Gradients and weights at ``params``, on batches that ``seed`` decides."""
        return self.at(self.problem.train, params, jax.random.key(seed))

    def tangent(self, point: Point, beta: Any, maxiter: int | None = None) -> Any:
        """Direction that lowers objective ``i`` for ``beta = e_i`` when subtracted."""
        solve = self.solve(self.config.maxiter if maxiter is None else maxiter)
        return solve(self.problem.train, point, jnp.asarray(beta, jnp.float32))

    def solve(self, maxiter: int) -> Callable[..., Any]:
        """``(examples, point, beta) -> Tangent``, jitted."""
        if maxiter not in self._solves:
            solve = functools.partial(self.solve_with, maxiter=maxiter)
            self._solves[maxiter] = jax.jit(
                functools.partial(solve, tol=self.config.tol)
            )
        return self._solves[maxiter]

    def compiled(self, maxiter: int, point: Point, beta: Any) -> Callable[[], Any]:
        """The same solve as :meth:`tangent`, compiled already: ``() -> Tangent``."""
        args = self.problem.train, point, jnp.asarray(beta, jnp.float32)
        return functools.partial(self.solve(maxiter).lower(*args).compile(), *args)

    def _at(self, examples: Any, params: Any, key: Array) -> Point:
        (rows,), (hvp_rows,) = draw(self.problem, self.config)(key)
        losses_fn = losses_on(self.problem, examples)
        _, grads = pareto.mean_task_grads(losses_fn, params, (rows,))
        return Point(params, grads, pareto.stationarity(grads).value, hvp_rows)

    def solve_with(
        self, examples: Any, point: Point, beta: Array, *, maxiter: int, tol: float
    ) -> Any:
        """The tangent, not jitted."""
        config = self.config
        matvec = pareto.batched_hvp(
            losses_on(self.problem, examples), point.params, point.alpha, (point.rows,)
        )
        return pareto.tangent(
            matvec,
            point.grads,
            beta,
            alpha=point.alpha,
            correction=config.correction,
            solver=config.solver,
            damping=config.damping,
            maxiter=maxiter,
            tol=tol,
        )


def unit_vector(direction: Any) -> Any:
    """A tree of NumPy or JAX arrays divided by its Euclidean norm."""
    size = np.sqrt(
        sum(float(jnp.vdot(leaf, leaf)) for leaf in jax.tree.leaves(direction))
    )
    return jax.tree.map(lambda leaf: leaf / size, direction)


def line(params: Any, direction: Any, lengths: np.ndarray) -> Any:
    """Stacked ``params - s direction`` for every ``s`` in ``lengths``: leaves (n, *p)."""

    def move(leaf: Any, along: Any) -> np.ndarray:
        steps = np.reshape(lengths, (-1,) + (1,) * np.ndim(leaf)).astype(np.float32)
        return np.asarray(leaf)[None] - steps * np.asarray(along)[None]

    return jax.tree.map(move, params, direction)
