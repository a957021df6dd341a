"""The yardstick of the step times: plain training on the sum of the losses."""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from experiments.problem import Problem, make_losses

REPEATS = 3


def plain_step_ms(problem: Problem) -> float:
    """Milliseconds of a step with one backward pass, as anybody would write it.

    Same network, data, optimiser and chunks as the methods; the median of a few chunks
    after compilation.
    """
    model = problem.model(problem.num_tasks)
    losses_fn, tx = make_losses(model), problem.optimizer()
    split = problem.split("train")
    image = jnp.zeros((1, *split.images.shape[1:]))
    key = jax.random.key(0)

    def step(carry: Any, rows: jax.Array) -> tuple[Any, jax.Array]:
        params, model_state, opt_state = carry
        batch = jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), split)
        batch = lax.with_sharding_constraint(batch, problem.batch_sharding)

        def total(params: Any) -> tuple[jax.Array, Any]:
            losses, new_state = losses_fn(params, model_state, batch, key)
            return losses.sum(), new_state

        (loss, model_state), grads = jax.value_and_grad(total, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, model_state, opt_state), loss

    params, model_state = model.init(key, image)
    carry = (params, model_state, tx.init(params))
    rows = jax.device_put(
        problem.order(0, 0)[: problem.chunk_steps], problem.replicated
    )
    program = jax.jit(lambda carry, rows: lax.scan(step, carry, rows))
    jax.block_until_ready(program(carry, rows))  # compiles
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        jax.block_until_ready(program(carry, rows))
        times.append(1e3 * (time.perf_counter() - begin) / problem.chunk_steps)
    return statistics.median(times)
