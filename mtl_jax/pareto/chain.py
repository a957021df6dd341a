"""One chain of predictor and corrector steps along a Pareto front."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtl_jax._types import Array, ArrayTree, LossesFn, StackedTree
from mtl_jax.pareto.batches import mean_task_grads
from mtl_jax.pareto.hvp import batched_hvp, hvp
from mtl_jax.pareto.smoothing import init_smoothed, smooth
from mtl_jax.pareto.tangents import Matvec, relative_drift, stationarity, tangent
from mtl_jax.solvers import vectors

BatchesFn = Callable[[Array], tuple[tuple, tuple]]
"""``key -> (gradient_batches, hvp_batches)``, tuples of arguments of ``losses_fn`` whose
leaves have a leading axis of batches."""


class Options(NamedTuple):
    """What the compiled program depends on, see :func:`mtl_jax.pareto.trace_front`."""

    steps: int
    corrector: optax.GradientTransformation | None
    corrector_steps: int
    held: tuple[bool, ...] | None
    """Which leaves do not move."""
    correction: bool
    momentum: float
    solver: str
    maxiter: int
    x0: str | None
    loop: str


class Point(NamedTuple):
    params: ArrayTree
    losses: Array
    alpha: Array
    stationarity: Array


class Move(NamedTuple):
    residual: Array
    iterations: Array
    hvps: Array
    ok: Array


class Chain(NamedTuple):
    """What chains have in common; :meth:`run` follows one."""

    losses_fn: LossesFn
    batches: BatchesFn
    step_size: Array
    damping: Array
    tol: Array
    key: Array
    options: Options

    def run(self, start: ArrayTree, beta: Array) -> tuple[Point, Move]:
        """The points and how each was left, on a leading axis ``steps + 1``."""
        options = self.options
        nowhere = Move(
            jnp.zeros_like(beta[0]), jnp.int32(0), jnp.int32(0), jnp.asarray(False)
        )

        def body(carry: tuple, step: Array) -> tuple[tuple, tuple[Point, Move]]:
            params, average = carry
            key = jax.random.fold_in(self.key, step)
            gradient_batches, hvp_batches = self.batches(jax.random.fold_in(key, 0))
            losses, task_grads = self.task_grads(params, gradient_batches, beta)
            alpha = stationarity(task_grads).value
            drift = relative_drift(task_grads, alpha)
            point = Point(params, losses, alpha, drift)
            average, alpha, task_grads = smooth(
                options.momentum, average, alpha, task_grads
            )

            def advance() -> tuple[ArrayTree, Move]:
                found = tangent(
                    self.hessian(params, alpha, hvp_batches),
                    task_grads,
                    beta,
                    alpha=alpha,
                    correction=options.correction,
                    solver=options.solver,
                    damping=self.damping,
                    maxiter=options.maxiter,
                    tol=self.tol,
                    x0=options.x0,
                )
                moved = vectors.add_scaled(params, -self.step_size, found.direction)
                iterations = found.info.iterations
                move = Move(found.residual, iterations, found.hvps, found.ok)
                return self.correct(moved, key, beta), move

            # All chains are at the same step, so that vmap keeps this a branch.
            params, move = lax.cond(
                step < options.steps, advance, lambda: (params, nowhere)
            )
            return (params, average), (point, move)

        average = init_smoothed(options.momentum, beta.shape[0], start)
        return lax.scan(body, (start, average), jnp.arange(options.steps + 1))[1]

    def task_grads(
        self, params: ArrayTree, batches: tuple, beta: Array
    ) -> tuple[Array, StackedTree]:
        """Losses and gradients, zero for what is held."""
        marks = self.marks(params)

        def losses_fn(params: ArrayTree, *args: Any) -> Any:
            if marks is not None:
                params = jax.tree.map(
                    lambda leaf, held: lax.stop_gradient(leaf) if held else leaf,
                    params,
                    marks,
                )
            return self.losses_fn(params, *args)

        losses, task_grads = mean_task_grads(losses_fn, params, batches)
        if losses.shape != beta.shape:
            raise ValueError(
                f"betas have {beta.shape[0]} entries per row, but losses_fn returned "
                f"{losses.shape[0]} losses; give one entry per loss"
            )
        return losses, task_grads

    def hessian(self, params: ArrayTree, alpha: Array, batches: tuple) -> Matvec:
        """The Hessian that the tangent is solved with."""
        marks = self.marks(params)
        if not batches:
            return hvp(self.losses_fn, params, alpha, heads=marks)
        return batched_hvp(self.losses_fn, params, alpha, batches, heads=marks)

    def correct(self, params: ArrayTree, key: Array, beta: Array) -> ArrayTree:
        """Runs the corrector from a fresh state."""
        if self.options.corrector is None:
            return params
        corrector = optax.with_extra_args_support(self.options.corrector)
        marks = self.marks(params)

        def body(index: Array, carry: tuple) -> tuple:
            params, state = carry
            batches, _ = self.batches(jax.random.fold_in(key, index + 1))
            losses, task_grads = self.task_grads(params, batches, beta)
            updates, state = corrector.update(task_grads, state, params, losses=losses)
            _check_update(updates, params)
            if marks is not None:
                updates = jax.tree.map(
                    lambda leaf, held: jnp.zeros_like(leaf) if held else leaf,
                    updates,
                    marks,
                )
            return optax.apply_updates(params, updates), state

        carry = (params, corrector.init(params))
        return lax.fori_loop(0, self.options.corrector_steps, body, carry)[0]

    def marks(self, params: ArrayTree) -> ArrayTree | None:
        """The mask of what is held."""
        if self.options.held is None:
            return None
        return jax.tree.unflatten(jax.tree.structure(params), self.options.held)


def _check_update(updates: ArrayTree, params: ArrayTree) -> None:
    pairs = zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True)
    for update, leaf in pairs:
        if update.shape != leaf.shape:
            raise ValueError(
                f"the corrector turned stacked gradients into an update of shape "
                f"{update.shape} for a parameter of shape {leaf.shape}: let its chain "
                "begin with a method that combines them, such as mtl_jax.mgda(m)"
            )
