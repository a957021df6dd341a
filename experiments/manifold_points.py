"""Single networks of the study ``manifold``: on weighted sums, on one task, by a method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments import problem as shared
from experiments.explore_outputs import Examples
from experiments.manifold import ManifoldConfig
from experiments.manifold_problems import ManifoldProblem, batch_losses

Array = jax.Array
SINGLE = shared.SINGLE


class Family(NamedTuple):
    """One way to train, and the networks that come of it."""

    name: str
    init: Callable[[Array], Any]
    """``init(key) -> state``, a pytree of arrays."""
    step: Callable[[Any, Examples], tuple[Any, Array]]
    """``step(state, batch) -> (state, losses)``, losses of any shape ``(..., T)``."""
    solution: Callable[[Any], Any]
    """``solution(state)``: what is kept of a finished run."""
    at: Callable[[Any, Array], tuple[Any, Any]]
    """``at(solution, alpha) -> (params, model_state)`` of the network at a point."""
    inputs: Callable[[Any, Array], Any]
    """``inputs(examples' inputs, alpha)``: what that network sees."""
    pull_backs: int
    """Backward passes of one network in a step."""
    whole_front: bool = True
    """Whether the networks differ by ``alpha``."""


class Weighted(NamedTuple):
    """State of a run on one weighted sum."""

    params: Any
    model_state: Any
    opt_state: Any
    weights: Array


def losses_of(problem: ManifoldProblem) -> Callable[..., tuple[Array, Any]]:
    """``losses_fn(params, model_state, batch, key) -> (losses (T,), model_state)``."""

    def losses_fn(
        params: Any, model_state: Any, batch: Examples, key: Any = None
    ) -> tuple[Array, Any]:
        inputs = problem.prepare(batch.inputs)
        outputs, model_state = problem.model.apply(
            params, model_state, inputs, train=True, key=key
        )
        return batch_losses(outputs, batch.targets), model_state

    return losses_fn


def plain(problem: ManifoldProblem, config: ManifoldConfig) -> Family:
    """A plain network on the mean of the losses; the weights are part of the state."""
    num_tasks = problem.num_tasks
    optimizer = optax.adam(config.learning_rate)
    losses_fn = losses_of(problem)

    def init(key: Array) -> Weighted:
        params, model_state = problem.model.init(key, problem.inputs())
        weights = jnp.full(num_tasks, 1 / num_tasks)
        return Weighted(params, model_state, optimizer.init(params), weights)

    def step(state: Weighted, batch: Examples) -> tuple[Weighted, Array]:
        def total(params: Any) -> tuple[Array, Any]:
            losses, model_state = losses_fn(params, state.model_state, batch)
            # Not a product: a loss of weight zero may be what it likes.
            kept = jnp.where(state.weights > 0, state.weights * losses, 0)
            return kept.sum(), (losses, model_state)

        grads, (losses, model_state) = jax.grad(total, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        return Weighted(params, model_state, opt_state, state.weights), losses

    return Family(
        name="ls",
        init=init,
        step=step,
        solution=lambda state: (state.params, state.model_state),
        at=lambda solution, alpha: solution,
        inputs=plain_inputs(problem),
        pull_backs=1,
        whole_front=False,
    )


def single_tasks(family: Family, num_tasks: int) -> list[Family]:
    """Networks trained on one task each, from the plain family and with its program.

    The other heads stay as they started.
    """

    def start(task: int) -> Callable[[Array], Weighted]:
        return lambda key: family.init(key)._replace(weights=jnp.eye(num_tasks)[task])

    return [
        family._replace(name=f"{SINGLE} {task}", init=start(task))
        for task in range(num_tasks)
    ]


def method(call: str, problem: ManifoldProblem, config: ManifoldConfig) -> Family:
    """A registered method by its call string: one network, all tasks."""
    optimizer = optax.adam(config.learning_rate)
    step, start = shared.make_training(
        call, problem.num_tasks, losses_of(problem), optimizer
    )

    def init(key: Array) -> Any:
        init_key, run_key = jax.random.split(key)
        return start(*problem.model.init(init_key, problem.inputs()), run_key)

    def losses_step(state: Any, batch: Examples) -> tuple[Any, Array]:
        state, record = step(state, batch)
        return state, record.losses

    return Family(
        name=call,
        init=init,
        step=losses_step,
        solution=lambda state: (state.params, state.model_state),
        at=lambda solution, alpha: solution,
        inputs=plain_inputs(problem),
        pull_backs=problem.num_tasks,
        whole_front=False,
    )


def plain_inputs(problem: ManifoldProblem) -> Callable[[Any, Array], Any]:
    """``inputs`` of a family whose networks see the pictures or rows alone."""
    return lambda inputs, alpha: problem.prepare(inputs)
