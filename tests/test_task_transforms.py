"""What optax lacks for stacked gradients: accumulation, clipping, monitors, groups."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtl_jax
from mtl_jax import Statistics
from tests.helpers import jacobian_of, params_of, rows_of, tree_of

LOSSES = jnp.array([1.0, 2.0, 3.0])


def probe():
    """Looks at everything and costs no compilation: weights L / |g|; counts its calls."""

    def update(statistics, count):
        norms = jnp.sqrt(jnp.diagonal(statistics.gram))
        return statistics.losses / norms, count + 1

    return mtl_jax.Weighting(lambda: jnp.zeros([], jnp.int32), update, 3)


# -- accumulate ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "heads", [None, {"encoder": False, "scale": False, "heads": True}]
)
def test_accumulation_equals_the_large_batch(heads):
    """Twice three micro-batches: two steps of Adam on their means, the method included."""
    method = mtl_jax.aggregate(probe(), heads=heads)
    plain = optax.chain(method, optax.adam(0.1))
    tx = mtl_jax.accumulate(plain, every_k=3, num_tasks=3, heads=heads)
    params = params_of()
    jacobians = [jacobian_of(seed, 3) for seed in range(6)]
    losses = [LOSSES + seed for seed in range(6)]

    def stack(jacobian):
        grads = tree_of(jacobian)
        if heads is not None:
            kernel = grads["heads"]["kernel"].sum(axis=0, keepdims=True)
            grads = grads | {"heads": {"kernel": kernel}}
        return grads

    update = jax.jit(lambda g, s, ls: tx.update(g, s, params, losses=ls))
    large = jax.jit(lambda g, s, ls: plain.update(g, s, params, losses=ls))
    state, large_state = tx.init(params), plain.init(params)
    for i, (jacobian, loss) in enumerate(zip(jacobians, losses, strict=True)):
        found, state = update(stack(jacobian), state, loss)
        if i % 3 < 2:
            assert not rows_of(found).any()
            continue
        mean = np.mean(jacobians[i - 2 : i + 1], axis=0)
        expected, large_state = large(stack(mean), large_state, losses[i - 1])
        np.testing.assert_allclose(rows_of(found), rows_of(expected), atol=1e-5)
    weights = [optax.tree.get(s, "weights") for s in (state, large_state)]
    np.testing.assert_allclose(*weights, rtol=1e-5)


def test_accumulation_scans_and_keeps_dtypes(x64):
    """bfloat16 gradients are averaged in float32: 256 + 1 is 256 in 16 bits."""
    tx = mtl_jax.accumulate(mtl_jax.ls(1), every_k=4, num_tasks=1)
    params = jnp.zeros(2, jnp.bfloat16)
    grads = jnp.array(
        [[[256.0, 0]], [[2.0, 0]], [[2.0, 0]], [[4.0, 8.0]]], jnp.bfloat16
    )

    def body(state, grad):
        update, state = tx.update(grad, state, params)
        return state, update

    state, updates = jax.lax.scan(body, tx.init(params), grads)
    assert updates.dtype == jnp.bfloat16
    assert state.mean_grads.dtype == jnp.float32
    np.testing.assert_array_equal(updates[-1].astype(float), [66.0, 2.0])
    np.testing.assert_array_equal(updates[:-1].astype(float), 0)
    assert not state.mean_grads.any() and int(state.micro_step) == 0


def test_accumulation_refuses_what_it_cannot_do():
    for bad in (0, 1.5, True):
        with pytest.raises(ValueError, match="every_k must be a Python integer"):
            mtl_jax.accumulate(mtl_jax.ls(2), bad, num_tasks=2)
    tx = mtl_jax.accumulate(mtl_jax.ls(2), 2, num_tasks=2)
    with pytest.raises(ValueError, match=r"shape \(3, 4\), expected \(2, \.\.\.\)"):
        tx.update(jnp.zeros((3, 4)), tx.init(jnp.zeros(4)))


# -- clip_tasks ------------------------------------------------------------------------


def test_each_task_is_clipped_by_itself():
    jacobian = jacobian_of(0, 3) * np.array([[1.0], [1e-3], [0.0]])
    norms = np.linalg.norm(jacobian, axis=1)
    limit = norms[0] / 2
    tx = mtl_jax.clip_tasks(limit, num_tasks=3)
    clipped, _ = tx.update(tree_of(jacobian), tx.init(params_of()))
    expected = jacobian * np.array([[0.5], [1], [1]])
    np.testing.assert_allclose(rows_of(clipped), expected, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_equal_shapes_and_dtypes(clipped, tree_of(jacobian))
    with pytest.raises(ValueError, match="max_norm must lie in"):
        mtl_jax.clip_tasks(0.0, num_tasks=3)


# -- monitor ---------------------------------------------------------------------------


def test_the_monitor_changes_nothing_and_sees_everything():
    jacobian = jacobian_of(1, 3)
    norms = np.linalg.norm(jacobian, axis=1)
    unit = jacobian / norms[:, None]
    grads, params = tree_of(jacobian), params_of()
    method = mtl_jax.gradnorm(3)
    tx = optax.chain(mtl_jax.monitor(method, num_tasks=3), optax.adam(0.1))

    def both(grads, losses):
        update, state = tx.update(grads, tx.init(params), params, losses=losses)
        alone, _ = method.update(grads, method.init(params), losses=losses)
        passed = mtl_jax.monitor(num_tasks=3)
        through, record = passed.update(grads, passed.init(params))
        return update, state, alone, through, record

    update, state, alone, through, record = jax.jit(both)(grads, LOSSES)
    chex.assert_trees_all_equal(through, grads)
    adam = optax.adam(0.1)
    expected, _ = adam.update(alone, adam.init(params), params)
    chex.assert_trees_all_close(update, expected, rtol=1e-5)
    for found in (state, record):
        np.testing.assert_allclose(optax.tree.get(found, "norms"), norms, rtol=1e-5)
        cosines = optax.tree.get(found, "cosines")
        np.testing.assert_allclose(cosines, unit @ unit.T, atol=1e-5)
    length = np.linalg.norm(rows_of(alone))
    np.testing.assert_allclose(
        optax.tree.get(state, "update_cosines"),
        unit @ rows_of(alone) / length,
        atol=1e-5,
    )
    np.testing.assert_allclose(optax.tree.get(state, "update_norm"), length, rtol=1e-5)
    np.testing.assert_array_equal(optax.tree.get(state, "weights"), 1)
    assert not record.update_cosines.any()


def test_the_monitor_leaves_out_heads_and_survives_zeros():
    heads = {"encoder": False, "scale": False, "heads": True}
    method = mtl_jax.aggregate(mtl_jax.weighting.ls(2), heads=heads)
    tx = mtl_jax.monitor(method, num_tasks=2, heads=heads)
    jacobian = np.zeros((2, 24))
    jacobian[0, :2], jacobian[:, 20] = (3, 4), 7
    _, state = tx.update(tree_of(jacobian), tx.init(params_of()))
    np.testing.assert_allclose(state.norms, [5, 0])
    np.testing.assert_allclose(state.cosines, [[1, 0], [0, 0]], atol=1e-7)
    np.testing.assert_allclose(state.update_cosines, [1, 0], atol=1e-6)


# -- groups ----------------------------------------------------------------------------

PARTS = {
    "leaf": ["encoder/kernel", "encoder/bias", "scale", "heads/kernel"],
    "layer": ["encoder", "", "heads"],
    "function": ["enc", "rest"],
    "labels": ["a", "b"],
}
GROUPS = {
    "leaf": "leaf",
    "layer": "layer",
    "function": lambda path: "enc" if path.startswith("encoder") else "rest",
    "labels": {"encoder": "a", "scale": "b", "heads": "b"},
}


@pytest.mark.parametrize("kind", GROUPS)
def test_each_group_is_aggregated_by_itself(kind):
    """The weights follow the norms of the group's leaves alone."""
    seen = []

    def make(label):
        seen.append(label)
        return mtl_jax.aggregate(probe())

    tx = mtl_jax.groupwise(make, GROUPS[kind])
    grads = tree_of(jacobian_of(2, 3))
    update, state = tx.update(grads, tx.init(params_of()), losses=LOSSES)
    assert set(seen) == set(PARTS[kind])
    found = optax.tree.get_all_with_path(state, "weights")
    assert len(found) == len(PARTS[kind])
    encoder, alone = jax.tree.leaves(grads["encoder"]), mtl_jax.aggregate(probe())
    if kind != "leaf":
        expected, _ = alone.update(encoder, alone.init(encoder), losses=LOSSES)
        chex.assert_trees_all_close(jax.tree.leaves(update["encoder"]), expected)
        return
    for path in (("encoder", "kernel"), ("heads", "kernel")):
        leaf = grads[path[0]][path[1]]
        expected, _ = alone.update(leaf, alone.init(leaf), losses=LOSSES)
        chex.assert_trees_all_close(update[path[0]][path[1]], expected)


