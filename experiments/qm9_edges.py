"""Dense padded edges against lists of edges: time and memory of message passing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.programs import compile_program, interleaved
from experiments.qm9_problem import Qm9Problem, graph_batch, take
from experiments.qm9_training import order
from mtl_jax.models import GraphBatch
from mtl_jax.models.nn_conv import ORDERS, EdgeUnits, NNConv

if TYPE_CHECKING:
    from experiments.qm9 import Qm9Config

Array = jax.Array
ROUNDS = 3


def measure(problem: Qm9Problem, config: Qm9Config) -> dict[str, Any]:
    """Times value and gradient of three rounds of message passing, four ways.

    ``dense``: both orders of :class:`NNConv`, on ``N x N`` pairs with padding. ``lists, a
    matrix per edge``: the published form on exactly the edges there are (no padding),
    gathers and a segment sum; ``lists, a product per edge``: the same with the sums in the
    order of ``edges_first``. All four are checked to agree.

    Returns:
        ``rows``: name, milliseconds, ratio to the fastest, MB of temporaries and results.
    """
    rows = order(len(problem.train.targets), config.batch_size, 0, 0)[0]
    batch = graph_batch(take(problem.train, rows).inputs)
    width, units = config.hidden, config.edge_hidden
    size = batch.mask.shape[1]
    edge_units, conv = EdgeUnits(units), NNConv(width)
    x = jax.random.normal(jax.random.key(0), (*batch.mask.shape, width))
    x = jnp.where(batch.mask[..., None], x, 0)
    first = GraphBatch(*(leaf[:1] for leaf in batch))
    shapes = jnp.zeros((1, size, size, units))
    params = {
        "units": edge_units.init(jax.random.key(1), first.edges, first.mask)["params"],
        "conv": conv.init(jax.random.key(2), x[:1], shapes, first.mask)["params"],
    }

    def dense(name: str) -> Callable[..., Array]:
        def loss(params: Any, x: Array, batch: GraphBatch) -> Array:
            _, edges, mask = batch
            weights: Any = edge_units.apply({"params": params["units"]}, edges, mask)
            for _ in range(ROUNDS):
                one: Any = NNConv(width, name).apply(
                    {"params": params["conv"]}, x, weights, mask
                )
                x = jnp.where(mask[..., None], jnp.tanh(one), 0)
            return jnp.square(x).sum()

        return loss

    flat = _as_lists(x, batch)
    programs = {
        f"dense, {name}": compile_program(
            jax.value_and_grad(dense(name)), params, x, batch
        )
        for name in ORDERS
    }
    for name, matrices in (("matrix", True), ("product", False)):
        programs[f"lists, a {name} per edge"] = compile_program(
            jax.value_and_grad(_lists_loss(matrices)), params, *flat
        )
    results = [jax.device_get(program.call()) for program in programs.values()]
    for value, grads in results[1:]:
        np.testing.assert_allclose(value, results[0][0], rtol=1e-3)
        for one, two in zip(*map(jax.tree.leaves, (grads, results[0][1])), strict=True):
            np.testing.assert_allclose(one, two, atol=2e-3 * np.abs(two).max() + 1e-6)
    times = interleaved({n: p.call for n, p in programs.items()}, config.rounds)
    fastest = min(times.values())
    edges, pairs = len(flat[1]), batch.mask.size * size
    return {
        "title": f"three rounds of message passing, batch {config.batch_size}, "
        f"{edges:,} edges of {pairs:,} padded pairs ({size} atoms), width {width}",
        "rows": [
            {
                "name": name,
                "ms": round(1e3 * seconds, 3),
                "ratio": round(seconds / fastest, 3),
                "mb": round(programs[name].megabytes, 1),
            }
            for name, seconds in times.items()
        ],
        "rounds": config.rounds,
    }


def _as_lists(x: Array, batch: GraphBatch) -> tuple[Array, Array, Array, Array, Array]:
    """Nodes ``(A, d)``; of each edge sender, receiver ``(E,)``, features; neighbours."""
    mask = np.asarray(batch.mask)
    place = np.cumsum(mask.ravel()).reshape(mask.shape) - 1
    pair = mask[:, :, None] & mask[:, None] & ~np.eye(mask.shape[1], dtype=bool)[None]
    which, to, sender = np.nonzero(pair)
    features = np.asarray(batch.edges)[which, to, sender]
    neighbours = np.repeat(mask.sum(1), mask.sum(1)) - 1
    lists = place[which, sender], place[which, to], features
    nodes = np.asarray(x)[mask]
    sending, receiving, features = map(jnp.asarray, lists)
    return jnp.asarray(nodes), sending, receiving, features, jnp.asarray(neighbours)


def _lists_loss(matrices: bool) -> Callable[..., Array]:
    def loss(
        params: Any, x: Array, sender: Array, to: Array, features: Array, count: Array
    ) -> Array:
        affine, conv = params["units"]["dense"], params["conv"]
        units = jax.nn.relu(features @ affine["kernel"] + affine["bias"][None])
        kernel, width = jnp.transpose(conv["kernel"], (1, 0, 2)), x.shape[1]
        number = units.shape[1]
        inverse = 1 / jnp.maximum(count, 1).astype(x.dtype)[:, None]
        if matrices:
            per_edge = units @ kernel.reshape(number, -1)
            per_edge = per_edge.reshape(-1, width, width) + conv["constant"][None]
        for _ in range(ROUNDS):
            sent = jnp.take(x, sender, axis=0)
            if matrices:
                messages = jnp.einsum("ed,edo->eo", sent, per_edge)
                total = jax.ops.segment_sum(messages, to, len(x))
            else:
                products = (units[:, :, None] * sent[:, None]).reshape(len(sent), -1)
                gathered = jax.ops.segment_sum(products, to, len(x))
                total = gathered @ kernel.reshape(-1, width)
                total += jax.ops.segment_sum(sent, to, len(x)) @ conv["constant"]
            x = jnp.tanh(x @ conv["root"] + total * inverse + conv["bias"][None])
        return jnp.square(x).sum()

    return loss
