"""The message-passing network: float64 NumPy, invariances, sizes, errors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import models
from mtl_jax.models import MPNN, GraphBatch
from mtl_jax.models.nn_conv import EdgeUnits, NNConv
from tests.helpers import slow_but

TINY = {"hidden": 4, "edge_hidden": 6, "param_dtype": jnp.float64}
TINY |= {"rounds": 2, "readout_steps": 2}
COUNTS = (5, 3, 1)  # atoms; a single one has no neighbour


def graphs(seed=0, size=5):
    """A batch of random graphs, with numbers where there is no node, too."""
    rng = np.random.default_rng(seed)
    shape = len(COUNTS), size
    mask = np.arange(size)[None] < np.array(COUNTS)[:, None]
    nodes, edges = rng.normal(size=(*shape, 3)), rng.normal(size=(*shape, size, 2))
    return GraphBatch(nodes, edges, mask)


def random_like(shapes, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) / 2, shapes)


@functools.cache
def network():
    """Shared by the tests below: one compilation."""
    model = models.as_functional(MPNN(2, **TINY))
    params, _ = jax.eval_shape(model.init, jax.random.key(0), graphs())
    params = random_like(params)

    def predict(batch):
        weights = jnp.array([[1.0], [3.0]])

        def loss(params):
            outputs = model.apply(params, {}, batch)[0][..., 0]
            return (weights * outputs).sum(), outputs

        (_, outputs), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return outputs, grads

    return params, jax.jit(predict)


# --- a plain computation, one molecule without padding at a time ----------------------


def relu(x):
    return np.maximum(x, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def nn_conv(conv, dense, x, edges):
    """The literal formula: a matrix for every pair of nodes."""
    units = relu(edges @ dense["kernel"] + dense["bias"])
    matrices = np.tensordot(units, conv["kernel"], (2, 1)) + conv["constant"]
    out = x @ conv["root"] + conv["bias"]
    for i in range(len(x)):
        for j in range(len(x)):
            if i != j:
                out[i] += x[j] @ matrices[i, j] / (len(x) - 1)
    return out


def gru(p, x, h):
    a = np.split(x @ p["input"]["kernel"] + p["input"]["bias"], 3, -1)
    b = np.split(h @ p["state"]["kernel"] + p["state"]["bias"], 3, -1)
    reset, update = sigmoid(a[0] + b[0]), sigmoid(a[1] + b[1])
    return (1 - update) * np.tanh(a[2] + reset * b[2]) + update * h


def set2set(p, x, steps=2):
    h = cell = np.zeros(x.shape[1])
    query = np.zeros(2 * x.shape[1])
    for _ in range(steps):
        total = query @ p["input"]["kernel"] + p["input"]["bias"]
        total += h @ p["state"]["kernel"] + p["state"]["bias"]
        enter, forget, new, leave = np.split(total, 4)
        cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(new)
        h = sigmoid(leave) * np.tanh(cell)
        scores = np.exp(x @ h)
        query = np.concatenate([h, scores @ x / scores.sum()])
    return query


def reference(params, nodes, edges):
    p, heads = params["encoder"], params["heads"]["out"]
    r = p["round"]
    h = relu(nodes @ p["embed"]["kernel"] + p["embed"]["bias"])
    for _ in range(2):
        h = gru(
            r["gru"], relu(nn_conv(r["conv"], p["edge_units"]["dense"], h, edges)), h
        )
    z = set2set(p["readout"]["lstm"], h) @ p["dense"]["kernel"] + p["dense"]["bias"]
    return np.array(
        [
            relu(z) @ kernel[:, 0] + bias[0]
            for kernel, bias in zip(heads["kernel"], heads["bias"], strict=True)
        ]
    )


@pytest.mark.parametrize(
    "order", slow_but(["nodes_first"], ["nodes_first", "edges_first"])
)
def test_convolution_is_the_literal_formula(x64, order):
    nodes, edges, mask = graphs()
    x = np.where(mask[..., None], np.concatenate([nodes, nodes], -1)[..., :4], 0)
    units = EdgeUnits(6, jnp.float64)
    conv = NNConv(4, order, jnp.float64)

    def both(unit_params, conv_params):
        weights = units.apply({"params": unit_params}, edges, mask)
        return conv.apply({"params": conv_params}, x, weights, mask)

    shape = jax.ShapeDtypeStruct
    unit_params = {
        "dense": {"kernel": shape((2, 6), float), "bias": shape((6,), float)}
    }
    conv_params = {
        "kernel": shape((4, 6, 4), float),
        "constant": shape((4, 4), float),
        "root": shape((4, 4), float),
        "bias": shape((4,), float),
    }
    drawn = random_like((unit_params, conv_params))
    found = jax.jit(both)(*drawn)
    for k, count in enumerate(COUNTS):
        own = slice(0, count)
        expected = nn_conv(drawn[1], drawn[0]["dense"], x[k, own], edges[k, own, own])
        np.testing.assert_allclose(found[k, own], expected, rtol=1e-12, atol=1e-12)


def test_network_is_the_plain_computation(x64):
    params, predict = network()
    batch = graphs()
    found, grads = predict(batch)
    for k, count in enumerate(COUNTS):
        own = slice(0, count)
        expected = reference(params, batch.nodes[k, own], batch.edges[k, own, own])
        np.testing.assert_allclose(found[:, k], expected, rtol=1e-11)
    for leaf in jax.tree.leaves(grads):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0


def test_order_of_nodes_and_padding_do_not_matter(x64):
    _, predict = network()
    batch, other = graphs(), graphs(seed=7)
    # Everything outside the molecules from another batch, the diagonal too.
    inside = batch.mask[..., None]
    pair = batch.mask[:, :, None] & batch.mask[:, None] & ~np.eye(5, dtype=bool)[None]
    changed = GraphBatch(
        np.where(inside, batch.nodes, other.nodes),
        np.where(pair[..., None], batch.edges, other.edges),
        batch.mask,
    )
    turn = np.array([3, 1, 4, 0, 2])
    turned = GraphBatch(
        changed.nodes[:, turn], changed.edges[:, turn][:, :, turn], batch.mask[:, turn]
    )
    found, grads = predict(batch)
    for same in (changed, turned):
        outputs, other_grads = predict(same)
        np.testing.assert_allclose(outputs, found, rtol=1e-10)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10),
            other_grads,
            grads,
        )


def test_parameters_of_the_protocol():
    model = models.as_functional(MPNN(11))
    batch = GraphBatch(
        *(jnp.zeros((1, 29, *s)) for s in ((11,), (29, 5))), jnp.ones((1, 29), bool)
    )
    params, _ = jax.eval_shape(model.init, jax.random.key(0), batch)
    sizes = {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part))
        for name, part in {
            **params["encoder"].pop("round"),
            **params["encoder"],
            "heads": params["heads"],
        }.items()
    }
    # As PyTorch and PyTorch Geometric count them.
    assert sizes == {
        "embed": 11 * 64 + 64,
        "edge_units": 5 * 128 + 128,
        "conv": 128 * 4096 + 4096 + 64 * 64 + 64,
        "gru": 3 * (2 * 64 * 64 + 2 * 64),
        "readout": 4 * (128 * 64 + 64 * 64 + 2 * 64),
        "dense": 128 * 64 + 64,
        "heads": 11 * 65,
    }
    assert sum(sizes.values()) == 617_675


def test_pair_features():
    positions = np.array([[[0, 0, 0], [3, 4, 0], [0, 0, 0]]], np.float32)
    bonds = np.array([[[0, 4, 0], [4, 0, 1], [0, 1, 0]]], np.uint8)
    found = jax.jit(models.pair_features)(bonds, positions)
    expected = np.zeros((3, 3, 5))
    expected[0, 1, 3] = expected[1, 0, 3] = expected[1, 2, 0] = expected[2, 1, 0] = 1
    expected[..., 4] = [[0, 5, 0], [5, 0, 5], [0, 5, 0]]
    np.testing.assert_array_equal(found[0], expected)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    moved = positions @ turn.astype(np.float32) + np.float32([1, -2, 3])
    again = jax.jit(models.pair_features)(bonds, moved)
    np.testing.assert_allclose(again[0], expected, atol=1e-5)


def test_bad_input_is_explained():
    with pytest.raises(ValueError, match="rounds must be >= 1, got 0"):
        MPNN(2, rounds=0)
    with pytest.raises(ValueError, match="order must be one of"):
        MPNN(2, order="first")
    batch = graphs()._replace(edges=np.zeros((3, 5, 4, 2)))
    model = models.as_functional(MPNN(2))
    with pytest.raises(
        ValueError, match=r"MPNN needs nodes \(B, N, F\).*\(3, 5, 4, 2\)"
    ):
        jax.eval_shape(model.init, jax.random.key(0), batch)
