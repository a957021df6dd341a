"""The cone solvers against enumeration, SciPy's NNLS, goldens and KKT conditions."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_jax.solvers import dual_cone_weights
from mtl_jax.solvers.cone import least_distance
from tests.references import cone as reference

SIZES = (1, 2, 3, 5, 10, 40)
solve = jax.jit(dual_cone_weights)


def _bounds(rng, num_tasks):
    """UPGrad's bounds, then DualProj's, then random ones: ``(T + 2, T)``."""
    mean = np.full((1, num_tasks), 1 / num_tasks)
    random = rng.dirichlet(np.ones(num_tasks), size=1)
    return np.concatenate([np.eye(num_tasks) / num_tasks, mean, random])


def _gram(jacobian, dtype):
    return jnp.asarray(jacobian @ jacobian.T, dtype)


def _update_error(jacobian, lower, value):
    """Largest relative error of the updates ``J'v``, and that of their sum (UPGrad)."""
    expected = np.stack([reference.weights(jacobian, row) for row in lower])
    updates = expected @ jacobian
    errors = np.asarray(value, np.float64) @ jacobian - updates
    updates = np.concatenate([updates, updates.sum(0, keepdims=True)])
    errors = np.concatenate([errors, errors.sum(0, keepdims=True)])
    sizes = np.linalg.norm(updates, axis=1)
    return np.max(np.linalg.norm(errors, axis=1) / np.where(sizes > 0, sizes, 1))


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 4, 5, 6])
def test_oracles_agree(num_tasks):
    rng = np.random.default_rng(num_tasks)
    cases = [*reference.well_posed(rng, num_tasks)]
    cases += [*reference.adversarial(rng, num_tasks)]
    for name, jacobian in cases:
        for row in _bounds(rng, num_tasks)[-3:]:
            first = reference.weights(jacobian, row) @ jacobian
            second = reference.weights_by_enumeration(jacobian, row) @ jacobian
            size = np.abs(row) @ np.linalg.norm(jacobian, axis=1)
            np.testing.assert_allclose(
                first, second, rtol=0, atol=1e-9 * size, err_msg=name
            )


@pytest.mark.parametrize("num_tasks", SIZES)
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-8), ("float32", 1e-4)])
def test_update_is_accurate(num_tasks, dtype, tolerance, x64):
    rng = np.random.default_rng(num_tasks)
    lower = _bounds(rng, num_tasks)
    for name, jacobian in reference.well_posed(rng, num_tasks):
        solution = solve(_gram(jacobian, dtype), jnp.asarray(lower, dtype))
        assert solution.ok, name
        assert solution.value.dtype == dtype
        assert _update_error(jacobian, lower, solution.value) < tolerance, name
        assert solution.iterations <= 2 * num_tasks + 5, name


@pytest.mark.parametrize("num_tasks", SIZES)
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-10), ("float32", 2e-4)])
def test_adversarial_gramians_are_optimal(num_tasks, dtype, tolerance, x64):
    """The optimality conditions hold for the Jacobian itself, bounds of either sign.

    In float32 the Gramian is already wrong by 1e-7, which an almost singular one turns
    into conflicts of up to 1e-4 of the lengths combined; ``ok`` may say so.
    """
    rng = np.random.default_rng(100 + num_tasks)
    for name, jacobian in reference.adversarial(rng, num_tasks):
        lower = _bounds(rng, num_tasks)
        lower[-1] = rng.normal(size=num_tasks)
        bounds = jnp.asarray(lower, dtype)
        solution = solve(_gram(jacobian, dtype), bounds)
        chex.assert_tree_all_finite(solution)
        assert jnp.all(solution.value >= bounds), name
        for row, value in zip(bounds, solution.value, strict=True):
            assert reference.kkt_violation(jacobian, row, value) < tolerance, name
        assert solution.ok or dtype == "float32", name


@given(
    rows=st.lists(
        st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=6, max_size=6
    ),
    lower=st.lists(st.integers(-2, 2), min_size=6, max_size=6),
)
def test_integer_jacobians(rows, lower):
    """Small integers: full of ties, zero, parallel, opposed and dependent rows."""
    jacobian = np.array(rows, np.float64)
    bounds = np.array(lower, np.float64)
    solution = solve(_gram(jacobian, jnp.float32), jnp.asarray(bounds, jnp.float32))
    assert solution.ok
    assert reference.kkt_violation(jacobian, bounds, solution.value) < 2e-6


