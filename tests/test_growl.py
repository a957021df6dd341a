"""GrOWL: weights, penalty, exact proximal operator, layers, and the transformation."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtl_jax import sparsity
from mtl_jax.sparsity.pool import pool_decreasing
from tests.references import growl as reference

SIZE, WIDTH = 12, 3


@functools.cache
def prox_of(method):
    """One compilation for each method: stacks of rows, of weights, and a step."""
    prox = functools.partial(sparsity.growl_prox, method=method)
    return jax.jit(jax.vmap(lambda rows, theta, step: prox(rows, theta, step=step)))


def random_cases(count=60):
    """Rows ``(count, 12, 3)`` with ties and zeros, and weights of all three patterns."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(count, SIZE, WIDTH)) * 10 ** rng.uniform(
        -1, 0.7, (count, 1, 1)
    )
    rows[::5, 3] = 0
    rows[::7, 4] = -rows[::7, 5]
    patterns = [sparsity.growl_theta(SIZE, pattern=p) for p in ("linear", "two_part")]
    thetas = np.stack([patterns[i % 2] for i in range(count)])
    return rows, thetas


def norms_of(rows):
    return np.linalg.norm(np.asarray(rows, np.float64), axis=-1)


# --- weights and penalty --------------------------------------------------------------


def test_patterns():
    theta = sparsity.growl_theta
    np.testing.assert_allclose(theta(3), [1.0, 0.2, 0.2])
    np.testing.assert_allclose(
        theta(5, pattern="linear", beta1=1.0, beta2=0.5), [1.4, 1.3, 1.2, 1.1, 1.0]
    )
    np.testing.assert_allclose(
        theta(5, pattern="two_part", beta1=1.0, beta2=0.5), [2.0, 1.5, 0.5, 0.5, 0.5]
    )
    assert theta(1, pattern="two_part") > 0


def test_penalty_and_its_gradient():
    rows = np.random.default_rng(1).normal(size=(SIZE, WIDTH))
    theta = sparsity.growl_theta(SIZE)
    norms = norms_of(rows)
    expected = 0.2 * norms.sum() + 0.8 * norms.max()  # l1 + l-infinity
    penalty = jax.jit(
        jax.value_and_grad(lambda rows: sparsity.growl_penalty(rows, theta))
    )
    value, grad = penalty(jnp.asarray(rows))
    assert float(value) == pytest.approx(expected, rel=1e-6)
    weights = np.where(norms == norms.max(), 1.0, 0.2)
    np.testing.assert_allclose(
        grad, weights[:, None] * rows / norms[:, None], rtol=1e-5, atol=1e-7
    )
    assert (np.asarray(grad) != 0).all()


def test_every_selected_weight_has_a_gradient_and_zero_rows_no_nan():
    rng = np.random.default_rng(0)
    params = {
        "conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 5, 4)))},
        "heads": {
            "kernel": jnp.asarray(rng.normal(size=(2, 6, 3))),
            "bias": jnp.ones((2, 3)),
        },
    }
    params["conv"]["kernel"] = params["conv"]["kernel"].at[:, :, 2].set(0)

    @jax.jit
    def losses(params):
        loss = functools.partial(sparsity.growl_loss, layers=lambda path: True)
        heads = sparsity.growl_loss(
            params, lambda path: path.startswith("heads"), scale=0.5
        )
        return jax.grad(loss)(params), heads

    grads, total = losses(params)
    live = np.delete(np.asarray(grads["conv"]["kernel"]), 2, axis=2)
    assert (live != 0).all() and (np.asarray(grads["heads"]["kernel"]) != 0).all()
    chex.assert_tree_all_finite(grads)
    assert not grads["heads"]["bias"].any()
    # Stacked heads are two layers: the largest row of each has the large weight.
    norms = norms_of(params["heads"]["kernel"])
    parts = 0.2 * norms.sum() + 0.8 * norms.max(axis=1).sum()
    total = sparsity.growl_loss(
        params, lambda path: path.startswith("heads"), scale=0.5
    )
    assert float(total) == pytest.approx(0.5 * parts, rel=1e-6)


# --- proximal operator ----------------------------------------------------------------


@pytest.mark.parametrize("method", ["spike", "pav"])
def test_closed_forms(method):
    """The examples of the sheet, padded with zero rows, which change nothing here."""
    cases = [
        ((3, 2, 1), (2, 1.8, 0.8)),
        ((1.5, 1.4, 1.3, 0.1), (2.8 / 3, 2.8 / 3, 2.8 / 3, 0)),
        ((1.05, 1, 0.3), (0.425, 0.425, 0.1)),
        ((0.9, 0.8), (0.25, 0.25)),
        ((0.5, 0.4, 0.3), (0, 0, 0)),
        ((0.8, 0.9), (0.25, 0.25)),
    ]
    rows = np.zeros((60, SIZE, WIDTH), np.float32)  # the size of the other tests
    expected = np.zeros_like(rows)
    for i, (start, end) in enumerate(cases):
        rows[i, : len(start), 1] = start
        expected[i, : len(end), 1] = end
    thetas = np.tile(sparsity.growl_theta(SIZE), (60, 1)).astype(np.float32)
    out = prox_of(method)(rows, thetas, np.ones(60, np.float32))
    np.testing.assert_allclose(out, expected, atol=3e-7)


