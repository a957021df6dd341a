"""Measures of sparsity, similar rows, tying and compression."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtl_jax
from mtl_jax import sparsity


def sparse_params():
    """A dense layer with 4 zero rows and 3 clusters, a convolution with zero rows."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 5))
    labels = np.array([0, 1, -1, 0, 2, 1, -1, 0, -1, 1, 2, -1])
    dense = np.where(labels[:, None] < 0, 0, centres[labels])
    conv = rng.normal(size=(3, 3, 6, 4))
    conv[:, :, [0, 3, 4]] = 0
    conv[:, :, 5] = conv[:, :, 1]
    params = {
        "conv": {"kernel": conv, "bias": rng.normal(size=4)},
        "dense": {"kernel": dense, "bias": rng.normal(size=5)},
        "heads": {"kernel": rng.normal(size=(2, 5, 3)), "bias": np.zeros((2, 3))},
    }
    as_float32 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    return as_float32, labels


# --- measures -------------------------------------------------------------------------


def test_measures():
    params, _ = sparse_params()
    stats = sparsity.sparsity_stats(params)
    assert stats == (6 + 12 + 10, 3 + 4, 3 + 4 + 10)
    assert stats.sparsity_rate == pytest.approx(25.0)
    assert stats.compression_ratio == pytest.approx(28 / 17)
    assert stats.parameter_sharing == pytest.approx(21 / 17)
    weights = sparsity.sparsity_stats(params, by="parameters")
    assert weights == (
        6 * 36 + 12 * 5 + 10 * 3,
        3 * 36 + 4 * 5,
        3 * 36 + 4 * 5 + 10 * 3,
    )
    only = sparsity.sparsity_stats(params, lambda path: path.startswith("dense"))
    assert only == (12, 4, 4)
    negative = {
        "kernel": -jnp.asarray(params["dense"]["kernel"])
    }  # zeros of both signs
    negative["kernel"] = negative["kernel"].at[2].set(0.0)
    assert sparsity.sparsity_stats(negative) == (12, 4, 4)


def test_a_fresh_network_has_no_sparsity():
    rng = np.random.default_rng(1)
    stats = sparsity.sparsity_stats({"kernel": rng.normal(size=(30, 4))})
    rates = stats.sparsity_rate, stats.compression_ratio, stats.parameter_sharing
    assert rates == (0.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="by must be one of"):
        sparsity.sparsity_stats({"kernel": np.ones((3, 2))}, by="layers")


# --- similarity and clusters ----------------------------------------------------------


def test_similarity():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(6, 4))
    rows[1], rows[2], rows[3] = 0.4 * rows[0], -rows[0], 0
    similarity = sparsity.row_similarity(rows)
    expected = np.empty((6, 6))
    for i in range(6):
        for j in range(6):
            largest = max(rows[i] @ rows[i], rows[j] @ rows[j])
            expected[i, j] = rows[i] @ rows[j] / largest if largest else 1
    np.testing.assert_allclose(similarity, expected, atol=1e-14)
    assert similarity[0, 1] == pytest.approx(0.4) and similarity[0, 2] == -1
    assert similarity[0, 3] == 0 and similarity[3, 3] == 1
    np.testing.assert_allclose(
        sparsity.row_similarity(1e-30 * rows), expected, atol=1e-9
    )


def test_clusters_are_those_that_the_rows_were_made_of():
    params, labels = sparse_params()
    rng = np.random.default_rng(3)
    noisy = np.asarray(params["dense"]["kernel"])
    noisy = noisy + 1e-3 * rng.normal(size=noisy.shape) * noisy.any(1, keepdims=True)
    found = sparsity.cluster_rows(noisy)
    np.testing.assert_array_equal(found, labels)
    stacked = {"a": {"kernel": np.stack([noisy, noisy[::-1]])}}
    both = sparsity.cluster_layers(stacked)["a/kernel"]
    np.testing.assert_array_equal(both[0], labels)
    np.testing.assert_array_equal(both[1] < 0, labels[::-1] < 0)


