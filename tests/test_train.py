"""The training step: what it computes, records, and how it repeats."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import mtl_jax
from mtl_jax.train import init_state, make_train_step, scan_steps


def is_head(path):
    return path.startswith("heads/")


def regression(num_tasks=2, size=64):
    """Data, parameters and losses of a two-layer regression with one head per task."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(size, 5)).astype(np.float32)
    y = (x @ rng.normal(size=(5, num_tasks))).astype(np.float32)
    params = {
        "encoder": {"kernel": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)},
        "heads": {"out": jnp.asarray(rng.normal(size=(num_tasks, 4)), jnp.float32)},
    }

    def losses_fn(params, model_state, batch, key):
        hidden = jnp.tanh(batch["x"] @ params["encoder"]["kernel"])
        keep = jax.random.bernoulli(key, 0.9, hidden.shape)
        error = (hidden * keep) @ params["heads"]["out"].T - batch["y"]
        return jnp.square(error).mean(0), {"seen": model_state["seen"] + len(error)}

    return {"x": jnp.asarray(x), "y": jnp.asarray(y)}, params, losses_fn


def method(call, num_tasks=2, rate=1e-2):
    weighting = mtl_jax.build_weighting(call, num_tasks)
    return optax.chain(mtl_jax.aggregate(weighting, heads=is_head), optax.adam(rate))


def start(params, tx, seed=0):
    return init_state(
        params, {"seen": jnp.zeros([], jnp.int32)}, tx, jax.random.key(seed)
    )


def order(steps, batch=16, size=64, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(size, size=(steps, batch)))


@pytest.mark.parametrize("call", ["ls", "mgda", "nash_mtl", "pcgrad", "uw"])
def test_training_lowers_both_losses(call):
    data, params, losses_fn = regression()
    tx = method(call)
    step = make_train_step(losses_fn, tx, heads=is_head)
    run = jax.jit(lambda state, rows: scan_steps(step, state, data, rows))
    state, record = run(start(params, tx), order(200))
    chex.assert_shape([record.losses, record.weights], (200, 2))
    chex.assert_shape(record.cosines, (200, 2, 2))
    assert (record.losses[-20:].mean(0) < 0.7 * record.losses[:20].mean(0)).all()
    assert int(state.step) == 200
    assert int(state.model_state["seen"]) == 200 * 16


def test_scan_equals_a_python_loop():
    data, params, losses_fn = regression()
    tx = method("pcgrad")
    step = jax.jit(make_train_step(losses_fn, tx, heads=is_head))
    state, rows, records = start(params, tx), order(7), []
    for batch in rows:
        state, record = step(state, jax.tree.map(lambda leaf: leaf[batch], data))  # noqa: B023
        records.append(record)
    scanned, stacked = jax.jit(lambda s: scan_steps(step, s, data, rows))(
        start(params, tx)
    )
    # The same operations; only their fusion may differ.
    chex.assert_trees_all_close(
        (scanned._replace(key=None, opt_state=scanned.opt_state[1])),
        (state._replace(key=None, opt_state=state.opt_state[1])),
        rtol=1e-5,
        atol=1e-6,
    )
    looped = jax.tree.map(lambda *leaves: jnp.stack(leaves), *records)
    chex.assert_trees_all_close(stacked, looped, rtol=1e-4, atol=1e-5)


def test_one_task_is_plain_optax():
    data, params, losses_fn = regression(num_tasks=1)
    tx = method("ls", num_tasks=1)
    step = jax.jit(make_train_step(losses_fn, tx, heads=is_head))
    state = start(params, tx)
    plain, adam = params, optax.adam(1e-2)
    moments = adam.init(params)
    for i in range(3):
        key = jax.random.fold_in(state.key, i)

        def loss(params, key=key, model_state=state.model_state):
            return losses_fn(params, model_state, data, key)[0][0]

        updates, moments = adam.update(jax.grad(loss)(plain), moments, plain)
        plain = optax.apply_updates(plain, updates)
        state, record = step(state, data)
        np.testing.assert_allclose(record.cosines, [[1]], rtol=1e-6)
        np.testing.assert_array_equal(record.weights, [1])
    chex.assert_trees_all_close(state.params, plain, rtol=1e-5, atol=1e-6)