def test_prox_equals_a_generic_convex_solver():
    rows, thetas = random_cases()
    spike = np.tile(sparsity.growl_theta(SIZE), (len(rows), 1))
    steps = np.random.default_rng(2).uniform(0.1, 1.5, len(rows))
    single = [np.asarray(a, np.float32) for a in (rows, thetas, spike, steps)]
    for method, weights, exact in (
        ("pav", single[1], thetas),
        ("pav", single[2], spike),
        ("spike", single[2], spike),
    ):
        out = np.asarray(prox_of(method)(single[0], weights, single[3]), np.float64)
        for one, start, theta, step in zip(out, rows, exact, steps, strict=True):
            expected = reference.by_nnls(norms_of(start), step * theta)
            np.testing.assert_allclose(norms_of(one), expected, rtol=0, atol=3e-6)
            # Same directions.
            np.testing.assert_allclose(
                one * norms_of(start)[:, None], expected[:, None] * start, atol=2e-5
            )


def test_no_perturbation_lowers_the_objective():
    rows, thetas = random_cases()
    out = prox_of("pav")(
        *(np.asarray(a, np.float32) for a in (rows, thetas, np.ones(len(rows))))
    )
    rng = np.random.default_rng(3)
    for one, start, theta in zip(np.asarray(out, float), rows, thetas, strict=True):
        least = reference.objective(one, start, theta)
        for size in (1e-1, 1e-2):
            for _ in range(10):
                other = one + size * rng.normal(size=one.shape)
                assert reference.objective(other, start, theta) > least


def test_prox_is_non_expansive_and_keeps_the_order():
    rows, thetas = (np.asarray(a, np.float32) for a in random_cases())
    other = rows + np.random.default_rng(4).normal(size=rows.shape).astype(np.float32)
    ones = np.ones(len(rows), np.float32)
    first, second = (np.asarray(prox_of("pav")(r, thetas, ones)) for r in (rows, other))
    apart = np.linalg.norm((first - second).reshape(len(rows), -1), axis=1)
    before = np.linalg.norm((rows - other).reshape(len(rows), -1), axis=1)
    assert (apart <= before * (1 + 1e-6)).all()
    for one, start, theta in zip(first, rows, thetas, strict=True):
        order = np.argsort(-norms_of(start), kind="stable")
        assert (np.diff(norms_of(one)[order]) <= 1e-5).all()
        largest = norms_of(one)[order[0]]
        assert largest > 0 or not one.any()  # never erased before the others
        taken = norms_of(start) - norms_of(one)
        assert (taken >= -1e-5).all()
        sums = np.cumsum(np.sort(taken)[::-1])
        assert (sums <= np.cumsum(theta) + 1e-5).all()


def test_special_weights():
    rows = np.asarray(random_cases()[0], np.float32)
    zero, constant = np.zeros(SIZE, np.float32), np.full(SIZE, 0.5, np.float32)
    thetas, ones = np.stack([zero, constant] * 30), np.ones(60, np.float32)
    for method in ("pav", "spike"):
        same, soft = np.asarray(prox_of(method)(rows, thetas, ones))[:2]
        np.testing.assert_array_equal(same, rows[0])  # no weights: the identity
        norms = norms_of(rows[1])[:, None]
        factors = np.maximum(1 - 0.5 / np.where(norms > 0, norms, 1), 0)
        np.testing.assert_allclose(soft, factors * rows[1], atol=1e-6)


def test_prox_at_extreme_scales():
    """Squares of 1e-30 and 1e30 leave float32; the prox is homogeneous."""
    rows, thetas = (np.asarray(a, np.float32) for a in random_cases())
    plain = prox_of("pav")(rows, thetas, np.ones(60, np.float32))
    for scale in (1e-30, 1e30):
        steps = np.full(60, scale, np.float32)
        out = np.asarray(prox_of("pav")(rows * np.float32(scale), thetas, steps))
        assert np.isfinite(out).all()
        np.testing.assert_allclose(out / np.float32(scale), plain, atol=1e-5)