def test_nothing_is_shared_without_convergence():
    rows = np.random.default_rng(4).normal(size=(8, 2))
    rows[3] = 0
    found = sparsity.cluster_rows(rows, max_iterations=1)
    np.testing.assert_array_equal(found, [0, 1, 2, -1, 3, 4, 5, 6])
    np.testing.assert_array_equal(sparsity.cluster_rows(np.zeros((3, 2))), [-1] * 3)
    np.testing.assert_array_equal(sparsity.cluster_rows(np.eye(3)[:2, :1]), [0, -1])


def test_clusters_reject_bad_input(monkeypatch):
    with pytest.raises(ValueError, match="finite numbers"):
        sparsity.cluster_rows([[np.nan, 1.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match="damping must lie in"):
        sparsity.cluster_rows(np.eye(3), damping=0.2)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match="needs scikit-learn"):
        sparsity.cluster_rows(np.eye(3))


# --- tying ----------------------------------------------------------------------------


def test_tying_is_a_projection():
    rng = np.random.default_rng(5)
    rows = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
    labels = np.array([1, 0, 1, -1, 2, 1, -1, 0])
    tie = jax.jit(lambda rows: sparsity.tie_rows(rows, labels))
    out = np.asarray(tie(rows))
    assert not out[labels < 0].any()
    for label in range(3):
        members = labels == label
        mean = np.asarray(rows)[members].mean(axis=0)
        np.testing.assert_allclose(
            out[members], np.tile(mean, (members.sum(), 1)), 1e-6
        )
        assert (out[members] == out[members][0]).all()
    np.testing.assert_allclose(tie(jnp.asarray(out)), out, rtol=1e-6)


def test_training_with_tied_rows_keeps_them_tied_and_zero():
    params, labels = sparse_params()
    conv = np.array([-1, 0, 1, -1, -1, 0])
    tx = optax.chain(
        optax.adam(0.1), sparsity.tied({"dense/kernel": labels, "conv/kernel": conv})
    )
    rng = np.random.default_rng(6)
    grads = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params
    )
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    start = params
    for _ in range(3):
        params, state = step(params, state)
    for name, numbers in (("dense", labels), ("conv", conv)):
        zero = np.asarray(sparsity.zero_rows(params)[f"{name}/kernel"])
        np.testing.assert_array_equal(zero, numbers < 0)
    # 12 + 6 rows: 3 + 2 clusters, and the zero rows of each layer as one.
    assert sparsity.sparsity_stats(params, None).distinct == 4 + 3 + 10
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), params, start)
    assert min(jax.tree.leaves(moved)) > 0.1


def test_tying_rejects_bad_labels():
    params, labels = sparse_params()
    with pytest.raises(ValueError, match="one for each of the 12 rows"):
        sparsity.tie(params, {"dense/kernel": labels[:5]})
    with pytest.raises(ValueError, match="names dense/weight"):
        sparsity.tied({"dense/weight": labels}).init(params)
    with pytest.raises(ValueError, match=r"must have shape \(2, 5\)"):
        sparsity.tie(params, {"heads/kernel": labels})
    with pytest.raises(ValueError, match="works on the parameters"):
        sparsity.tied({}).update(params, optax.EmptyState())


# --- compression ----------------------------------------------------------------------


def test_compression_is_smaller_and_expands_to_the_same():
    params, labels = sparse_params()
    small = sparsity.compress(params)
    assert small["dense"]["kernel"].shape == (3, 5)
    assert small["conv"]["kernel"].shape == (3, 3, 2, 4)
    np.testing.assert_array_equal(small["dense"]["kernel_groups"], labels[labels >= 0])
    assert small["heads"]["kernel"].shape == (2, 5, 3)
    full = sparsity.expand(small, params)
    assert jax.tree.structure(full) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, full, params)
    before, after = sparsity.tree_bytes(params), sparsity.tree_bytes(small)
    indices = 2 * (8 + 8 + 3 + 3)
    assert before - after == 4 * (4 * 36 + 9 * 5) - indices


