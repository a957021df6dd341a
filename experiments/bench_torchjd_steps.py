"""Steps of the benchmark's part ``torchjd``: the LeNet's, by mtl_jax and by its peer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

import mtl_jax
from experiments import torchjd_peer
from experiments.bench_networks import lenet
from experiments.problem import is_head
from experiments.programs import milliseconds, timings


def measure(
    num_tasks: int,
    batch_size: int,
    methods: tuple[str, ...],
    timing: dict[str, Any],
) -> dict[str, Any]:
    """Milliseconds of a whole step by method and program.

    Args:
        num_tasks: number of losses ``T``.
        batch_size: images per step.
        methods: call strings, timed beside plain steps on the summed loss.
        timing: options of :func:`experiments.programs.timings`.
    """
    programs: dict[tuple[str, str], Callable[[], Any]] = {
        ("plain", "mtl_jax"): _our_step(num_tasks, batch_size, None),
        ("plain", "torch"): torchjd_peer.plain_step(num_tasks, batch_size),
    }
    for method in methods:
        programs[method, "mtl_jax"] = _our_step(num_tasks, batch_size, method)
        peers = torchjd_peer.steps(num_tasks, batch_size, method)
        programs |= {(method, f"torchjd, {key}"): call for key, call in peers.items()}
    results: dict[str, Any] = {}
    for (method, name), times in timings(programs, **timing).items():
        results.setdefault(method, {})[name] = milliseconds("step", times)
    return results


def _our_step(num_tasks: int, batch_size: int, method: str | None) -> Callable[[], Any]:
    """A jitted SGD step of the LeNet, each on the parameters of the one before."""
    problem = lenet(num_tasks, batch_size)
    optimizer = optax.sgd(1e-3)

    def losses_fn(params: Any, images: Any, labels: Any) -> jax.Array:
        return problem.losses_fn(params, problem.model_state, images, labels)[0]

    if method is None:
        tx = optimizer
        source = jax.value_and_grad(lambda *given: losses_fn(*given).sum())
    else:
        weighting = mtl_jax.build_weighting(method, num_tasks)
        tx = optax.chain(mtl_jax.aggregate(weighting, heads=is_head), optimizer)
        source = mtl_jax.value_and_task_grads(losses_fn, heads=is_head)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry: Any, images: Any, labels: Any) -> Any:
        params, state = carry
        losses, grads = source(params, images, labels)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), losses

    kept = {"carry": (problem.params, tx.init(problem.params))}

    def call() -> Any:
        kept["carry"], losses = step(kept["carry"], problem.inputs, problem.labels)
        return kept["carry"], losses

    return call
