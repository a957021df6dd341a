"""The 1,500-parameter problem of the study ``explore`` and its empirical front."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax.flatten_util import ravel_pytree

from experiments import cli, progress, records, toy_table
from experiments.explore import ExploreConfig
from mtl_jax import data, metrics, models

PAIRS = (2048, 0, 0)


class MiniProblem(NamedTuple):
    """Losses of a flat vector of parameters on one fixed set of pictures."""

    losses: Callable[[jax.Array, Any], jax.Array]
    """``(parameters (P,), data) -> (2,)``; the data travel as an argument, so that no
    program holds a copy."""
    data: data.Split
    """On the device: pictures float32 (N, 14, 14, 1), labels int32 (N, 2)."""
    start: np.ndarray
    """Common starting point of all weights, float32 (P,)."""
    source: str


class Minimum(NamedTuple):
    """Where L-BFGS ended on one weighted sum."""

    params: Any
    """float32 (P,)."""
    evaluations: Any
    """Functions with gradients."""
    seconds: Any
    cpu_seconds: Any


class EmpiricalFront(NamedTuple):
    """Minima of weighted sums, and which of them count as a front."""

    weights: np.ndarray
    """Weight of loss 1, (n,)."""
    params: np.ndarray
    """float32 (n, P)."""
    losses: np.ndarray
    """(n, 2)."""
    evaluations: np.ndarray
    """Functions with gradients that each minimum took, (n,)."""
    kept: np.ndarray
    """Indices of the points that are not strictly dominated and within the limits, in
    order of loss 1."""
    seconds: float
    cpu_seconds: float
    """Of this process; on a shared machine they tell more."""


def make_problem(config: ExploreConfig) -> MiniProblem:
    """Pictures and network of Figure 4.

    Raises:
        FileNotFoundError: if the base set is not in ``data_dir``.
        ValueError: if no training pictures are asked for.
    """
    pairs = PAIRS if config.pairs is None else config.pairs
    if pairs[0] < 1:
        raise ValueError(f"mini_mnist needs training pictures, got pairs={pairs}")
    loaded = data.load_multi_mnist(
        construction="exploration_14",
        data_dir=config.data_dir,
        pairs=(pairs[0], 0, 0),
        validation=0,
        seed=config.data_seed,
    )
    images = data.standardize(loaded.train.images)
    model = models.as_functional(models.MiniLeNet(2))
    params, model_state = model.init(jax.random.key(config.seed), images[:1])
    start, unravel = ravel_pytree(params)

    def losses(vector: jax.Array, split: Any) -> jax.Array:
        logits, _ = model.apply(unravel(vector), model_state, split.images)
        return models.cross_entropy(logits, split.labels)

    split = jax.device_put(data.Split(images, loaded.train.labels))
    return MiniProblem(losses, split, np.asarray(start), loaded.source)


def empirical_front(
    problem: MiniProblem, config: ExploreConfig, folder: Path
) -> EmpiricalFront:
    """Minimises evenly spaced weighted sums by L-BFGS-B with SciPy's defaults.

    The optimiser works in float64, losses and gradients are float32, as published. Each
    minimum is saved in ``minima.npz``; with ``config.resume`` those there are kept.

    Raises:
        ValueError: if fewer than two points remain, or the file is damaged.
    """
    objective = jax.jit(
        jax.value_and_grad(lambda x, weights, split: weights @ problem.losses(x, split))
    )

    def value_and_grad(x: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = objective(np.float32(x), weights, problem.data)
        return float(value), np.asarray(grad, np.float64)

    firsts = np.linspace(0, 1, config.front_weights)
    path = folder / "minima.npz"
    done = _saved(path) if config.resume and path.exists() else []
    with progress.show(len(firsts), enabled=cli.is_terminal()) as bar:
        bar.describe("L-BFGS")
        bar.advance(len(done))
        for first in firsts[len(done) :]:
            begin, cpu_begin = time.perf_counter(), time.process_time()
            result = scipy.optimize.minimize(
                value_and_grad,
                problem.start.astype(np.float64),
                args=(np.array([first, 1 - first], np.float32),),
                method="L-BFGS-B",
                jac=True,
                options={"maxiter": config.front_iterations},
            )
            seconds = time.perf_counter() - begin
            cpu_seconds = time.process_time() - cpu_begin
            done.append(
                Minimum(np.float32(result.x), result.nfev, seconds, cpu_seconds)
            )
            records.write_bytes(path, toy_table.as_npz(**_columns(done)))
            bar.advance(1)
    columns = _columns(done)
    evaluate = jax.jit(problem.losses)
    losses = [evaluate(jnp.asarray(x), problem.data) for x in columns["params"]]
    losses = np.asarray(jax.device_get(losses))
    return EmpiricalFront(
        firsts,
        columns["params"],
        losses,
        columns["evaluations"],
        kept_points(losses, config.front_limits),
        float(columns["seconds"].sum()),
        float(columns["cpu_seconds"].sum()),
    )


def _columns(minima: Sequence[Minimum]) -> dict[str, np.ndarray]:
    names = Minimum._fields
    return {n: np.stack([getattr(each, n) for each in minima]) for n in names}


def _saved(path: Path) -> list[Minimum]:
    try:
        with np.load(path) as saved:
            columns = [saved[name] for name in Minimum._fields]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        raise ValueError(f"{path} is damaged: delete it") from None
    return [Minimum(*row) for row in zip(*columns, strict=True)]


def kept_points(losses: np.ndarray, limits: tuple[float, ...]) -> np.ndarray:
    """Indices of the points of the front, in order of loss 1.

    Args:
        losses: (n, 2).
        limits: least and largest loss 1, then loss 2; strictly dominated points (worse in
            both losses) are left out, too.

    Raises:
        ValueError: if fewer than two points remain.
    """
    low, high = np.array(limits[::2]), np.array(limits[1::2])
    inside = ((losses >= low[None]) & (losses <= high[None])).all(axis=1)
    marks = metrics.non_dominated(losses, strict=True, tolerance=0) & inside
    indices = np.flatnonzero(marks)
    if len(indices) < 2:
        raise ValueError(
            f"{len(indices)} points of the empirical front lie within "
            f"front_limits={limits}, at least 2 are needed: widen the limits, or raise "
            "front_weights"
        )
    return indices[np.argsort(losses[indices, 0])]