def test_bad_groups_are_named():
    with pytest.raises(ValueError, match="groups must be 'leaf', 'layer'"):
        mtl_jax.groupwise(lambda label: mtl_jax.ls(2), "matrix")
    tx = mtl_jax.groupwise(lambda label: mtl_jax.ls(2), {"a": "x"})
    with pytest.raises(ValueError, match="prefix of the parameters' tree"):
        tx.init({"a": jnp.zeros(1), "b": jnp.zeros(1)})


def test_parameter_groups_with_different_methods_are_optax_partition():
    """Element-wise, stateful and Gramian methods, and an optimiser of its own for each."""
    labels = {"encoder": "shared", "scale": "scale", "heads": "heads"}
    tx = optax.partition(
        {
            "shared": optax.chain(mtl_jax.db_mtl(3), optax.adam(0.1)),
            "scale": optax.chain(mtl_jax.trimmed_mean(3), optax.sgd(2.0)),
            "heads": optax.chain(mtl_jax.ls(3), optax.sgd(1.0)),
        },
        labels,
    )
    grads, params = tree_of(jacobian_of(3, 3)), params_of()
    step = jax.jit(lambda g, s: tx.update(g, s, params, losses=LOSSES))
    update, state = step(grads, tx.init(params))
    median = np.median(grads["scale"])
    np.testing.assert_allclose(update["scale"], -2 * median, rtol=1e-5)
    total = grads["heads"]["kernel"].sum(axis=0)
    chex.assert_trees_all_close(update["heads"]["kernel"], -total, rtol=1e-5)
    signs = jnp.abs(update["encoder"]["kernel"])
    np.testing.assert_allclose(signs, 0.1, rtol=1e-3)  # Adam's first step
    _, again = step(grads, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, again)


# -- every_k ---------------------------------------------------------------------------


def test_weights_are_renewed_every_k_steps():
    losses = 1.0 + jnp.arange(15.0).reshape(5, 3)
    weighting = mtl_jax.weighting.every_k(probe(), 2)

    def body(state, losses):
        weights, state = weighting.update(Statistics(4 * jnp.eye(3), losses), state)
        return state, weights

    state, weights = jax.lax.scan(body, weighting.init(), losses)
    np.testing.assert_allclose(
        weights, losses[np.array([0, 0, 2, 2, 4])] / 2, rtol=1e-6
    )
    assert int(state.inner) == 3
    assert int(state.age) == 1
    with pytest.raises(ValueError, match="k must be a Python integer >= 1"):
        mtl_jax.weighting.every_k(probe(), 0)