def test_the_record_holds_the_weights_and_cosines_of_the_shared_gradients():
    def losses_fn(params, model_state, batch, key):
        del key
        shared, head = params["encoder"], params["heads"]["bias"]
        return jnp.stack([batch[0] @ shared, batch[1] @ shared]) + head, model_state

    params = {"encoder": jnp.zeros(2), "heads": {"bias": jnp.zeros(2)}}
    tx = optax.chain(
        mtl_jax.aggregate(mtl_jax.weighting.mgda(2), heads=is_head), optax.sgd(1.0)
    )
    step = make_train_step(losses_fn, tx, heads=is_head)
    state = init_state(params, {}, tx, jax.random.key(0))
    grads = jnp.array([[3.0, 0.0], [0.0, 1.0]])
    state, record = jax.jit(step)(state, grads)
    np.testing.assert_allclose(record.weights, [0.1, 0.9], rtol=1e-5)
    np.testing.assert_allclose(record.cosines, np.eye(2), atol=1e-6)
    np.testing.assert_allclose(state.params["encoder"], [-0.3, -0.9], rtol=1e-5)
    # A gradient that vanishes has no direction: 0, not NaN.
    _, record = jax.jit(step)(state, grads.at[0].set(0))
    np.testing.assert_allclose(record.cosines, [[0, 0], [0, 1]], atol=1e-6)


def test_element_wise_methods_get_stacked_heads_and_record_ones():
    data, params, losses_fn = regression()
    tx = optax.chain(mtl_jax.graddrop(2), optax.adam(1e-2))
    step = jax.jit(make_train_step(losses_fn, tx, heads=is_head, stack_heads=True))
    _, record = step(start(params, tx), data)
    np.testing.assert_array_equal(record.weights, [1, 1])
    shared = make_train_step(losses_fn, method("ls"), heads=is_head)
    _, expected = jax.jit(shared)(start(params, method("ls")), data)
    np.testing.assert_allclose(record.cosines, expected.cosines, rtol=1e-5)


def test_parameters_named_weights_are_not_taken_for_task_weights():
    def losses_fn(params, model_state, batch, key):
        del key
        return (params["weights"] - batch) ** 2, model_state

    params = {"weights": jnp.zeros(2)}
    tx = optax.chain(mtl_jax.ls(2, weights=(0.25, 0.75)), optax.adam(1e-2))
    state = init_state(params, {}, tx, jax.random.key(0))
    step = jax.jit(make_train_step(losses_fn, tx))
    _, record = step(state, jnp.ones(2))
    np.testing.assert_array_equal(record.weights, [0.25, 0.75])


def test_the_key_decides_all_randomness():
    data, params, losses_fn = regression()
    tx = method("rlw")
    step = jax.jit(make_train_step(losses_fn, tx, heads=is_head))

    def two_records(seed):
        state, first = step(start(params, tx, seed), data)
        return first, step(state, data)[1]

    first, second = two_records(0)
    again, _ = two_records(0)
    other, _ = two_records(1)
    chex.assert_trees_all_equal(first, again)
    for differing in (second, other):
        assert not np.array_equal(first.weights, differing.weights)
    assert not np.array_equal(first.losses, other.losses)  # dropout


def test_sharded_over_eight_devices_equals_one():
    assert len(jax.devices()) == 8
    data, params, losses_fn = regression()
    tx = method("nash_mtl")
    step = make_train_step(losses_fn, tx, heads=is_head)
    rows = order(5)
    mesh = jax.make_mesh((8, 1), ("data", "model"), (AxisType.Auto,) * 2)
    replicated = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("data"))

    one_state, one = jax.jit(lambda s: scan_steps(step, s, data, rows))(
        start(params, tx)
    )
    placed = jax.device_put((start(params, tx), data, rows), replicated)
    eight = jax.jit(
        lambda s, d, r: scan_steps(step, s, d, r, batch_sharding=split),
        donate_argnums=0,
        out_shardings=replicated,
    )
    eight_state, eight_record = eight(*placed)
    # Sums over the batch in another order: float32 rounding, through five Adam steps.
    chex.assert_trees_all_close(one, eight_record, rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_close(
        one_state.params, jax.device_get(eight_state.params), rtol=1e-3, atol=1e-4
    )
