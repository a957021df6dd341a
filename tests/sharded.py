"""A small model trained on a mesh, for the tests of sharding: what it sends is counted."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import mtl_jax
from mtl_jax import sharding
from mtl_jax.train import init_state, make_train_step
from tests.hlo import collectives

WIDTHS = (40, 32, 48, 24)
BATCH = 8
# Sizes are such that the smallest kernel's task gradients on one device (T x 1152 / 4)
# outweigh any activations' (T x 4 x 48): a collective's size tells them apart.
RULES = (
    ("encoder/0/kernel", P(None, "model")),
    ("encoder/1/kernel", P("model", None)),
    (r"heads/\d+/kernel", P("model", None)),
    ("encoder/.*/bias", P("model")),
)
MOVES = ("all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def is_head(path):
    return path.startswith("heads/")


def problem(num_tasks, dtype=jnp.float32):
    """A regression: two shared layers and a linear head per task."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(0.3 * rng.normal(size=shape), dtype)

    def dense(fan_in, fan_out):
        return {"kernel": draw(fan_in, fan_out), "bias": draw(fan_out)}

    a, b, c, d = WIDTHS
    params = {
        "encoder": {"0": dense(a, b), "1": dense(b, c)},
        "heads": {str(t): dense(c, d) for t in range(num_tasks)},
    }
    batch = {"x": draw(BATCH, a), "y": draw(BATCH, num_tasks, d)}

    def affine(layer, x):
        return x @ layer["kernel"] + layer["bias"][None]

    def losses_fn(params, model_state, batch, key):
        del key
        hidden = jnp.tanh(affine(params["encoder"]["0"], batch["x"]))
        hidden = jnp.tanh(affine(params["encoder"]["1"], hidden))
        outs = [affine(params["heads"][str(t)], hidden) for t in range(num_tasks)]
        errors = jnp.stack(outs, 1) - batch["y"]
        return jnp.square(errors).mean((0, 2)), model_state

    return params, batch, losses_fn


def mesh_of(data, model):
    return sharding.make_mesh(jax.devices()[: data * model], model=model)


def compiled(step, *args, **kwargs):
    """Little optimisation of the machine code: it takes longer than to run it."""
    lowered = jax.jit(step, donate_argnums=0, **kwargs).lower(*args)
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 0})


class Training:
    """A compiled step, its initial state and batch; on ``mesh``, or one device."""

    def __init__(
        self, call, num_tasks, mesh=None, rules=(), dtype=jnp.float32, **options
    ):
        params, batch, losses_fn = problem(num_tasks, dtype)
        tx = optax.chain(mtl_jax.build(call, num_tasks), optax.adam(1e-2))
        if options.get("heads"):
            weighting = mtl_jax.build_weighting(call, num_tasks)
            method = mtl_jax.aggregate(weighting, heads=options["heads"])
            tx = optax.chain(method, optax.adam(1e-2))
        placement = {}
        state = init_state(params, {}, tx, jax.random.key(0))
        if mesh is not None:
            shardings = sharding.param_shardings(params, mesh, rules)
            losses_fn = sharding.constrain(losses_fn, shardings)
            self.shardings = sharding.state_shardings(state, params, shardings)
            state = jax.device_put(state, self.shardings)
            batch = jax.device_put(batch, sharding.batch_sharding(mesh))
            placement["out_shardings"] = (self.shardings, NamedSharding(mesh, P()))
        step = make_train_step(losses_fn, tx, **options)
        self.step = compiled(step, state, batch, **placement)
        self.state, self.batch, self.params = state, batch, params

    def collectives(self):
        return collectives(self.step.as_text())


@functools.cache
def plain_collectives(mesh, rules=(), num_tasks=3):
    """Of an ordinary data-parallel step on the sum of the losses."""
    params, batch, losses_fn = problem(num_tasks)
    shardings = sharding.param_shardings(params, mesh, rules)
    losses_fn, adam = sharding.constrain(losses_fn, shardings), optax.adam(1e-2)

    def step(state, batch):
        params, moments = state

        def total(params):
            losses, _ = losses_fn(params, {}, batch, None)
            return losses.sum(), losses

        grads, losses = jax.grad(total, has_aux=True)(params)
        updates, moments = adam.update(grads, moments)
        return (optax.apply_updates(params, updates), moments), losses

    state = (params, adam.init(params))
    placed = sharding.state_shardings(state, params, shardings)
    state = jax.device_put(state, placed)
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    out = (placed, NamedSharding(mesh, P()))
    return collectives(compiled(step, state, batch, out_shardings=out).as_text())


def count(params, mesh=None, rules=()):
    """Numbers in ``params``, or those of them that one device holds."""
    leaves = jax.tree.leaves(params)
    if mesh is None:
        return sum(leaf.size for leaf in leaves)
    shardings = jax.tree.leaves(sharding.param_shardings(params, mesh, rules))
    return sum(
        math.prod(s.shard_shape(leaf.shape))
        for leaf, s in zip(leaves, shardings, strict=True)
    )


def sent(found, op=None, groups=None):
    """Numbers, over all executions, in the results of the given collectives."""
    return sum(
        c.executions * sum(c.sizes)
        for c in found
        if op in (None, c.op) and groups in (None, c.groups)
    )


def check_no_jacobian_moves(found, params, num_tasks, mesh):
    """Nothing as large as one kernel's task gradients goes through a moving collective."""
    kernels = [leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    bound = num_tasks * min(kernels) // mesh.shape["model"]
    for c in found:
        if c.op in MOVES:
            assert c.executions * sum(c.sizes) < bound, c
