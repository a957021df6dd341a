"""Algebra of stacked trees against NumPy float64."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import tree
from tests.helpers import jacobian_of, params_of, rows_of, tree_of


@hypothesis.given(seed=st.integers(0, 1000), num_tasks=st.integers(1, 6))
def test_gram_equals_rows_times_rows(seed, num_tasks):
    jacobian = jacobian_of(seed, num_tasks).astype(np.float32).astype(np.float64)
    gram = tree.gram(tree_of(jacobian))
    chex.assert_type(gram, jnp.float32)
    expected = jacobian @ jacobian.T
    # 24 products in float32: a few units in the last place of the largest entry.
    np.testing.assert_allclose(gram, expected, rtol=1e-5, atol=1e-6 * expected.max())
    np.testing.assert_array_equal(gram, gram.T)


def test_gram_is_float64_when_a_leaf_is(x64):
    del x64
    jacobian = jacobian_of(0, 3)
    mixed = tree_of(jacobian, jnp.float64)
    mixed["scale"] = mixed["scale"].astype(jnp.float32)
    gram = tree.gram(mixed)
    chex.assert_type(gram, jnp.float64)
    np.testing.assert_allclose(gram, jacobian @ jacobian.T, rtol=1e-6)


def test_gram_accumulates_bfloat16_in_float32():
    # 4097 ones: a bfloat16 sum would stop at 256.
    gram = tree.gram({"w": jnp.ones((2, 4097), jnp.bfloat16)})
    chex.assert_type(gram, jnp.float32)
    np.testing.assert_array_equal(gram, np.full((2, 2), 4097.0))


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_gram_of_extreme_gradients(scale):
    jacobian = jacobian_of(0, 3)
    expected = scale**2 * (jacobian @ jacobian.T)
    np.testing.assert_allclose(
        tree.gram(tree_of(scale * jacobian)), expected, rtol=1e-4
    )


def test_combine_scale_and_norms():
    jacobian = jacobian_of(1, 3)
    grads, weights = tree_of(jacobian), jnp.array([0.5, -1.0, 2.0])
    combined = tree.combine(weights, grads)
    chex.assert_trees_all_equal_shapes_and_dtypes(combined, params_of())
    np.testing.assert_allclose(
        rows_of(combined), weights @ jacobian, rtol=1e-5, atol=1e-5
    )
    norms = np.linalg.norm(jacobian, axis=1)
    np.testing.assert_allclose(tree.task_norms(grads), norms, rtol=1e-6)
    unit = tree.scale_tasks(1 / tree.task_norms(grads), grads)
    np.testing.assert_allclose(tree.task_norms(unit), np.ones(3), rtol=1e-6)


def test_combine_keeps_bfloat16_but_adds_in_float32():
    grads = {"w": jnp.array([[256.0], [1.0], [-256.0]], jnp.bfloat16)}
    combined = tree.combine(jnp.ones(3), grads)
    chex.assert_type(combined["w"], jnp.bfloat16)
    assert float(combined["w"][0]) == 1.0  # bfloat16 sums would lose the one


def test_finite_and_zero_tasks():
    jacobian = jacobian_of(2, 4)
    jacobian[1, 3], jacobian[2, 15] = np.inf, np.nan
    grads = tree_of(jacobian)
    finite = tree.finite_tasks(grads)
    np.testing.assert_array_equal(finite, [True, False, False, True])
    cleaned = rows_of(tree.zero_tasks(~finite, grads))
    assert np.isfinite(cleaned).all() and not cleaned[1:3].any()
    np.testing.assert_allclose(cleaned[[0, 3]], jacobian[[0, 3]], rtol=1e-6)


def test_check_stacked_names_the_leaf():
    with pytest.raises(ValueError, match="has no leaves"):
        tree.check_stacked({}, 2)
    with pytest.raises(ValueError, match=r"'a/b'.*\(3, 4\), expected \(2, \.\.\.\)"):
        tree.check_stacked({"a": {"b": jnp.ones((3, 4))}}, 2)
    with pytest.raises(ValueError, match=r"shape \(\)"):
        tree.check_stacked(jnp.ones(()), 1)
    with pytest.raises(ValueError, match="complex64"):
        tree.check_stacked(jnp.ones((2, 2), jnp.complex64), 2)


def test_resolve_heads():
    params = params_of()
    marks = tree.resolve_heads(lambda path: path.startswith("heads/"), params)
    by_mask = {"encoder": False, "scale": False, "heads": True}
    chex.assert_trees_all_equal(marks, tree.resolve_heads(by_mask, params))
    assert jax.tree.leaves(marks) == [False, False, True, False]
    assert tree.resolve_heads(None, params) is None
    with pytest.raises(ValueError, match="prefix of the parameters' tree"):
        tree.resolve_heads({"encoder": True}, params)
    with pytest.raises(ValueError, match="marks every parameter"):
        tree.resolve_heads(lambda path: True, params)