def test_compressed_layers_compute_the_same():
    params, _ = sparse_params()
    small = sparsity.compress(params)
    x = np.random.default_rng(7).normal(size=(4, 12)).astype(np.float32)
    dense = small["dense"]
    out = x[:, dense["kernel_inputs"]] @ dense["kernel"][dense["kernel_groups"]]
    expected = x @ np.asarray(params["dense"]["kernel"])
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_compression_of_extreme_layers():
    dense = np.random.default_rng(8).normal(size=(9, 4)).astype(np.float32)
    same = sparsity.compress({"kernel": dense})  # nothing to win
    assert same["kernel"].shape == (9, 4)
    empty = sparsity.compress({"kernel": np.zeros((9, 4), np.float32)})
    assert empty["kernel"].shape == (1, 4) and not empty["kernel"].any()
    full = sparsity.expand(empty, {"kernel": np.zeros((9, 4))})
    assert not full["kernel"].any()
    with pytest.raises(ValueError, match="have no entry 'weight'"):
        sparsity.expand(empty, {"weight": np.zeros((9, 4))})
    with pytest.raises(ValueError, match="only 3 rows"):
        mixed = sparsity.compress({"kernel": np.diag([0.0, 0, 0, 0, 0, 1.0])})
        sparsity.expand(mixed, {"kernel": np.zeros((3, 6))})
    listed = {"kernel": np.zeros((9, 4)), "rest": [np.ones(2)]}
    full = sparsity.expand({**empty, "rest": [np.ones(2)]}, listed)
    np.testing.assert_array_equal(full["rest"][0], np.ones(2))
    with pytest.raises(ValueError, match=r"a leaf has shape \[\(3,\)\], expected"):
        sparsity.expand({**empty, "rest": [np.ones(3)]}, listed)
    with pytest.raises(ValueError, match="in dictionaries"):
        sparsity.compress([np.zeros((9, 4), np.float32)], lambda path: True)


# --- all together ---------------------------------------------------------------------


def test_sparsity_as_an_objective_of_chebyshev():
    """Two tasks read four of twelve inputs: the other rows vanish, by their multiplier."""
    rng = np.random.default_rng(9)
    x = jnp.asarray(8 * np.linalg.qr(rng.normal(size=(64, 12)))[0], jnp.float32)
    truth = np.zeros((12, 2))
    truth[[1, 4, 5, 10]] = rng.uniform(1, 2, size=(4, 2))
    y = x @ jnp.asarray(truth, jnp.float32)
    y = y + jnp.asarray(0.1 * rng.normal(size=y.shape), jnp.float32)

    def losses_fn(params):
        tasks = jnp.mean((x @ params["dense"]["kernel"] - y) ** 2, axis=0)
        # The proximal step stands for this gradient.
        sparsity_loss = jax.lax.stop_gradient(sparsity.growl_loss(params, scale=0.1))
        return jnp.concatenate([sparsity_loss[None], tasks])

    tx = optax.chain(
        mtl_jax.chebyshev_al(3, importance=(0.1, 0.45, 0.45), every=25, penalty=1.0),
        optax.sgd(0.2),
        sparsity.growl(0.2, scale=0.1),
    )
    params = {"dense": {"kernel": jnp.asarray(rng.normal(size=(12, 2)), jnp.float32)}}

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            losses, grads = mtl_jax.value_and_task_grads(losses_fn)(params)
            # The weight of the step before: this step's is not known to the caller.
            weight = optax.tree.get(state, "weights")[0]
            updates, state = tx.update(
                grads, state, params, losses=losses, sparsity_weight=weight
            )
            return (optax.apply_updates(params, updates), state), losses

        return jax.lax.scan(step, (params, tx.init(params)), length=400)

    (params, state), losses = train(params)
    zero = np.asarray(sparsity.zero_rows(params)["dense/kernel"])
    np.testing.assert_array_equal(zero, ~truth.any(axis=1))
    assert float(optax.tree.get(state, "row_sparsity")) == pytest.approx(8 / 12)
    multipliers = np.asarray(optax.tree.get(state, "multipliers"))
    assert (multipliers > 0.01).all()
    h = np.array([0.1, 0.45, 0.45]) * np.asarray(losses)[-1]
    assert np.ptp(h) < 0.05 * h.max()  # all three constraints are active, hence equal
