"""The Nash solver against a float64 oracle, closed forms, goldens and its own limits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.solvers import nash_weights
from tests.references import nash as reference

SIZES = (1, 2, 3, 5, 10, 40)
solve = jax.jit(nash_weights)


def _gram(jacobian, dtype="float32"):
    return jnp.asarray(jacobian @ jacobian.T, dtype)


@pytest.mark.parametrize("num_tasks", SIZES)
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-8), ("float32", 1e-4)])
def test_update_is_accurate(num_tasks, dtype, tolerance, x64):
    rng = np.random.default_rng(num_tasks)
    for name, jacobian in reference.well_posed(rng, num_tasks):
        solution = solve(_gram(jacobian, dtype))
        assert solution.ok, name
        assert solution.value.dtype == dtype
        expected = reference.weights(jacobian) @ jacobian
        update = np.asarray(solution.value, np.float64) @ jacobian
        error = np.linalg.norm(update - expected) / np.linalg.norm(expected)
        assert error < tolerance, name
        np.testing.assert_allclose(update @ update, num_tasks, rtol=2 * tolerance)
        assert solution.iterations <= 10, name


@pytest.mark.parametrize("num_tasks", [2, 5, 10, 40])
def test_strong_conflict_in_float64(num_tasks, x64):
    """The ridge costs nothing: a constant one of 1e-10 would be wrong by 1e-6 here."""
    rng = np.random.default_rng(num_tasks)
    jacobian = rng.normal(size=(num_tasks, 3 * num_tasks))
    jacobian = jacobian - 0.99 * jacobian.mean(0)
    solution = solve(_gram(jacobian, "float64"))
    expected = reference.weights(jacobian) @ jacobian
    error = np.linalg.norm(solution.value @ jacobian - expected)
    assert error < 1e-9 * np.linalg.norm(expected)
    assert solution.ok and solution.iterations <= 12


@pytest.mark.parametrize("cosine", [-0.99, -0.5, 0.0, 0.9, 1.0])
def test_two_tasks_in_closed_form(cosine):
    a, b = 30.0, 0.2
    gram = jnp.array([[a * a, a * b * cosine], [a * b * cosine, b * b]])
    expected = np.array([1 / a, 1 / b]) / np.sqrt(1 + cosine)
    np.testing.assert_allclose(solve(gram).value, expected, rtol=1e-5)


@pytest.mark.parametrize("num_tasks", [3, 10, 40])
def test_equicorrelated_orthogonal_and_identical_in_closed_form(num_tasks):
    """``alpha = (1 + (T - 1) c)^(-1/2) / d``; ``c = 1`` is identical gradients."""
    norms = 10.0 ** np.random.default_rng(0).uniform(-3, 3, num_tasks)
    for cosine in (-0.9 / (num_tasks - 1), 0.0, 0.3, 1.0):
        cosines = reference.equicorrelated(num_tasks, cosine)
        solution = solve(jnp.asarray(cosines * np.outer(norms, norms), jnp.float32))
        expected = (1 + (num_tasks - 1) * cosine) ** -0.5 / norms
        np.testing.assert_allclose(solution.value, expected, rtol=2e-5)
        assert solution.ok


def test_orthogonal_groups_decouple():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(3, 5)), rng.normal(size=(4, 6))
    gram = np.zeros((7, 7))
    gram[:3, :3], gram[3:, 3:] = first @ first.T, second @ second.T
    expected = [reference.weights(first), reference.weights(second)]
    value = solve(jnp.asarray(gram, jnp.float32)).value
    np.testing.assert_allclose(value, np.concatenate(expected), rtol=2e-5)


def test_goldens():
    first = np.array([[-4.0, 1, 1], [6, 1, 1]])
    update = solve(_gram(first)).value @ first
    np.testing.assert_allclose(update, [0.076584, 0.998533, 0.998533], atol=2e-5)
    second = np.array([[1, 2, 0, -1], [-2, 1, 0.5, 0], [0.5, -0.5, 3, 1]])
    expected = [0.453325, 0.436436, 0.342681]
    np.testing.assert_allclose(solve(_gram(second)).value, expected, atol=2e-6)


def test_a_common_factor_divides_the_weights():
    """Exactly, for powers of two; gradients' norms from 1e-15 to 1e15 otherwise."""
    gram = _gram(np.random.default_rng(2).normal(size=(6, 7)))
    expected = solve(gram).value
    for exponent in (-48, 48):
        value = solve(gram * 4.0**exponent).value
        np.testing.assert_array_equal(value, expected * 2.0**-exponent)
    for factor in (1e-15, 1e15):
        solution = solve(gram * factor * factor)
        assert solution.ok
        np.testing.assert_allclose(solution.value * factor, expected, rtol=1e-5)


def test_each_norm_divides_its_weight():
    rng = np.random.default_rng(3)
    gram = np.asarray(_gram(rng.normal(size=(6, 7))), np.float64)
    scales = 10.0 ** np.array([-15, 15, 0, 3, -3, -8])
    solution = solve(jnp.asarray(gram * np.outer(scales, scales), jnp.float32))
    expected = solve(jnp.asarray(gram, jnp.float32)).value
    np.testing.assert_allclose(solution.value * scales, expected, rtol=1e-5)