def test_goldens():
    """Figures published with TorchJD, whose regulariser moves them by 1e-4."""
    first = np.array([[-4.0, 1, 1], [6, 1, 1]])
    gram = _gram(first, jnp.float32)
    upgrad = solve(gram, jnp.eye(2) / 2).value.sum(0) @ first
    np.testing.assert_allclose(upgrad, [0.292902, 1.900352, 1.900352], atol=2e-3)
    dual_projection = solve(gram, jnp.array([0.5, 0.5])).value @ first
    np.testing.assert_allclose(dual_projection, [0.5563, 1.1109, 1.1109], atol=2e-3)
    second = np.array([[1, 2, 0, -1], [-2, 1, 0.5, 0], [0.5, -0.5, 3, 1]])
    weights = solve(_gram(second, jnp.float32), jnp.eye(3) / 3).value.sum(0)
    np.testing.assert_allclose(weights, [0.416636, 0.333333, 0.380943], atol=2e-4)


@pytest.mark.parametrize("cosine", [-0.999, -0.5, -1e-3, 0.0, 0.7])
def test_two_tasks_in_closed_form(cosine):
    a, b = 3.0, 0.2
    gram = jnp.array([[a * a, a * b * cosine], [a * b * cosine, b * b]])
    conflict = max(0.0, -cosine)
    expected = [[1.0, conflict * a / b], [conflict * b / a, 1.0]]
    np.testing.assert_allclose(solve(gram, jnp.eye(2)).value, expected, rtol=1e-5)


def test_no_conflict_returns_the_bounds():
    jacobian = np.abs(np.random.default_rng(0).normal(size=(5, 8)))
    solution = solve(_gram(jacobian, jnp.float32), jnp.eye(5))
    np.testing.assert_array_equal(solution.value, jnp.eye(5))
    assert solution.ok and solution.iterations == 1


def test_weights_scale_with_the_bounds_and_not_with_the_gramian():
    """Exactly, for powers of two; to rounding at the ends of float32's range."""
    jacobian = np.random.default_rng(1).normal(size=(6, 7))
    gram = _gram(jacobian, jnp.float32)
    expected = solve(gram, jnp.eye(6)).value
    for exponent in (-90, 90):
        scaled = solve(gram * 2.0**exponent, jnp.eye(6)).value
        np.testing.assert_array_equal(scaled, expected)
        scaled = solve(gram, jnp.eye(6) * 2.0**exponent).value
        np.testing.assert_array_equal(scaled, expected * 2.0**exponent)
    for factor in (1e-30, 1e30):
        scaled = solve(gram * factor, jnp.eye(6))
        assert scaled.ok
        np.testing.assert_allclose(scaled.value, expected, rtol=1e-4, atol=1e-6)


def test_scaling_a_row_scales_its_weight():
    rng = np.random.default_rng(2)
    jacobian = rng.normal(size=(6, 9))
    scales = 10.0 ** rng.uniform(-15, 15, 6)
    gram = jnp.asarray(jacobian @ jacobian.T * np.outer(scales, scales), jnp.float32)
    solution = solve(gram, jnp.asarray(np.diag(1 / scales), jnp.float32))
    expected = solve(_gram(jacobian, jnp.float32), jnp.eye(6)).value
    np.testing.assert_allclose(
        solution.value * scales[None, :], expected, rtol=2e-5, atol=1e-6
    )


def test_permutation_equivariance():
    rng = np.random.default_rng(3)
    jacobian = rng.normal(size=(6, 8))
    order = rng.permutation(6)
    lower = jnp.asarray(rng.normal(size=(6, 6)), jnp.float32)
    expected = solve(_gram(jacobian, jnp.float32), lower).value
    permuted = solve(_gram(jacobian[order], jnp.float32), lower[:, order]).value
    np.testing.assert_allclose(permuted, expected[:, order], atol=2e-6)


