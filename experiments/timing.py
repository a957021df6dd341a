"""The yardstick of the step times: plain training on the sum of the losses."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from experiments.network import init_model, make_losses
from experiments.problem import Problem
from mtl_jax.data import Split


class PlainStep:
    """A step with one backward pass, as anybody would write it for equal weights.

    Same network, data, optimiser and number of steps in a scan as the methods have.
    """

    def __init__(self, problem: Problem) -> None:
        model = problem.model(problem.num_tasks)
        losses_fn, tx = make_losses(model), problem.optimizer()
        split, key = problem.split("train"), jax.random.key(0)

        def step(split: Split, carry: Any, rows: jax.Array) -> tuple[Any, jax.Array]:
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

        params, model_state = init_model(model, key, split.images[:1])
        carry = params, model_state, tx.init(params)
        self._carry = jax.device_put(carry, problem.replicated)
        rows = problem.order(0, 0)[: problem.chunk_steps]
        self._rows = jax.device_put(rows, problem.replicated)

        def chunk(split: Split, carry: Any, rows: jax.Array) -> Any:
            return lax.scan(functools.partial(step, split), carry, rows)

        self._split = split
        program = jax.jit(chunk).lower(split, self._carry, self._rows)
        self._program = program.compile()
        self.milliseconds()  # the first run is slower

    def milliseconds(self) -> float:
        """Time of one step now, from one chunk of steps."""
        begin = time.perf_counter()
        jax.block_until_ready(self._program(self._split, self._carry, self._rows))
        return 1e3 * (time.perf_counter() - begin) / len(self._rows)