def test_permutation_equivariance():
    rng = np.random.default_rng(4)
    gram = np.asarray(_gram(rng.normal(size=(6, 7))))
    order = rng.permutation(6)
    permuted = solve(jnp.asarray(gram[order][:, order])).value
    np.testing.assert_allclose(permuted, solve(gram).value[order], rtol=1e-5)


def test_zero_gradients_get_zero_and_change_nothing():
    jacobian = np.random.default_rng(5).normal(size=(5, 7))
    gram = _gram(np.insert(jacobian, 2, 0, axis=0))
    solution = solve(gram)
    assert solution.ok and solution.value[2] == 0
    np.testing.assert_allclose(
        np.delete(solution.value, 2), reference.weights(jacobian), rtol=1e-5
    )
    solution = solve(jnp.zeros((6, 6)))
    np.testing.assert_array_equal(solution.value, jnp.zeros(6))
    assert solution.ok


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_gramian_returns_ones(bad):
    solution = solve(jnp.eye(6).at[0, 1].set(bad))
    np.testing.assert_array_equal(solution.value, jnp.ones(6))
    assert not solution.ok


def test_update_fades_at_stationarity_as_documented(x64):
    """Two tasks at cosine ``-1 + δ``: ``β²δ + 2 (ε β²)² = 1``, ``|Δ|² = 2 δ β²``."""
    ridge, previous = 1e-6, np.inf
    for slack in (1e-2, 1e-4, 1e-5, 1e-6, 1e-7, 1e-9, 0.0):
        gram = jnp.asarray(reference.equicorrelated(2, slack - 1), "float64")
        solution = nash_weights(gram, ridge=ridge)
        assert solution.ok and solution.iterations <= 12
        squared = 2 / (slack + np.sqrt(slack**2 + 8 * ridge**2))
        np.testing.assert_allclose(solution.value, np.sqrt(squared), rtol=1e-6)
        squared_norm = float(solution.value @ gram @ solution.value)
        np.testing.assert_allclose(squared_norm, 2 * slack * squared, atol=1e-9)
        assert squared_norm <= previous * (1 + 1e-12)
        previous = squared_norm


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("num_tasks", [2, 3, 10, 40])
def test_stationary_gramians_give_short_finite_updates(num_tasks, dtype, x64):
    rng = np.random.default_rng(num_tasks)
    for seed in range(5):
        jacobian = np.random.default_rng(seed).normal(size=(num_tasks, 3 * num_tasks))
        jacobian = jacobian - rng.dirichlet(np.ones(num_tasks)) @ jacobian
        solution = solve(_gram(jacobian, dtype))
        chex.assert_tree_all_finite(solution)
        assert jnp.all(solution.value > 0)
        assert solution.ok and solution.iterations <= 20
        update = np.asarray(solution.value, np.float64) @ jacobian
        # Without ridge its norm would be sqrt(T), in a direction made of rounding.
        assert np.linalg.norm(update) < 0.05 * np.sqrt(num_tasks)


def test_indefinite_gramian_is_flagged():
    """No Gramian at all: whatever the answer, it is finite, and not certified."""
    gram = jnp.array([[1.0, -3.0], [-3.0, 1.0]])
    solution = solve(gram)
    chex.assert_tree_all_finite(solution)
    assert not solution.ok


def test_too_few_iterations_are_flagged():
    gram = _gram(np.random.default_rng(6).normal(size=(6, 7)))
    short = nash_weights(gram, max_iterations=1)
    assert not short.ok and short.iterations == 1
    assert solve(gram).ok


def test_eager_jit_vmap_and_scan_agree():
    jacobians = np.random.default_rng(7).normal(size=(4, 6, 7))
    jacobians[1] -= 0.999 * jacobians[1].mean(0)  # takes more steps than the others
    grams = jnp.asarray(jacobians @ jacobians.transpose(0, 2, 1), jnp.float32)
    one_by_one = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *[solve(gram) for gram in grams]
    )
    eager = nash_weights(grams[0])
    mapped = jax.vmap(solve)(grams)
    _, scanned = jax.lax.scan(lambda _, gram: (None, solve(gram)), None, grams)
    first = jax.tree.map(lambda leaf: leaf[0], one_by_one)
    chex.assert_trees_all_close(eager.value, first.value, rtol=1e-5)
    for other in (mapped, scanned):
        assert other.ok.all()
        updates = [
            jnp.einsum("bt,btp->bp", result.value, jacobians.astype(np.float32))
            for result in (one_by_one, other)
        ]
        np.testing.assert_allclose(updates[0], updates[1], atol=2e-3)
        chex.assert_trees_all_equal_dtypes(one_by_one, other)


def test_ridge_may_be_traced():
    gram = jnp.eye(3)
    value = jax.jit(lambda ridge: nash_weights(gram, ridge=ridge).value)(1e-3)
    np.testing.assert_allclose(value, jnp.ones(3), rtol=1e-5)


def test_argument_errors():
    with pytest.raises(ValueError, match=r"gram must have shape \(T, T\)"):
        nash_weights(jnp.ones(3))
    with pytest.raises(ValueError, match="ridge must lie in"):
        nash_weights(jnp.eye(2), ridge=-1.0)
    with pytest.raises(ValueError, match="max_iterations must lie in"):
        nash_weights(jnp.eye(2), max_iterations=0)
