"""A small network with heads, and a weighting that looks at everything."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from mtl_jax import Weighting
from mtl_jax.gradients import linearize_losses, trace_losses
from mtl_jax.solvers.scaling import full_precision


def is_head(path):
    return path.startswith("heads/")


def mlp(num_tasks, *, examples=5, inputs=4, width=6, dtype=None, seed=0):
    """Parameters, batch and losses of a two-layer encoder with one dense head per task."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    params = {
        "encoder": {
            "a": normal(inputs, width),
            "b": normal(width),
            "c": normal(width, width),
        },
        "heads": {"w": normal(num_tasks, width), "b": normal(num_tasks)},
    }
    batch = {"x": normal(examples, inputs), "y": normal(num_tasks, examples)}

    def losses_fn(params, batch):
        z = jnp.tanh(batch["x"] @ params["encoder"]["a"] + params["encoder"]["b"][None])
        z = jnp.tanh(z @ params["encoder"]["c"])
        out = jnp.einsum("bi,ti->tb", z, params["heads"]["w"])
        error = out + params["heads"]["b"][:, None] - batch["y"]
        return jnp.square(error).mean(1)

    return params, batch, losses_fn


def probe(num_tasks):
    """A cheap weighting of every entry of the Gramian, the losses, and the step.

    The Gramian is asymmetric in it, so that a wrong order of the tasks shows too.
    """

    @full_precision
    def update(statistics, step):
        gram, losses = statistics.gram, statistics.losses
        scores = gram @ jnp.linspace(1, 2, num_tasks, dtype=gram.dtype)
        scores = scores / jnp.trace(gram) + 0.1 * losses.astype(gram.dtype)
        return jnp.cos(scores) + 0.1 * step, step + 1

    return Weighting(lambda: jnp.zeros([], jnp.int32), update, num_tasks)


def traced(losses_fn, params, heads=None):
    """The linearised losses and their pull-back as equations."""
    linear = linearize_losses(losses_fn, 0, False, heads, (params,), {})
    return linear, trace_losses(linear)
