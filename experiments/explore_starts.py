"""Weighted-sum training: the points from which the study ``explore`` sets out."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments import records
from experiments.explore import ExploreConfig
from experiments.explore_problems import NetworkProblem, losses_on, measure

Array = jax.Array


class Trained(NamedTuple):
    """A network trained on a weighted sum of the losses."""

    params: Any
    history: list[dict[str, Any]]
    """Test losses and errors after each epoch."""
    gradients: int
    """Gradients of the weighted sum, one a step."""
    seconds: float
    """Spent on the steps, without compilation."""


def start_weights(num_tasks: int, config: ExploreConfig) -> np.ndarray:
    """Weights of the starts, ``(S, m)``: positive multiples of 1/denominator, sum one.

    They rise in the first weight: ``(1, 5)/6, (2, 4)/6, ...`` for two tasks.

    Raises:
        ValueError: if there are none.
    """
    whole = config.denominator
    grid = itertools.product(range(1, whole), repeat=num_tasks)
    rows = np.array([row for row in grid if sum(row) == whole])
    if not len(rows):
        raise ValueError(
            f"denominator must be at least the {num_tasks} tasks, got {whole}"
        )
    count = min(config.starts or len(rows), len(rows))
    picks = np.round((np.arange(count) + 0.5) * len(rows) / count - 0.5).astype(int)
    return rows[picks] / whole


def cosine_rates(learning_rate: float, steps: int) -> np.ndarray:
    """Learning rates that fall from ``learning_rate`` to 0 by a half cosine, (steps,)."""
    return 0.5 * learning_rate * (1 + np.cos(np.pi * np.arange(steps) / steps))


class Training:
    """SGD with momentum on weighted sums; programs are shared by all weights.

    Every run takes the batches in the same order, so that runs differ by their weights
    and starting parameters alone.

    Args:
        problem: data and network.
        config: settings of the optimiser.
    """

    def __init__(self, problem: NetworkProblem, config: ExploreConfig) -> None:
        self.problem, self.config = problem, config
        self.steps_per_epoch = problem.train_size // config.batch_size
        step = functools.partial(_scan, problem, config.sgd_momentum)
        self._jitted = jax.jit(step, donate_argnums=1)
        self._programs: dict[int, Callable[..., Any]] = {}

    def initial(self) -> Any:
        """The parameters that all weights start from."""
        return self.problem.init(jax.random.key(self.config.seed))

    def run(
        self, params: Any, weights: np.ndarray, steps: int, *, watch: bool = False
    ) -> Trained:
        """Takes ``steps`` steps, their learning rates falling to zero.

        Args:
            params: where to start.
            weights: of the losses, ``(m,)``.
            steps: how many.
            watch: measure the test set after every epoch.

        Raises:
            records.NonFiniteError: if a loss leaves the finite numbers.
        """
        rates = cosine_rates(self.config.learning_rate, steps)
        carry = jax.tree.map(jnp.array, params), jax.tree.map(jnp.zeros_like, params)
        seconds, history = 0.0, []
        for begin in range(0, steps, self.steps_per_epoch):
            epoch, rate = begin // self.steps_per_epoch, rates[begin:]
            rows = self._order(epoch)[: len(rate)]
            rate = rate[: len(rows)].astype(np.float32)
            args = carry, jnp.asarray(weights, jnp.float32), rate, rows
            program = self._program(args)
            started = time.perf_counter()
            carry, losses = jax.block_until_ready(program(self.problem.train, *args))
            seconds += time.perf_counter() - started
            self._check(losses, begin, weights)
            if watch:
                one = jax.tree.map(lambda leaf: leaf[None], carry[0])
                losses, errors = measure(self.problem, one, self.problem.test)
                line = {"losses": losses[0].tolist(), "errors": errors[0].tolist()}
                line = {key: records.rounded(value) for key, value in line.items()}
                history.append({"epoch": epoch + 1, **line})
        return Trained(carry[0], history, steps, seconds)

    def _order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.config.seed, epoch])
        order = rng.permutation(self.problem.train_size)
        shape = (self.steps_per_epoch, self.config.batch_size)
        return order[: shape[0] * shape[1]].reshape(shape).astype(np.int32)

    def _program(self, args: tuple) -> Callable[..., Any]:
        count = len(args[-1])
        if count not in self._programs:
            lowered = self._jitted.lower(self.problem.train, *args)
            self._programs[count] = lowered.compile()
        return self._programs[count]

    def _check(self, losses: Array, begin: int, weights: np.ndarray) -> None:
        bad = np.argwhere(~np.isfinite(losses))
        if len(bad):
            step, task = map(int, bad[0])
            name = self.problem.task_names[task]
            raise records.NonFiniteError(
                f"the loss of task {name!r} is {losses[step, task]} at step "
                f"{begin + step + 1} with weights {np.round(weights, 3).tolist()}: lower "
                "the learning rate"
            )


def _scan(
    problem: NetworkProblem,
    momentum: float,
    examples: Any,
    carry: tuple[Any, Any],
    weights: Array,
    rates: Array,
    rows: Array,
) -> tuple[tuple[Any, Any], Array]:
    """One step per row: PyTorch's SGD, whose rate multiplies the accumulated velocity."""
    losses_fn = losses_on(problem, examples)

    def step(carry: tuple[Any, Any], each: tuple[Array, Array]) -> tuple[Any, Array]:
        params, velocity = carry
        rate, rows = each

        def total(params: Any) -> tuple[Array, Array]:
            losses = losses_fn(params, rows)
            return weights @ losses, losses

        grads, losses = jax.grad(total, has_aux=True)(params)
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, grads)
        updates = jax.tree.map(lambda v: -rate * v, velocity)
        return (optax.apply_updates(params, updates), velocity), losses

    return lax.scan(step, carry, (rates, rows))