def test_pooling_in_parallel_equals_the_stack():
    """Long rising runs, stairs and noise; float32 against exact float64."""
    rng = np.random.default_rng(5)
    n = 300
    stairs = np.repeat(rng.normal(size=30), 10) + 0.01 * np.arange(n)
    cases = [rng.normal(size=n), np.arange(n) / n, -np.arange(n) / n, stairs]
    cases.append(np.sqrt(np.arange(n)[::-1]) + 0.3 * rng.normal(size=n))
    pooled = jax.jit(jax.vmap(pool_decreasing))(np.asarray(cases, np.float32))
    for one, values in zip(np.asarray(pooled), cases, strict=True):
        np.testing.assert_allclose(one, reference.pav(values), atol=3e-6)


# --- layers ---------------------------------------------------------------------------


def test_rows_are_the_input_channels():
    kernel = np.arange(2 * 2 * 3 * 4).reshape(2, 2, 3, 4)
    rows = np.asarray(sparsity.to_rows(jnp.asarray(kernel)))
    for channel in range(3):
        np.testing.assert_array_equal(rows[channel], kernel[:, :, channel].ravel())
    for shape in ((3, 4), (5, 3, 4), (2, 2, 3, 4), (5, 2, 2, 3, 4)):
        kernel = jnp.arange(np.prod(shape)).reshape(shape)
        rows = sparsity.to_rows(kernel)
        assert rows.shape[:-1] == ((5, 3) if len(shape) % 2 else (3,))
        chex.assert_trees_all_equal(sparsity.from_rows(rows, shape), kernel)


def test_selection():
    params = {
        "conv1": {"kernel": jnp.zeros((5, 5, 1, 8)), "bias": jnp.zeros(8)},
        "conv2": {"kernel": jnp.zeros((5, 5, 8, 4)), "bias": jnp.zeros(4)},
        "heads": {"kernel": jnp.zeros((2, 6, 3)), "bias": jnp.zeros((2, 3))},
    }
    chosen = sparsity.select_layers(params)
    assert chosen["conv2"] == {"kernel": True, "bias": False}
    assert sum(jax.tree.leaves(chosen)) == 1
    everything = sparsity.select_layers(params, lambda path: True)
    assert sum(jax.tree.leaves(everything)) == 3
    mask = sparsity.select_layers(
        params, {"conv1": True, "conv2": False, "heads": False}
    )
    assert mask["conv1"]["kernel"] and sum(jax.tree.leaves(mask)) == 1
    with pytest.raises(
        ValueError, match=r"chooses no kernel.*conv1/kernel, conv2/kern"
    ):
        sparsity.select_layers(params, lambda path: path == "conv3/kernel")
    with pytest.raises(ValueError, match="mask does not fit"):
        sparsity.select_layers(params, {"conv1": True})


def test_caps_keep_the_largest_rows():
    before = jnp.array([[0.3], [-0.5], [0.1], [0.5], [0.2], [9.0]])
    rows = jnp.array([[0.0]] * 5 + [[9.0]])
    cap = jax.jit(sparsity.cap_zero_rows)
    np.testing.assert_allclose(cap(rows, before, 3)[:, 0], [0, -0.5, 0, 0.5, 0, 9])
    chex.assert_trees_all_equal(cap(rows, before, 5), rows)
    # Of equal ones the first comes back.
    np.testing.assert_allclose(cap(rows, before, 4)[:, 0], [0, -0.5, 0, 0, 0, 9])


# --- transformation -------------------------------------------------------------------


def params_of():
    rng = np.random.default_rng(6)
    return {
        "conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 4, 2)), jnp.float32)},
        "dense": {
            "kernel": jnp.asarray(0.3 * rng.normal(size=(10, 3)), jnp.float32),
            "bias": jnp.ones(3),
        },
    }


def test_growl_is_the_proximal_gradient_step():
    params = params_of()
    grads = jax.tree.map(jnp.ones_like, params)
    tx = optax.chain(optax.sgd(0.1), sparsity.growl(0.1, k0=16.0, scale=0.5, beta2=0.1))
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    new = optax.apply_updates(params, updates)
    zero = total = 0
    for name in ("conv", "dense"):
        moved = np.asarray(sparsity.to_rows(params[name]["kernel"]), float) - 0.1
        theta = sparsity.growl_theta(len(moved), beta2=0.1)
        expected = reference.by_nnls(norms_of(moved), 0.1 * 16.0 * 0.5 * theta)
        rows = sparsity.to_rows(new[name]["kernel"])
        np.testing.assert_allclose(norms_of(rows), expected, atol=1e-6)
        zero, total = zero + (expected == 0).sum(), total + len(expected)
    assert 0 < zero < total
    assert float(optax.tree.get(state, "row_sparsity")) == pytest.approx(zero / total)
    np.testing.assert_allclose(new["dense"]["bias"], 0.9, rtol=1e-6)


