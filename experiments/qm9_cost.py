"""Time of a training step on QM9: every method against equal weights, in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from experiments.programs import compile_program, interleaved
from experiments.qm9_problem import (
    Qm9Problem,
    init_params,
    make_losses,
    take,
    training,
)
from experiments.qm9_training import order
from mtl_jax import registry

if TYPE_CHECKING:
    from experiments.qm9 import Qm9Config

BASE = "ls"
KEPT = " (weights kept)"


def measure(problem: Qm9Problem, config: Qm9Config) -> dict[str, Any]:
    """Times one step of every method, batch gathering and Adam included.

    With ``every_k`` a step that renews the weights and one that keeps them are timed, and
    their mean over ``k`` steps is reported.

    Returns:
        ``rows``: name, milliseconds, ratio to equal weights. ``plain`` is a step on the
        summed loss written by hand.
    """
    calls: dict[str, Callable[[], Any]] = {"plain": _plain(problem, config)}
    for call in dict.fromkeys((BASE, *config.cost_methods)):
        calls |= _steps(problem, config, call)
    times = interleaved(calls, config.rounds)
    rows = []
    for name, seconds in times.items():
        if name.endswith(KEPT):
            continue
        every = _every(name) if name != "plain" else 1
        if every > 1:
            seconds = (seconds + (every - 1) * times[name + KEPT]) / every
        ratio = round(seconds / times[BASE], 3)
        rows.append({"name": name, "ms": round(1e3 * seconds, 3), "ratio": ratio})
    atoms = problem.train.inputs.mask.shape[1]
    return {"rows": rows, "rounds": config.rounds, "atoms": atoms}


def _every(call: str) -> int:
    options = registry.parse(call, also=registry.SOURCE_OPTIONS)[1]
    return int(str(options.get("every_k", 1)))


def _steps(
    problem: Qm9Problem, config: Qm9Config, call: str
) -> dict[str, Callable[[], Any]]:
    model = problem.models[problem.num_tasks]
    step, init = training(
        call,
        problem.num_tasks,
        make_losses(model),
        config.learning_rate,
        unit_length=config.unit_length,
    )
    first = jax.tree.map(lambda leaf: leaf[:1], problem.train.inputs)
    params = init_params(model, jax.random.key(0), first)
    state = jax.jit(init)(params, {}, jax.random.key(1))
    rows = order(len(problem.train.targets), config.batch_size, 0, 0)[0]
    program = compile_program(
        lambda state, split, rows: step(state, take(split, rows)),
        state,
        problem.train,
        rows,
    )
    run = program.call.func  # type: ignore[attr-defined]
    calls = {call: program.call}
    if _every(call) > 1:
        later = state._replace(
            source_state=state.source_state._replace(age=jnp.int32(1))
        )
        calls[call + KEPT] = lambda: run(later, problem.train, rows)
    return calls


def _plain(problem: Qm9Problem, config: Qm9Config) -> Callable[[], Any]:
    model = problem.models[problem.num_tasks]
    losses_fn, tx = make_losses(model), optax.adam(config.learning_rate)
    first = jax.tree.map(lambda leaf: leaf[:1], problem.train.inputs)
    params = init_params(model, jax.random.key(0), first)
    rows = order(len(problem.train.targets), config.batch_size, 0, 0)[0]

    def step(params: Any, opt_state: Any, split: Any, rows: Any) -> Any:
        def total(params: Any) -> jax.Array:
            return losses_fn(params, {}, take(split, rows), jax.random.key(0))[0].sum()

        loss, grads = jax.value_and_grad(total)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    args = params, tx.init(params), problem.train, rows
    return compile_program(step, *args).call
