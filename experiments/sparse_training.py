"""Training loop and evaluation of the study ``sparse``: the best epoch by validation."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments import records
from experiments.explore_outputs import Examples
from experiments.explore_problems import example_means
from experiments.manifold_problems import judge
from experiments.manifold_training import order
from experiments.sparse_problems import Network, SparseProblem
from experiments.sparse_steps import Fit
from mtl_jax import sparsity

Array = jax.Array
PROGRESS = 30.0
"""Seconds between two lines about a training run."""


class Trained(NamedTuple):
    """A finished run."""

    params: Any
    """Of the chosen epoch, as ``model_state``."""
    model_state: Any
    last: Any
    """Parameters and model state after the last step."""
    epoch: int
    """The chosen one, counted from 1."""
    history: list[dict[str, Any]]
    """By epoch: mean training losses, validation accuracies, share of zero rows."""
    seconds: float
    """Spent on the steps, without compilation and evaluation."""
    compile_seconds: float
    steps: int
    cosines: np.ndarray
    """Of every step ``(S,)``, or empty."""


class Evaluator:
    """Mean losses and accuracies of one network, one compiled program."""

    def __init__(self, net: Network, problem: SparseProblem) -> None:
        def rule(bound: tuple[Any, Any], batch: Examples) -> tuple[Array, Array]:
            inputs = problem.prepare(batch.inputs, None)
            outputs, _ = net.model.apply(*bound, inputs)
            logits = outputs[0] if isinstance(outputs, tuple) else outputs
            return judge(logits, batch.targets)

        self._rule = rule

    def __call__(
        self, params: Any, model_state: Any, examples: Examples
    ) -> tuple[list[float], list[float]]:
        """Losses and accuracies ``(T,)``."""
        found = example_means(self._rule, (params, model_state), examples)
        losses, scores = jax.device_get(found)
        return records.rounded(losses.tolist()), records.rounded(scores.tolist())


class Trainer:
    """Trains runs of one length together or one by one; compiled programs are kept.

    Args:
        problem: data.
        batch_size: examples of a step.
        steps_per_epoch: at most, for trials.
    """

    def __init__(
        self,
        problem: SparseProblem,
        batch_size: int,
        steps_per_epoch: int | None = None,
    ) -> None:
        self.problem, self.batch_size = problem, batch_size
        whole = problem.train.count // batch_size
        self.steps_per_epoch = min(whole, steps_per_epoch or whole)
        self._programs: dict[Any, Callable[..., Any]] = {}

    def run(
        self,
        fit: Fit,
        starts: Sequence[Any],
        evaluate: Evaluator,
        seed: int,
        *,
        min_sparsity: float = 0.0,
        data: SparseProblem | None = None,
    ) -> list[Trained]:
        """Trains from every start; all see the same batches in the same order.

        Of each run the epoch with the best mean validation accuracy is kept, among those
        whose share of zero rows is at least ``min_sparsity`` if there is one.

        Args:
            fit: how.
            starts: states from ``fit.init``; several are trained as one program.
            evaluate: of the network.
            seed: of the order of the examples.
            min_sparsity: per cent of all kernels' rows.
            data: other splits than the problem's, e.g. of one task.

        Raises:
            records.NonFiniteError: if a loss leaves the finite numbers.
        """
        data = self.problem if data is None else data
        together = len(starts) > 1
        state = jax.tree.map(
            jnp.array, starts[0]
        )  # donated: never the caller's buffers
        if together:
            state = jax.tree.map(lambda *each: jnp.stack(each), *starts)
        count = len(starts)
        best: list[Any] = [None] * count
        histories: list[list[dict[str, Any]]] = [[] for _ in starts]
        cosines: list[np.ndarray] = []
        seconds = compiling = 0.0
        told = time.perf_counter()
        for epoch in range(fit.epochs):
            rows = order(data.train.count, self.batch_size, seed, epoch)
            rows = rows[: self.steps_per_epoch]
            begin = time.perf_counter()
            program = self._program(fit, state, data.train, rows, count)
            middle = time.perf_counter()
            state, found = jax.block_until_ready(program(state, data.train, rows))
            seconds += time.perf_counter() - middle
            compiling += middle - begin
            losses = np.asarray(found["losses"]).reshape(len(rows), count, -1)
            if not np.isfinite(losses).all():
                raise records.NonFiniteError(
                    f"a loss is not finite in epoch {epoch + 1} of {fit.name}: lower the "
                    "learning rate"
                )
            if "cosine" in found:
                cosines.append(np.asarray(found["cosine"]).reshape(len(rows), count))
            for k in range(count):
                one = _member(state[:2], k) if together else state[:2]
                entry = _entry(evaluate, data, one, losses[:, k])
                if "weights" in found:
                    weights = np.asarray(found["weights"]).reshape(len(rows), count, -1)
                    entry["weights"] = records.rounded(weights[:, k].mean(0).tolist())
                histories[k].append(entry)
                best[k] = _better(best[k], entry, one, epoch + 1, min_sparsity)
            if time.perf_counter() - told > PROGRESS:
                told = time.perf_counter()
                _tell(fit, epoch, [history[-1] for history in histories])
        ends = [_member(state[:2], k) if together else state[:2] for k in range(count)]
        angles = np.concatenate(cosines) if cosines else np.zeros((0, count))
        kept = [jax.device_get(each[2]) for each in best]
        return [
            Trained(
                params=kept[k][0],
                model_state=kept[k][1],
                last=jax.device_get(ends[k]),
                epoch=best[k][1],
                history=histories[k],
                seconds=seconds / count,
                compile_seconds=compiling / count,
                steps=fit.epochs * self.steps_per_epoch,
                cosines=angles[:, k],
            )
            for k in range(count)
        ]

    def _program(
        self, fit: Fit, state: Any, train: Examples, rows: np.ndarray, count: int
    ) -> Callable[..., Any]:
        structure = jax.tree.structure((state, train))
        key = fit.step, rows.shape, count, structure
        if key not in self._programs:
            step = fit.step if count == 1 else jax.vmap(fit.step, in_axes=(0, None))
            jitted = jax.jit(functools.partial(_scan, step), donate_argnums=0)
            self._programs[key] = jitted.lower(state, train, rows).compile()
        return self._programs[key]


def _scan(
    step: Callable[..., Any], state: Any, examples: Examples, rows: Array
) -> tuple[Any, Any]:
    def body(state: Any, rows: Array) -> tuple[Any, Any]:
        batch = jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), examples)
        return step(state, batch)

    return lax.scan(body, state, rows)


def _tell(fit: Fit, epoch: int, entries: list[dict[str, Any]]) -> None:
    """One line about the first of the runs, for those who wait."""
    losses, scores = (
        ", ".join(f"{value:.4f}" for value in entries[0][key])
        for key in ("losses", "validation")
    )
    print(
        f"    {fit.name}: epoch {epoch + 1} of {fit.epochs}, losses {losses}, validation "
        f"{scores}, zero rows {entries[0]['sparsity']:.1f} %",
        flush=True,
    )


def _member(state: Any, k: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[k], state)


def _entry(
    evaluate: Evaluator, data: SparseProblem, one: Any, losses: np.ndarray
) -> dict[str, Any]:
    params, model_state = one
    _, scores = evaluate(params, model_state, data.validation)
    return {
        "losses": records.rounded(losses.mean(0).tolist()),
        "validation": scores,
        "sparsity": round(zero_share(params), 2),
    }


def zero_share(params: Any) -> float:
    """Per cent of the rows of all kernels that are zero."""
    rows = sparsity.zero_rows(params, lambda path: path.endswith("kernel"))
    masks = [np.asarray(mask).ravel() for mask in rows.values()]
    return 100 * float(np.concatenate(masks).mean())


def _better(
    best: Any, entry: dict[str, Any], one: Any, epoch: int, floor: float
) -> Any:
    """``(rank, epoch, network)``: enough zero rows first, then validation accuracy."""
    rank = entry["sparsity"] >= floor, float(np.mean(entry["validation"]))
    if best is None or rank > best[0]:
        # A copy: the buffers of the state are given away to the next epoch.
        return rank, epoch, jax.tree.map(jnp.array, one)
    return best
