"""Training of one method on QM9: epochs, learning-rate schedule, early stopping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import lax

from experiments import records
from experiments.qm9_problem import (
    Qm9Problem,
    absolute_errors,
    init_params,
    make_losses,
    of_task,
    take,
    training,
    with_learning_rate,
)
from mtl_jax import metrics, train

if TYPE_CHECKING:
    from experiments.qm9 import Qm9Config

Record = dict[str, Any]


class Plateau:
    """Learning rate that falls when a value to be small has not done so for a while.

    As PyTorch's ``ReduceLROnPlateau`` with its defaults, but that a relative improvement of
    a negative value is one downwards (there, values slightly above count as better).

    Args:
        rate: learning rate at first.
        factor: on the learning rate.
        patience: epochs without improvement that are waited for.
        least: learning rate that is never undercut.
    """

    THRESHOLD = 1e-4

    def __init__(self, rate: float, factor: float, patience: int, least: float) -> None:
        self.rate, self._factor, self._least = rate, factor, least
        self._patience, self._best, self._bad = patience, np.inf, 0

    def update(self, value: float) -> None:
        """Takes the value after an epoch."""
        margin = 0 if np.isinf(self._best) else self.THRESHOLD * abs(self._best)
        if value < self._best - margin:
            self._best, self._bad = value, 0
            return
        self._bad += 1
        if self._bad > self._patience:
            self.rate = max(self.rate * self._factor, self._least)
            self._bad = 0


def order(size: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Molecules of each batch of an epoch, int32 ``(steps, B)``; the rest is left out."""
    steps = size // batch_size
    rows = np.random.default_rng([seed, epoch]).permutation(size)[: steps * batch_size]
    return rows.reshape(steps, batch_size).astype(np.int32)


class Trainer:
    """Trains one method (``task`` is ``None``) or single-task networks, for any seed.

    One program serves all seeds, and all tasks of single-task networks.

    Args:
        problem: data and networks.
        config: settings.
        call: call string of a method, or ``None`` for single-task networks.
    """

    def __init__(
        self, problem: Qm9Problem, config: Qm9Config, call: str | None
    ) -> None:
        num_tasks = 1 if call is None else problem.num_tasks
        self.problem, self.config, self.call = problem, config, call
        single = config.single_epochs if call is None else None
        self.epochs = config.epochs if single is None else single
        self.model = problem.models[num_tasks]
        losses_fn = make_losses(self.model)
        rate = config.learning_rate
        unit = config.unit_length and call is not None
        step, init = training(
            call or "ls", num_tasks, losses_fn, rate, unit_length=unit
        )

        def epoch(state: train.TrainState, split: Any, rows: jax.Array) -> Any:
            def body(state: train.TrainState, rows: jax.Array) -> Any:
                state, record = step(state, take(split, rows))
                return state, record.losses

            return lax.scan(body, state, rows)

        self._init, self._epoch = jax.jit(init), jax.jit(epoch, donate_argnums=0)
        self._program: Callable[..., Any] | None = None

    def run(self, seed: int, base: np.ndarray, task: int | None = None) -> Record:
        """Trains and returns the record of a run.

        Args:
            seed: of initial weights, batches and the method's own randomness.
            base: single-task validation errors, in published units, by task: Δm against
                them steers the learning rate and picks the epoch.
            task: of a single-task network.

        Raises:
            records.NonFiniteError: naming task and epoch.
        """
        problem, config = self.problem, self.config
        splits = problem.train, problem.validation, problem.test
        std = problem.std
        if task is not None:
            splits = tuple(of_task(split, task) for split in splits)
            std, base = std[task : task + 1], base[task : task + 1]
        init_key, run_key = jax.random.split(jax.random.key(seed))
        first = jax.tree.map(lambda leaf: leaf[:1], splits[0].inputs)
        params = init_params(self.model, init_key, first)
        state = self._init(params, {}, run_key)
        plateau = Plateau(
            config.learning_rate,
            config.factor,
            config.patience,
            config.min_learning_rate,
        )
        history, best, seconds = [], {"delta_m": np.inf, "epoch": 0}, []
        for epoch in range(self.epochs):
            rate = plateau.rate
            state, losses, spent = self._timed_epoch(
                with_learning_rate(state, rate), splits[0], seed, epoch
            )
            self._check_finite(losses, epoch, task)
            seconds.append(spent)
            errors = std * jax.device_get(
                absolute_errors(self.model, state.params, splits[1])
            )
            delta = metrics.delta_m(errors, base, False)
            if delta < best["delta_m"]:
                test = std * jax.device_get(
                    absolute_errors(self.model, state.params, splits[2])
                )
                best = {"delta_m": delta, "epoch": epoch + 1}
                best |= {"validation": errors.tolist(), "test": test.tolist()}
            plateau.update(delta)
            history.append([delta, rate, float(losses.mean())])
            waited = epoch + 1 - best["epoch"]
            if config.stop_after is not None and waited >= config.stop_after:
                break
        return {
            "epochs": len(history),
            "best_epoch": best["epoch"],
            "validation": records.rounded(best["validation"]),
            "test": records.rounded(best["test"]),
            "seconds_per_epoch": round(float(np.median(seconds)), 4),
            "history": records.rounded(history),
        }

    def _timed_epoch(
        self, state: train.TrainState, split: Any, seed: int, epoch: int
    ) -> tuple[train.TrainState, np.ndarray, float]:
        rows = order(len(split.targets), self.config.batch_size, seed, epoch)
        if self._program is None:
            self._program = self._epoch.lower(state, split, rows).compile()
        begin = time.perf_counter()
        state, losses = jax.block_until_ready(self._program(state, split, rows))
        return state, jax.device_get(losses), time.perf_counter() - begin

    def _check_finite(self, losses: np.ndarray, epoch: int, task: int | None) -> None:
        bad = np.argwhere(~np.isfinite(losses))
        if len(bad):
            column = int(bad[0][1]) if task is None else task
            raise records.NonFiniteError(
                f"the loss of task {self.problem.task_names[column]!r} is not finite in "
                f"epoch {epoch + 1} of {self.call or 'a single-task network'}: lower the "
                "learning rate"
            )
