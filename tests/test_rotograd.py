"""RotoGrad's rotations: orthogonal, and turned until the tasks' gradients agree."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtl_jax
from mtl_jax.models import Rotations, cayley, rotation_loss
from mtl_jax.models.rotograd import rotate


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_the_map_gives_rotations():
    raw = draw(0, 4, 6, 6) * np.array([0, 0.1, 1, 30])[:, None, None]
    rotations = np.asarray(jax.jit(cayley)(jnp.asarray(raw, jnp.float32)), np.float64)
    products = rotations @ rotations.transpose(0, 2, 1)
    np.testing.assert_allclose(products, np.tile(np.eye(6), (4, 1, 1)), atol=2e-5)
    np.testing.assert_allclose(np.linalg.det(rotations), 1, atol=1e-4)
    np.testing.assert_array_equal(rotations[0], np.eye(6))


def test_two_orthogonal_gradients_in_the_plane():
    """Loss -sqrt(2), slope sin(45 degrees), and down to -2: both on the diagonal."""
    grads = jnp.eye(2)[:, None]
    raw = jnp.zeros((2, 2, 2))
    step = jax.jit(jax.value_and_grad(rotation_loss))
    loss, slope = step(raw, grads)
    np.testing.assert_allclose(loss, -(2**0.5), rtol=1e-6)
    # A_21 is the angle of a small turn; R' turns the first gradient by minus that.
    np.testing.assert_allclose(slope[0, 1, 0], 0.5**0.5, rtol=1e-5)
    np.testing.assert_allclose(slope[1, 1, 0], -(0.5**0.5), rtol=1e-5)
    np.testing.assert_allclose(slope[:, 0, 1], -slope[:, 1, 0], rtol=1e-6)
    losses = [float(loss)]
    for _ in range(40):
        raw = raw - 0.2 * slope
        loss, slope = step(raw, grads)
        losses.append(float(loss))
    assert (np.diff(losses) < 1e-6).all()
    np.testing.assert_allclose(losses[-1], -2, atol=1e-4)
    aligned = np.einsum("tji,tbj->ti", cayley(raw), grads)
    np.testing.assert_allclose(aligned, 0.5**0.5, atol=1e-2)


def test_scales_and_zeros_do_not_count():
    raw, grads = 0.3 * draw(1, 3, 4, 4), draw(2, 3, 5, 4)
    scales = np.array([1e-12, 1, 1e12], np.float32)[:, None, None]
    slope = jax.jit(jax.value_and_grad(rotation_loss))
    loss, found = slope(raw, grads * scales)
    expected_loss, expected = slope(raw, grads)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    silent = grads * np.array([1, 0, 1], np.float32)[:, None, None]
    loss, found = slope(raw, silent)
    assert np.isfinite(loss) and np.isfinite(found).all() and not found[1].any()


def losses_fn(params, x, targets):
    z = jnp.tanh(x @ params["encoder"])
    turned = rotate(params["rotations"], z)
    outputs = jnp.einsum("tbi,ti->tb", turned, params["heads"])
    return jnp.square(outputs - targets).mean(axis=1)


def is_head(path):
    return path in ("rotations", "heads")


def problem():
    params = {
        "encoder": draw(3, 5, 4),
        "rotations": 0.5 * draw(4, 2, 4, 4),
        "heads": draw(10, 2, 4),
    }
    return jax.tree.map(jnp.asarray, params), draw(6, 8, 5), draw(7, 2, 8)


def test_the_pull_back_brings_both_gradients():
    """The encoder's is autodiff's of a fixed rotation, the rotations' their own loss's."""
    params, x, targets = problem()

    @jax.jit
    def expected_of(params):
        fixed = cayley(params["rotations"])

        def plain(encoder, shift):
            turned = jnp.einsum("tij,bj->tbi", fixed, jnp.tanh(x @ encoder)) + shift
            outputs = jnp.einsum("tbi,ti->tb", turned, params["heads"])
            return jnp.square(outputs - targets).mean(axis=1)

        rows = jax.jacrev(plain)(params["encoder"], jnp.zeros((2, 8, 4)))
        whole = jax.grad(lambda s: plain(params["encoder"], s).sum())
        grads = whole(jnp.zeros((2, 8, 4)))
        return rows, jax.grad(rotation_loss)(params["rotations"], grads)

    rows, turned = expected_of(params)
    source = jax.jit(mtl_jax.value_and_task_grads(losses_fn, heads=is_head))
    _, task_grads = source(params, x, targets)
    chex.assert_trees_all_close(task_grads["encoder"], rows, atol=1e-5)
    np.testing.assert_allclose(task_grads["rotations"][0], turned, atol=1e-5)
    assert np.abs(turned).max() > 0.01


def test_training_aligns_the_gradients_of_the_features():
    """With a weighting on the features; of linear heads the directions can be read off.

    ``G_t`` is the outer product of the outputs' errors and the head: what rotations can
    align, they do, and the rest of the cosine is that of the errors.
    """
    params, x, targets = problem()
    source = mtl_jax.value_and_combined_grad(
        losses_fn, mtl_jax.weighting.imtl_g(2), strategy="features", heads=is_head
    )
    falling = optax.adam(optax.cosine_decay_schedule(0.1, 60))
    rates = {"rotations": falling, "network": optax.sgd(0.0)}
    labels = {"encoder": "network", "heads": "network", "rotations": "rotations"}
    tx = optax.partition(rates, labels)

    @jax.jit
    def step(params, state, opt_state):
        _, grads, state = source.update(state, params, x, targets)
        updates, opt_state = tx.update(grads, opt_state, params)
        heads = jnp.einsum("tji,tj->ti", cayley(params["rotations"]), params["heads"])
        seen = mtl_jax.tree.cosines(state.gram)[0, 1], mtl_jax.tree.gram(heads)
        return optax.apply_updates(params, updates), state, opt_state, seen

    state, opt_state, history = source.init(params), tx.init(params), []
    for _ in range(60):
        params, state, opt_state, (cosine, gram) = step(params, state, opt_state)
        heads = float(mtl_jax.tree.cosines(gram)[0, 1])
        history.append((float(cosine), heads))
    (first, first_heads), (last, last_heads) = history[0], history[-1]
    assert abs(first_heads) < 0.9 and abs(last_heads) > 0.99, history
    assert last > first


def test_the_module_turns_a_part_of_the_features():
    z = jnp.asarray(draw(8, 3, 2, 6))
    module = Rotations(num_tasks=2, size=4)
    variables = {"params": {"raw": jnp.asarray(draw(9, 2, 4, 4))}}
    turned = module.apply(variables, z)
    assert turned.shape == (2, 3, 2, 6)
    np.testing.assert_array_equal(turned[..., 4:], np.stack([z[..., 4:]] * 2))
    lengths = np.linalg.norm(turned, axis=-1)
    np.testing.assert_allclose(lengths[1], np.linalg.norm(z, axis=-1), rtol=1e-5)
    assert np.abs(turned[0] - turned[1]).max() > 0.1
    start = module.init(jax.random.key(0), z)["params"]["raw"]
    assert start.shape == (2, 4, 4) and not start.any()
    with pytest.raises(ValueError, match=r"size must lie between 1 and .* 6, got 7"):
        Rotations(num_tasks=2, size=7).init(jax.random.key(0), z)
