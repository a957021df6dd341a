"""CAGrad's dual: exact references, closed forms, degenerate limits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.solvers import cagrad_update_weights, cagrad_weights, min_norm_point
from mtl_jax.solvers.active_set import minimise_on_simplex
from tests.references import cagrad as reference
from tests.references import simplex as problems

dual = jax.jit(cagrad_weights)  # c is traced
combine = jax.jit(cagrad_update_weights)


def gramian(jacobian, dtype=jnp.float32):
    jacobian = jnp.asarray(jacobian, dtype)
    return jnp.matmul(jacobian, jacobian.T, precision="highest")


def check_simplex(weights):
    chex.assert_tree_all_finite(weights)
    assert np.all(weights >= 0)
    np.testing.assert_allclose(np.sum(weights), 1, rtol=1e-5)


def update_from_weights(jacobian, c, weights):
    """The formula of the paper, in the precision of the gradients."""
    mean, combined = jnp.mean(jacobian, 0), weights @ jacobian
    ratio = c * jnp.linalg.norm(mean) / jnp.linalg.norm(combined)
    return np.asarray(mean + ratio * combined, np.float64)


def check_well_posed(dtype, seed, tolerance, radii):
    for name, jacobian in problems.well_posed_problems(seed):
        jacobian = jnp.asarray(jacobian, dtype)
        if len(jacobian) == 1 or "zero-row" in name:
            continue  # tested on their own
        exact_rows = np.asarray(jacobian, np.float64)
        for c in radii:
            solution = dual(gramian(jacobian, dtype), c)
            check_simplex(solution.value)
            assert solution.ok, (name, c)
            weights = np.asarray(solution.value, np.float64)
            # A proof of optimality for every T, which needs no other solver.
            residual = reference.kkt_residual(exact_rows, c, weights)
            assert residual <= tolerance, (name, c, residual)
            if len(jacobian) > 5:
                continue
            expected = reference.weights_by_enumeration(exact_rows, c)
            exact = reference.update(exact_rows, c, expected)
            scale = np.linalg.norm(exact)
            for update in (
                update_from_weights(jacobian, c, solution.value),
                combine(gramian(jacobian, dtype), c).value @ jacobian,
            ):
                error = np.linalg.norm(np.asarray(update, np.float64) - exact)
                assert error <= tolerance * scale, (name, c, error / scale)


def test_well_posed_float32():
    # 1.2e-6 was seen; 1e-4 is promised.
    check_well_posed(jnp.float32, 0, 1e-4, radii=(0.05, 0.4, 1.0))


@pytest.mark.slow
def test_well_posed_float64(x64):
    # 2e-15 was seen; 1e-8 is promised.
    check_well_posed(jnp.float64, 1, 1e-8, radii=(0.9, 2.0))


def test_bisection_agrees_for_many_tasks(x64):
    for name, jacobian in problems.well_posed_problems(2, (10,)):
        if "zero-row" in name:
            continue
        for c in (0.4, 1.0):
            expected = reference.weights_by_bisection(jacobian, c)
            assert reference.kkt_residual(jacobian, c, expected) < 1e-10, (name, c)
            weights = np.asarray(dual(gramian(jacobian, jnp.float64), c).value)
            update, exact = (
                reference.update(jacobian, c, w) for w in (weights, expected)
            )
            error = np.linalg.norm(update - exact) / np.linalg.norm(exact)
            assert error < 1e-8, (name, c, error)


@pytest.mark.parametrize("c", [1e-4, 0.4, 1.0, 1.5, 100.0])
def test_hard_problems(c):
    for name, jacobian in problems.hard_problems(sizes=(2, 3, 10, 40)):
        gram = gramian(jacobian)
        solution, update_weights = dual(gram, c), combine(gram, c)
        check_simplex(solution.value)
        chex.assert_tree_all_finite(update_weights.value)
        jacobian = np.asarray(jnp.asarray(jacobian, jnp.float32), np.float64)
        norms = np.linalg.norm(jacobian, axis=1)
        mean = jacobian.mean(0)
        length = np.linalg.norm(mean)
        if length < 1e-6 * norms.max() or norms.min() == 0:
            continue
        # The update maximises the worst task over the ball, also where g_w vanishes:
        # no g_i.d is below the dual value, to what the Gramian resolves (sqrt(eps)).
        update = np.asarray(update_weights.value, np.float64) @ jacobian
        weights = np.asarray(solution.value, np.float64)
        products = jacobian @ update
        slack = (weights @ products - products) / (norms * length * (1 + c))
        assert slack.max() < 5e-3, (name, slack.max())
        assert np.linalg.norm(update - mean) <= length * (c + 2e-3 * (1 + c)), name


GOLDEN = [
    ([[-4, 1, 1], [6, 1, 1]], 0.5, [1, 0], [0.183503, 1.204124, 1.204124]),
    ([[-4, 1, 1], [6, 1, 1]], 1.0, [0.7, 0.3], [0, 2, 2]),
    (
        [[1, 2, 0, -1], [-2, 1, 0.5, 0], [0.5, -0.5, 3, 1]],
        0.5,
        [0.504189, 0.459618, 0.036193],
        None,
    ),
]


@pytest.mark.parametrize("jacobian, c, weights, update", GOLDEN)
def test_golden(jacobian, c, weights, update):
    gram = gramian(jacobian)
    np.testing.assert_allclose(dual(gram, c).value, weights, atol=2e-6)
    combined = combine(gram, c)
    assert combined.ok
    if update is None:
        expected = np.array([0.559285, 0.539311, 0.349553])
        np.testing.assert_allclose(combined.value, expected, atol=2e-6)
    else:
        actual = combined.value @ jnp.asarray(jacobian, jnp.float32)
        np.testing.assert_allclose(actual, update, atol=2e-5)


def test_radius_one_is_twice_mgda_when_interior():
    rng = np.random.default_rng(3)
    jacobian = rng.normal(size=(3, 40)) + 0.5
    gram = gramian(jacobian)
    mgda = min_norm_point(gram).value
    assert mgda.min() >= 1 / 6  # the condition: at least 1 / (2 T)
    np.testing.assert_allclose(combine(gram, 1.0).value, 2 * mgda, atol=1e-5)


def test_large_radius_tends_to_min_norm():
    gram = gramian(np.random.default_rng(4).normal(size=(3, 6)))
    expected = min_norm_point(gram).value
    np.testing.assert_allclose(dual(gram, 1e4).value, expected, atol=1e-3)


def test_zero_radius_is_the_mean():
    gram = gramian(np.random.default_rng(5).normal(size=(3, 6)))
    for solution in (dual(gram, 0.0), combine(gram, 0.0)):
        np.testing.assert_allclose(solution.value, 1 / 3, rtol=1e-6)
        assert solution.ok


def test_one_task():
    np.testing.assert_allclose(dual(jnp.array([[4.0]]), 0.5).value, [1], rtol=1e-6)
    np.testing.assert_allclose(combine(jnp.array([[4.0]]), 0.5).value, [1.5], rtol=1e-6)


def test_zero_mean_and_zero_gradients():
    for gram in (jnp.array([[1.0, -1.0], [-1.0, 1.0]]), jnp.zeros((2, 2))):
        for solution in (dual(gram, 0.5), combine(gram, 0.5)):
            np.testing.assert_allclose(solution.value, 0.5, rtol=1e-6)
            assert solution.ok


def test_zero_row_gets_no_weight():
    jacobian = np.array([[-4, 1, 1], [0, 0, 0], [6, 1, 1]], float)
    solution, combined = dual(gramian(jacobian), 0.5), combine(gramian(jacobian), 0.5)
    assert solution.ok and solution.value[1] == 0
    update = np.asarray(combined.value) @ jacobian
    # The others' problem, with the mean over all three.
    mean = jacobian.mean(0)
    np.testing.assert_allclose(
        np.linalg.norm(update - mean), 0.5 * np.linalg.norm(mean), rtol=1e-5
    )
    weights = np.asarray(solution.value)[[0, 2]]
    products = jacobian[[0, 2]] @ update
    assert products.min() >= weights @ products - 1e-4


def test_stationary_limits():
    # Both opposed tasks are active: only what harms neither is left of the mean.
    jacobian = np.array([[1, 0], [-2, 0], [0, 3]], float)
    combined = combine(gramian(jacobian), 1.5)
    update = np.asarray(combined.value) @ jacobian
    np.testing.assert_allclose(update, [0, 1], atol=2e-3)
    assert combined.ok
    # Every task active and c > 1: nothing harms no task but the zero update.
    rng = np.random.default_rng(6)
    jacobian = rng.normal(size=(3, 2))
    jacobian[2] = -0.3 * jacobian[0] - 0.5 * jacobian[1]
    combined = combine(gramian(jacobian), 1.5)
    update = np.asarray(combined.value) @ jacobian
    np.testing.assert_allclose(update, [0, 0], atol=2e-3)
    assert combined.ok


@pytest.mark.parametrize("factor", [1e-30, 1e-10, 1e10, 1e30])
def test_common_scale_changes_nothing(factor):
    gram = gramian(np.random.default_rng(7).normal(size=(3, 8)))
    for solve in (dual, combine):
        base, other = solve(gram, 0.4), solve(gram * jnp.float32(factor), 0.4)
        np.testing.assert_allclose(base.value, other.value, rtol=1e-4, atol=1e-6)
        assert base.ok and other.ok


def test_permutation_equivariance():
    for name, jacobian in problems.well_posed_problems(8, (5,)):
        if "low-rank" in name or "duplicates" in name:
            continue  # the weights are not unique
        for c in (0.4, 1.0):
            weights = np.asarray(dual(gramian(jacobian), c).value)
            for seed in range(3):
                order = np.random.default_rng(seed).permutation(5)
                permuted = dual(gramian(jacobian[order]), c).value
                message = f"{name} {c}"
                np.testing.assert_allclose(
                    permuted, weights[order], atol=1e-4, err_msg=message
                )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite(bad):
    for gram, c in ((jnp.eye(3).at[0, 1].set(bad), 0.4), (jnp.eye(3), bad)):
        for solution in (dual(gram, c), combine(gram, c)):
            np.testing.assert_allclose(solution.value, 1 / 3, rtol=1e-6)
            assert not solution.ok


def test_transformations():
    keys = jax.random.split(jax.random.key(0), 4)
    grams = jnp.stack([gramian(jax.random.normal(key, (3, 5))) for key in keys])
    values = jnp.stack([dual(gram, 0.4).value for gram in grams])
    batched = jax.jit(jax.vmap(cagrad_weights, in_axes=(0, None)))(grams, 0.4)
    chex.assert_trees_all_close(batched.value, values, atol=1e-5)
    radii = jnp.full(4, 0.4)  # as a schedule would give it

    @jax.jit
    def scan(grams):
        def step(_, inputs):
            return None, cagrad_weights(*inputs).value

        return jax.lax.scan(step, None, (grams, radii))[1]

    chex.assert_trees_all_close(scan(grams), values, atol=1e-5)
    eager = cagrad_weights(grams[0], 0.4)
    chex.assert_trees_all_close(eager.value, values[0], atol=1e-5)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"shape \(T, T\)"):
        cagrad_weights(jnp.ones((2, 3)), 0.4)
    with pytest.raises(ValueError, match="c must lie in"):
        cagrad_update_weights(jnp.eye(2), -0.4)


def test_a_wrong_multiplier_does_not_shorten_the_pull(monkeypatch):
    """On the edge of a support the solver's multiplier can be off by ten digits."""
    gram = jnp.array([[18.0, -22.0], [-22.0, 38.0]])
    expected = cagrad_update_weights(gram, 0.4).value

    def off(*args):
        z, step, iterations = minimise_on_simplex(*args)
        return z, 1e10 * step, iterations

    monkeypatch.setattr("mtl_jax.solvers.cagrad.minimise_on_simplex", off)
    found = cagrad_update_weights(gram, 0.4).value
    np.testing.assert_allclose(found, expected, rtol=1e-5)
