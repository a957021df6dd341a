"""Training on CelebA, and the time of a step of every method."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import records
from experiments.programs import Program, compile_program, timings
from experiments.qm9_problem import training
from experiments.qm9_training import order
from mtl_jax import models, train
from mtl_jax.data import AttributeData, AttributeSplit
from mtl_jax.models import FunctionalModel

if TYPE_CHECKING:
    from experiments.celeba import CelebaConfig

Array = jax.Array
BASE = "ls"
EVAL_BATCH = 64
MOST_SECONDS = 60.0
"""A program that took as long is not timed again."""


def make_losses(model: FunctionalModel) -> train.TrainLossesFn:
    """Cross-entropy of every attribute, on bytes."""

    def losses_fn(params: Any, state: Any, batch: AttributeSplit, key: Any) -> Any:
        pictures = jnp.asarray(batch.images, jnp.float32) / 255
        logits, state = model.apply(params, state, pictures, train=True, key=key)
        return models.cross_entropy(logits, jnp.asarray(batch.labels)), state

    return losses_fn


def run(
    config: CelebaConfig,
    loaded: AttributeData,
    model: FunctionalModel,
    call: str,
    seed: int,
) -> dict[str, Any]:
    """Trains one method and returns its record: errors after the best epoch.

    Raises:
        records.NonFiniteError: if a loss leaves the finite numbers.
    """
    print(f"  {call}, seed {seed} ...", flush=True)
    program, state = _compiled(config, loaded, model, call, seed)
    best: dict[str, Any] = {"validation": np.inf}
    history, begin = [], time.perf_counter()
    for epoch in range(config.epochs):
        losses = []
        # Calls from Python: inside loops XLA's CPU backend is slow at convolutions.
        for rows in _order(config, loaded, seed, epoch):
            state, record = program(state, loaded.train, rows)
            losses.append(record.losses)
        means = np.mean(jax.device_get(losses), axis=(0, 1))
        if not np.isfinite(means):
            raise records.NonFiniteError(
                f"a loss of {call} is not finite in epoch {epoch + 1}: lower the learning "
                "rate"
            )
        found = [
            wrong(model, state.params, state.model_state, split)
            for split in (loaded.validation, loaded.test)
        ]
        validation, test = (float(each.mean()) for each in found)
        history.append([float(means), validation])
        if validation < best["validation"]:
            best = {"validation": validation, "test": test, "epoch": epoch + 1}
            best["by_attribute"] = records.rounded(found[1].tolist())
    seconds = round(time.perf_counter() - begin, 2)
    print(f"  {call}, seed {seed}: test error {100 * best['test']:.2f} %", flush=True)
    rounded = records.rounded(history)
    return {
        "method": call,
        "seed": seed,
        **best,
        "history": rounded,
        "seconds": seconds,
    }


def wrong(
    model: FunctionalModel, params: Any, state: Any, split: AttributeSplit
) -> np.ndarray:
    """Share of wrong answers of every attribute, ``(T,)``."""
    count = len(split.labels)
    total = np.zeros(split.labels.shape[1])
    for start in range(0, count, EVAL_BATCH):
        images, labels = (leaf[start : start + EVAL_BATCH] for leaf in split)
        total += np.asarray(_wrong(model, params, state, images, labels))
    return total / count


@functools.partial(jax.jit, static_argnums=0)
def _wrong(
    model: FunctionalModel, params: Any, state: Any, images: Array, labels: Array
) -> Array:
    pictures = images.astype(jnp.float32) / 255
    logits, _ = model.apply(params, state, pictures)
    return (logits.argmax(-1).T != labels).sum(0)


def measure(
    config: CelebaConfig, loaded: AttributeData, model: FunctionalModel
) -> dict[str, Any]:
    """Times a step of every method in turn, batch gathering and Adam included.

    Returns:
        ``rows``: name, milliseconds, ratio to equal weights, seconds of compilation.
    """
    programs: dict[str, Program] = {}
    for call in dict.fromkeys((BASE, *config.cost_methods)):
        print(f"  compiling a step of {call} ...", flush=True)
        programs[call] = _program(config, loaded, model, call)
    calls = {name: program.call for name, program in programs.items()}
    times = timings(calls, config.rounds, MOST_SECONDS)
    medians = {name: float(np.median(seconds)) for name, seconds in times.items()}
    rows = [
        {
            "name": name,
            "ms": round(1e3 * seconds, 3),
            "ratio": round(seconds / medians[BASE], 4),
            "mb": round(programs[name].megabytes, 1),
            "compile_s": round(programs[name].compile_seconds, 1),
        }
        for name, seconds in medians.items()
    ]
    return {"rows": rows, "tasks": config.tasks, "batch_size": config.batch_size}


def _program(
    config: CelebaConfig, loaded: AttributeData, model: FunctionalModel, call: str
) -> Program:
    step, state = _started(config, loaded, model, call, 0)
    rows = _order(config, loaded, 0, 0)[0]
    return compile_program(
        functools.partial(_take_step, step), state, loaded.train, rows
    )


def _compiled(
    config: CelebaConfig,
    loaded: AttributeData,
    model: FunctionalModel,
    call: str,
    seed: int,
) -> tuple[Any, train.TrainState]:
    step, state = _started(config, loaded, model, call, seed)
    return jax.jit(functools.partial(_take_step, step), donate_argnums=0), state


def _take_step(step: train.Step, state: Any, split: AttributeSplit, rows: Array) -> Any:
    return step(state, jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), split))


def _started(
    config: CelebaConfig,
    loaded: AttributeData,
    model: FunctionalModel,
    call: str,
    seed: int,
) -> tuple[train.Step, train.TrainState]:
    num_tasks = loaded.train.labels.shape[1]
    losses_fn = make_losses(model)
    step, init = training(call, num_tasks, losses_fn, config.learning_rate)
    init_key, run_key = jax.random.split(jax.random.key(seed))
    pictures = jnp.asarray(loaded.train.images[:1], jnp.float32)
    params, model_state = model.init(init_key, pictures)
    return step, jax.jit(init)(params, model_state, run_key)


def _order(
    config: CelebaConfig, loaded: AttributeData, seed: int, epoch: int
) -> np.ndarray:
    return order(len(loaded.train.labels), config.batch_size, seed, epoch)
