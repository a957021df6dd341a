"""Training and evaluation of the families of the study ``manifold``."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments import records
from experiments.explore_outputs import Examples
from experiments.explore_problems import EVAL_BATCH, example_means
from experiments.manifold import ManifoldConfig
from experiments.manifold_points import Family
from experiments.manifold_problems import ManifoldProblem, judge
from mtl_jax import pareto

Array = jax.Array


class Trained(NamedTuple):
    """A finished run."""

    solution: Any
    history: list[list[float]]
    """Mean training losses of each epoch, over its batches and points."""
    steps: int
    seconds: float
    """Spent on the steps, without compilation."""
    compile_seconds: float


def order(size: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Examples of each batch of an epoch, int32 ``(steps, B)``; the rest is left out."""
    steps = size // batch_size
    rows = np.random.default_rng([seed, epoch]).permutation(size)[: steps * batch_size]
    return rows.reshape(steps, batch_size).astype(np.int32)


class Trainer:
    """Trains families; each compiled program serves all seeds.

    Runs of one seed see the same batches in the same order.

    Args:
        problem: data and network.
        config: settings.
    """

    def __init__(self, problem: ManifoldProblem, config: ManifoldConfig) -> None:
        self.problem, self.config = problem, config
        self.steps_per_epoch = problem.train.count // config.batch_size
        total = config.epochs * self.steps_per_epoch
        self.total_steps = min(total, config.max_steps or total)
        self._programs: dict[Any, Callable[..., Any]] = {}

    def run(self, family: Family, seed: int) -> Trained:
        """Trains one network, or one family of them.

        Args:
            family: what is trained.
            seed: of parameters, batches and points.

        Raises:
            records.NonFiniteError: if a loss leaves the finite numbers.
        """
        config, problem = self.config, self.problem
        # Copies: the first step gives its buffers away, which the next seed may share.
        state = jax.tree.map(jnp.array, family.init(jax.random.key(seed)))
        history, seconds, compiling = [], 0.0, 0.0
        for begin in range(0, self.total_steps, self.steps_per_epoch):
            epoch = begin // self.steps_per_epoch
            rows = order(problem.train.count, config.batch_size, seed, epoch)
            rows = rows[: self.total_steps - begin]
            chunks = rows if problem.slow_loops else [rows]
            epoch_losses = []
            for chunk in chunks:
                started = time.perf_counter()
                program = self._program(family, state, chunk)
                middle = time.perf_counter()
                state, losses = jax.block_until_ready(
                    program(state, problem.train, chunk)
                )
                seconds += time.perf_counter() - middle
                compiling += middle - started
                epoch_losses.append(np.asarray(losses).reshape(-1, problem.num_tasks))
            found = np.concatenate(epoch_losses)
            self._check(found, family, seed, epoch)
            history.append(records.rounded(found.mean(0).tolist()))
        return Trained(
            family.solution(state), history, self.total_steps, seconds, compiling
        )

    def _program(self, family: Family, state: Any, rows: np.ndarray) -> Callable:
        key = family.step, rows.shape
        if key not in self._programs:
            take = take_step if rows.ndim == 1 else scan_steps
            jitted = jax.jit(functools.partial(take, family.step), donate_argnums=0)
            self._programs[key] = jitted.lower(
                state, self.problem.train, rows
            ).compile()
        return self._programs[key]

    def _check(self, losses: np.ndarray, family: Family, seed: int, epoch: int) -> None:
        bad = np.flatnonzero(~np.isfinite(losses).all(0))
        # A single-task network's other heads are not trained: nobody looks at them.
        if len(bad):
            name = self.problem.task_names[bad[0]]
            raise records.NonFiniteError(
                f"a loss of task {name!r} is not finite in epoch {epoch + 1} of "
                f"{family.name}, seed {seed}: lower the learning rate"
            )


def scan_steps(
    step: Callable[..., Any], state: Any, examples: Examples, rows: Array
) -> tuple[Any, Array]:
    """One step per row of ``rows (S, B)``; the losses are stacked, ``(S, ..., T)``."""

    def body(state: Any, rows: Array) -> tuple[Any, Array]:
        return take_step(step, state, examples, rows)

    return lax.scan(body, state, rows)


def take_step(
    step: Callable[..., Any], state: Any, examples: Examples, rows: Array
) -> tuple[Any, Array]:
    """One step on the examples ``rows (B,)``."""
    return step(
        state, jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), examples)
    )


class Evaluator:
    """Losses and scores of a family on a grid: one compiled program for all its points.

    Args:
        problem: data and network.
        family: whose networks.
    """

    def __init__(self, problem: ManifoldProblem, family: Family) -> None:
        def rule(bound: tuple[Any, Any, Array], batch: Examples) -> tuple[Array, Array]:
            params, model_state, alpha = bound
            inputs = family.inputs(batch.inputs, alpha)
            outputs, _ = problem.model.apply(params, model_state, inputs)
            return judge(outputs, batch.targets)

        def bind(solution: Any, alpha: Array, batches: Any) -> tuple[Any, Any, Array]:
            """The network at a point; with batches, its own statistics from them."""
            params, model_state = family.at(solution, alpha)

            def update(params: Any, state: Any, raw: Any) -> Any:
                inputs = family.inputs(raw, alpha)
                return problem.model.apply(params, state, inputs, train=True)[1]

            if batches is not None:
                model_state = pareto.recalibrate(
                    update, params, model_state, batches, loop="map"
                )
            return params, model_state, alpha

        def on_grid(
            solution: Any, grid: Array, examples: Examples, batches: Any
        ) -> Any:
            # Batches fill an accelerator as well as points would, in less memory.
            return lax.map(
                lambda alpha: example_means(
                    rule, bind(solution, alpha, batches), examples
                ),
                grid,
            )

        self._slow = problem.slow_loops
        self._bind, self._on_grid = jax.jit(bind), jax.jit(on_grid)
        self._batch = jax.jit(
            lambda bound, batch: [part.sum(-1) for part in rule(bound, batch)]
        )

    def __call__(
        self, solution: Any, grid: np.ndarray, examples: Examples, batches: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean losses and scores, float64 ``(N, T)`` each.

        Args:
            solution: of a finished run.
            grid: points of the simplex ``(N, T)``.
            examples: on which.
            batches: inputs ``(K, B, ...)`` from which every network gets its own batch
                statistics; ``None`` for those of the training.
        """
        alphas = jnp.asarray(grid, jnp.float32)
        if self._slow:
            found = [self._by_batches(solution, a, examples, batches) for a in alphas]
            losses, scores = map(np.stack, zip(*found, strict=True))
        else:
            losses, scores = jax.device_get(
                self._on_grid(solution, alphas, examples, batches)
            )
        return np.asarray(losses, np.float64), np.asarray(scores, np.float64)

    def _by_batches(
        self, solution: Any, alpha: Array, examples: Examples, batches: Any
    ) -> Any:
        """One point from Python's loops over batches, of statistics too: they are means."""
        bound = self._bind(solution, alpha, None)
        if batches is not None:
            states = [self._bind(solution, alpha, batch[None])[1] for batch in batches]
            mean = jax.tree.map(lambda *each: sum(each) / len(each), *states)
            bound = bound[0], mean, alpha
        parts = []
        for begin in range(0, examples.count, EVAL_BATCH):
            batch = jax.tree.map(
                lambda leaf, begin=begin: leaf[begin : begin + EVAL_BATCH], examples
            )
            parts.append(self._batch(bound, batch))
        totals = jax.tree.map(lambda *each: sum(each), *parts)
        return [np.asarray(total) / examples.count for total in totals]