def test_growl_weight_of_the_step_and_schedules():
    params = params_of()
    still = jax.tree.map(jnp.zeros_like, params)
    tx = sparsity.growl(lambda count: 0.1 / (1 + count), k0=0.0)
    step = jax.jit(tx.update)
    updates, state = step(still, tx.init(params), params)
    chex.assert_trees_all_close(updates, still, atol=1e-7)  # no weight, no change
    updates, _ = step(still, state, params, sparsity_weight=jnp.float32(2.0))
    rows = sparsity.to_rows(params["conv"]["kernel"])
    expected = reference.by_nnls(norms_of(rows), 0.1 * sparsity.growl_theta(4))
    new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(
        norms_of(sparsity.to_rows(new["conv"]["kernel"])), expected, atol=1e-6
    )


def test_paper_mode_acts_once_per_epoch_with_step_one_and_caps():
    params = params_of()
    norms = np.array([0.12, 0.19, 0.15, 5.0, 0.11, 0.18, 0.13, 0.16, 0.14, 0.17])
    rows = np.asarray(params["dense"]["kernel"])
    rows = (norms / norms_of(rows))[:, None] * rows
    params["dense"]["kernel"] = jnp.asarray(rows, jnp.float32)
    still = jax.tree.map(jnp.zeros_like, params)
    tx = sparsity.growl(k0=1e-4, mode="paper", every=2, max_sparsity=0.5)
    step, state = jax.jit(tx.update), tx.init(params)
    first, state = step(still, state, params)
    chex.assert_trees_all_equal(first, still)
    updates, state = step(still, state, params)
    new = optax.apply_updates(params, updates)["dense"]["kernel"]
    # Nine rows would vanish, five may: the largest four come back as they were.
    expected = np.where(norms == 5, 4.0, np.where(norms > 0.155, norms, 0))
    np.testing.assert_allclose(norms_of(new), expected, atol=1e-6)


@pytest.mark.parametrize("every", [1, 2])
def test_updates_of_another_dtype_than_the_parameters(every):
    """Zero rows need steps as exact as the parameters."""
    tx = sparsity.growl(0.1, every=every)
    for kernel, update in ((jnp.float32, jnp.bfloat16), (jnp.bfloat16, jnp.float32)):
        params = jax.eval_shape(lambda d=kernel: {"kernel": jnp.ones((9, 2), d)})
        updates = jax.eval_shape(lambda d=update: {"kernel": jnp.ones((9, 2), d)})
        state = jax.eval_shape(tx.init, params)
        steps, _ = jax.eval_shape(tx.update, updates, state, params)
        assert steps["kernel"].dtype == kernel


def test_zero_rows_stay_zero():
    params = params_of()
    params["dense"]["kernel"] = params["dense"]["kernel"].at[jnp.array([1, 4])].set(0)
    tx = optax.chain(optax.adam(0.1), sparsity.keep_zero_rows())
    state = tx.init(params)
    grads = jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state)
    zero = sparsity.zero_rows(params)
    np.testing.assert_array_equal(np.flatnonzero(zero["dense/kernel"]), [1, 4])
    assert not zero["conv/kernel"].any()


def test_bad_input():
    rows, theta = jnp.ones((3, 2)), sparsity.growl_theta(3)
    with pytest.raises(ValueError, match="theta must not rise"):
        sparsity.growl_prox(rows, theta[::-1])
    with pytest.raises(ValueError, match="finite and not negative"):
        sparsity.growl_penalty(rows, -theta)
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(2,\)"):
        sparsity.growl_prox(rows, theta[:2])
    with pytest.raises(ValueError, match="step must lie in"):
        sparsity.growl_prox(rows, theta, step=-1.0)
    with pytest.raises(ValueError, match="take method='pav'"):
        linear = sparsity.growl_theta(3, pattern="linear")
        sparsity.growl_prox(rows, linear, method="spike")
    with pytest.raises(ValueError, match="beta2 must lie in"):
        sparsity.growl_theta(3, beta2=-0.1)
    with pytest.raises(ValueError, match="both 0"):
        sparsity.growl_theta(3, beta1=0, beta2=0)
    with pytest.raises(ValueError, match="pattern must be one of"):
        sparsity.growl(0.1, pattern="step")
    with pytest.raises(ValueError, match="needs the learning_rate"):
        sparsity.growl()
    with pytest.raises(ValueError, match="max_sparsity must lie in"):
        sparsity.growl(0.1, max_sparsity=1.5)
    with pytest.raises(ValueError, match="every must be"):
        sparsity.growl(0.1, every=0)
    with pytest.raises(ValueError, match="works on the parameters"):
        params = params_of()
        sparsity.growl(0.1).update(params, sparsity.growl(0.1).init(params))
    with pytest.raises(ValueError, match=r"kernel must be dense"):
        sparsity.to_rows(jnp.ones(3))