def test_each_row_is_its_own_problem():
    rng = np.random.default_rng(4)
    gram = _gram(rng.normal(size=(6, 7)), jnp.float32)
    lower = jnp.asarray(rng.normal(size=(6, 6)), jnp.float32)
    together = solve(gram, lower).value
    for row, value in zip(lower, together, strict=True):
        np.testing.assert_allclose(solve(gram, row).value, value, atol=2e-6)


def test_zero_gradients_keep_their_bound_and_change_nothing():
    rng = np.random.default_rng(5)
    jacobian = rng.normal(size=(4, 5))
    padded = np.insert(jacobian, 2, 0, axis=0)
    expected = solve(_gram(jacobian, jnp.float32), jnp.ones(4)).value
    solution = solve(_gram(padded, jnp.float32), jnp.ones(5))
    assert solution.ok
    np.testing.assert_array_equal(solution.value, np.insert(expected, 2, 1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_gramian_returns_the_bounds(bad):
    gram = jnp.eye(3).at[0, 1].set(bad)
    solution = solve(gram, jnp.full(3, 0.3))
    np.testing.assert_array_equal(solution.value, jnp.full(3, 0.3))
    assert not solution.ok


@pytest.mark.slow
def test_eager_jit_vmap_and_scan_agree():
    jacobians = np.random.default_rng(6).normal(size=(3, 4, 6))
    grams = jnp.asarray(jacobians @ jacobians.transpose(0, 2, 1), jnp.float32)
    lower = jnp.eye(4)
    one_by_one = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *[solve(gram, lower) for gram in grams]
    )
    mapped = jax.vmap(solve, in_axes=(0, None))(grams, lower)
    _, scanned = jax.lax.scan(lambda _, gram: (None, solve(gram, lower)), None, grams)
    for other in (mapped, scanned):
        chex.assert_trees_all_close(one_by_one, other, atol=1e-6)
        chex.assert_trees_all_equal_dtypes(one_by_one, other)
    eager = dual_cone_weights(grams[0], lower)
    first = jax.tree.map(lambda leaf: leaf[0], one_by_one)
    chex.assert_trees_all_close(eager, first, atol=1e-6)


def test_shape_errors():
    with pytest.raises(ValueError, match=r"gram must have shape \(T, T\)"):
        dual_cone_weights(jnp.ones((2, 3)), jnp.ones(2))
    with pytest.raises(ValueError, match=r"lower must have shape .* T = 2"):
        dual_cone_weights(jnp.eye(2), jnp.ones(3))
    with pytest.raises(ValueError, match="lower must have shape"):
        dual_cone_weights(jnp.eye(2), jnp.asarray(1.0))


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-9), ("float32", 1e-3)])
def test_least_distance_in_the_plane_and_in_space(rank, dtype, tolerance, x64):
    """More vectors than dimensions: the nearest point is often a vertex, where another
    vector that depends on those active has to take the place of one of them."""
    program = jax.jit(least_distance)
    rng = np.random.default_rng(rank)
    swapped = 0
    for _ in range(100):
        vectors = rng.standard_normal((5, rank)) + np.eye(rank)[0]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        lower = rng.uniform(-0.5, 1, 5)
        nearest, active = _nearest_by_enumeration(vectors, lower)
        cosines = jnp.asarray(vectors @ vectors.T, dtype)
        found = program(cosines, jnp.asarray(lower, dtype))
        if nearest is None or np.linalg.norm(nearest) > 20:
            assert nearest is not None or not found.ok
            continue
        assert found.ok
        point = np.asarray(found.value, float) @ vectors
        size = np.linalg.norm(nearest) + 1
        np.testing.assert_allclose(point, nearest, rtol=0, atol=tolerance * size)
        swapped += active == rank
    assert swapped > 20


def _nearest_by_enumeration(vectors, lower):
    """The nearest point with ``vectors @ d >= lower``, or None, and how many bind."""
    best, active = None, 0
    for count in range(vectors.shape[1] + 1):
        for chosen in itertools.combinations(range(len(lower)), count):
            rows = list(chosen)
            point = (
                np.linalg.pinv(vectors[rows]) @ lower[rows] if rows else 0 * vectors[0]
            )
            if (vectors @ point < lower - 1e-9).any():
                continue
            if best is None or np.linalg.norm(point) < np.linalg.norm(best) - 1e-12:
                best, active = point, count
    return best, active
