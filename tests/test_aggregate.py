"""``aggregate`` and ``normalize``: heads, non-finite policies, composition limits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtl_jax
from mtl_jax.registry import METHODS
from tests.helpers import jacobian_of, params_of, rows_of, tree_of
from tests.test_methods_common import quick

HEADS = {"encoder": False, "scale": False, "heads": True}
WEIGHTINGS = sorted(name for name, spec in METHODS.items() if spec.weighting)


def first_update(tx, grads, losses=None):
    params = params_of()
    return jax.jit(lambda g, ls: tx.update(g, tx.init(params), params, losses=ls))(
        grads, jnp.arange(1.0, 4.0) if losses is None else losses
    )


@pytest.mark.parametrize("head_weights", ["unit", "weighted"])
def test_heads_are_left_out_of_the_gramian(head_weights):
    grads = tree_of(jacobian_of(0, 3))
    louder = grads | {"heads": {"kernel": 100 * grads["heads"]["kernel"]}}
    weighting = mtl_jax.weighting.mgda(3)
    tx = mtl_jax.aggregate(weighting, heads=HEADS, head_weights=head_weights)
    update, state = first_update(tx, grads)
    _, louder_state = first_update(tx, louder)
    weights = optax.tree.get(state, "weights")
    chex.assert_trees_all_close(weights, optax.tree.get(louder_state, "weights"))
    kernel = grads["heads"]["kernel"]
    factors = jnp.ones(3) if head_weights == "unit" else weights
    expected = jnp.einsum("t,tabc->abc", factors, kernel)
    chex.assert_trees_all_close(update["heads"]["kernel"], expected, rtol=1e-5)
    shared = jnp.einsum("t,tab->ab", weights, grads["encoder"]["kernel"])
    chex.assert_trees_all_close(
        update["encoder"]["kernel"], shared, rtol=1e-5, atol=1e-6
    )


def test_summed_heads_equal_stacked_heads():
    grads = tree_of(jacobian_of(0, 3))
    summed = grads | {
        "heads": {"kernel": grads["heads"]["kernel"].sum(axis=0, keepdims=True)}
    }
    tx = mtl_jax.aggregate(mtl_jax.weighting.cagrad(3), heads=HEADS)
    stacked_update, _ = first_update(tx, grads)
    summed_update, _ = first_update(tx, summed)
    chex.assert_trees_all_close(stacked_update, summed_update, rtol=1e-6)
    weighted = mtl_jax.aggregate(
        mtl_jax.weighting.cagrad(3), heads=HEADS, head_weights="weighted"
    )
    with pytest.raises(ValueError, match="already summed over the tasks"):
        first_update(weighted, summed)
    with pytest.raises(ValueError, match=r"'heads/kernel' .*shape \(1, 2, 2, 2\)"):
        first_update(mtl_jax.cagrad(3), summed)


@pytest.mark.parametrize("name", quick(WEIGHTINGS))
@pytest.mark.parametrize("bad", ["nan gradient", "inf gradient", "nan loss"])
def test_skip_task_leaves_the_others_working(name, bad):
    jacobian, losses = jacobian_of(1, 3), np.array([1.0, 2.0, 3.0])
    if bad == "nan loss":
        losses[1] = np.nan
    else:
        jacobian[1, 5] = np.nan if bad == "nan gradient" else np.inf
    tx = mtl_jax.aggregate(mtl_jax.build_weighting(name, 3), nonfinite="skip_task")
    update, state = first_update(
        tx, tree_of(jacobian), jnp.asarray(losses, jnp.float32)
    )
    assert np.isfinite(rows_of(update)).all() and rows_of(update).any()
    weights = np.asarray(optax.tree.get(state, "weights"))
    assert weights[1] == 0
    # The update is a combination of the two good gradients alone.
    expected = weights[[0, 2]] @ jacobian[[0, 2]]
    np.testing.assert_allclose(rows_of(update), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(state.skipped_tasks, [0, 1, 0])
    assert int(state.skipped_steps) == 0
    for leaf in jax.tree.leaves(state.inner):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and name != "gradnorm":
            assert np.isfinite(leaf).all()


@pytest.mark.parametrize("name", ["mgda", "cagrad"])
def test_skip_task_equals_the_problem_without_the_task(name):
    """The stand-in, the mean of the others, changes neither hull nor mean gradient."""
    jacobian = jacobian_of(4, 3)
    bad = jacobian.copy()
    bad[1] = np.nan
    tx = mtl_jax.aggregate(mtl_jax.build_weighting(name, 3), nonfinite="skip_task")
    update, _ = first_update(tx, tree_of(bad))
    alone = mtl_jax.build(name, 2)
    expected, _ = alone.update(tree_of(jacobian[[0, 2]]), alone.init(params_of()))
    np.testing.assert_allclose(rows_of(update), rows_of(expected), rtol=1e-4, atol=1e-5)


def test_skip_task_falls_back_to_the_last_finite_loss():
    tx = mtl_jax.aggregate(mtl_jax.weighting.si(3), nonfinite="skip_task")
    grads, params = tree_of(jacobian_of(0, 3)), params_of()
    state = tx.init(params)
    _, state = tx.update(grads, state, params, losses=jnp.array([1.0, 4.0, 2.0]))
    bad = jnp.array([1.0, jnp.nan, 2.0])
    _, state = tx.update(grads, state, params, losses=bad)
    # Weights 1, 1/4, 1/2; the middle one is shared by the others.
    np.testing.assert_allclose(state.weights, [1.125, 0, 0.625], rtol=1e-6)


def test_skip_step_keeps_the_state():
    tx = mtl_jax.aggregate(mtl_jax.weighting.uw(3), nonfinite="skip_step")
    grads, params = tree_of(jacobian_of(0, 3)), params_of()
    _, state = tx.update(grads, tx.init(params), params, losses=jnp.ones(3) * 5)
    bad = jnp.array([1.0, jnp.inf, 2.0])
    update, after = tx.update(grads, state, params, losses=bad)
    assert not rows_of(update).any()
    chex.assert_trees_all_equal(after.inner, state.inner)
    chex.assert_trees_all_equal(after.weights, state.weights)
    assert int(after.skipped_steps) == 1
    np.testing.assert_array_equal(after.skipped_tasks, [0, 1, 0])


@pytest.mark.parametrize("policy", ["skip_task", "skip_step"])
def test_all_tasks_bad_skips_the_step(policy):
    tx = mtl_jax.aggregate(mtl_jax.weighting.mgda(3), nonfinite=policy)
    update, state = first_update(tx, tree_of(np.full((3, 24), np.nan)))
    assert not rows_of(update).any()
    assert int(state.skipped_steps) == 1


@pytest.mark.parametrize("policy", ["skip_task", "skip_step"])
def test_policies_change_nothing_on_finite_gradients(policy):
    grads = tree_of(jacobian_of(2, 3))
    plain, _ = first_update(mtl_jax.nash_mtl(3), grads)
    guarded_tx = mtl_jax.aggregate(mtl_jax.weighting.nash_mtl(3), nonfinite=policy)
    guarded, state = first_update(guarded_tx, grads)
    chex.assert_trees_all_close(plain, guarded, rtol=1e-6)
    assert not state.skipped_tasks.any() and int(state.skipped_steps) == 0


def test_propagate_shows_the_trouble():
    jacobian = jacobian_of(2, 3)
    jacobian[0, 0] = np.nan
    update, _ = first_update(mtl_jax.mgda(3), tree_of(jacobian))
    assert np.isnan(rows_of(update)[0])


@pytest.mark.parametrize("bad_head", ["stacked", "summed"])
def test_bad_heads_are_skipped_too(bad_head):
    grads = tree_of(jacobian_of(0, 3))
    kernel = grads["heads"]["kernel"].at[1, 0, 0, 0].set(jnp.nan)
    losses = jnp.array([1.0, jnp.nan, 1.0])
    if bad_head == "summed":
        kernel = kernel.sum(axis=0, keepdims=True)
    grads = grads | {"heads": {"kernel": kernel}}
    tx = mtl_jax.aggregate(
        mtl_jax.weighting.mgda(3), heads=HEADS, nonfinite="skip_task"
    )
    update, state = first_update(tx, grads, losses)
    assert np.isfinite(rows_of(update)).all()
    np.testing.assert_array_equal(state.skipped_tasks, [0, 1, 0])


@pytest.mark.parametrize("kind", ["none", "l2", "loss", "loss+"])
def test_normalize(kind):
    jacobian, losses = jacobian_of(0, 3), np.array([0.5, 2.0, 4.0])
    norms = np.linalg.norm(jacobian, axis=1)
    scales = {
        "none": np.ones(3),
        "l2": norms,
        "loss": losses,
        "loss+": losses * norms,
    }[kind]
    tx = mtl_jax.normalize(kind, num_tasks=3)
    grads = tree_of(jacobian)
    scaled, _ = tx.update(grads, tx.init(params_of()), losses=jnp.asarray(losses))
    chex.assert_trees_all_equal_shapes_and_dtypes(scaled, grads)
    np.testing.assert_allclose(rows_of(scaled), jacobian / scales[:, None], rtol=1e-5)
    # Chained before MGDA it is MGDA's own option.
    chained = optax.chain(tx, mtl_jax.mgda(3))
    option = mtl_jax.mgda(3, normalization=kind, weights_on="normalized")
    together, _ = first_update(chained, grads, jnp.asarray(losses, jnp.float32))
    alone, _ = first_update(option, grads, jnp.asarray(losses, jnp.float32))
    chex.assert_trees_all_close(together, alone, rtol=1e-4, atol=1e-5)


def test_normalize_leaves_zero_gradients_and_names_missing_losses():
    tx = mtl_jax.normalize("l2", num_tasks=2)
    zero = {"w": jnp.zeros((2, 3))}
    chex.assert_trees_all_equal(tx.update(zero, tx.init(zero))[0], zero)
    needs = mtl_jax.normalize("loss+", num_tasks=2)
    with pytest.raises(ValueError, match="needs the task losses"):
        needs.update(zero, needs.init(zero))
    with pytest.raises(ValueError, match="kind must be one of"):
        mtl_jax.normalize("l1", num_tasks=2)


def test_unknown_options_are_named():
    weighting = mtl_jax.weighting.ls(2)
    with pytest.raises(ValueError, match="nonfinite must be one of"):
        mtl_jax.aggregate(weighting, nonfinite="ignore")
    with pytest.raises(ValueError, match="head_weights must be one of"):
        mtl_jax.aggregate(weighting, head_weights="half")


def test_own_weighting_in_a_few_lines():
    def update(statistics, state):
        return statistics.losses / statistics.losses.sum(), state

    weighting = mtl_jax.Weighting(init=lambda: (), update=update, num_tasks=3)
    grads = tree_of(jacobian_of(0, 3))
    _, state = first_update(mtl_jax.aggregate(weighting), grads)
    np.testing.assert_allclose(state.weights, [1 / 6, 1 / 3, 1 / 2], rtol=1e-6)
