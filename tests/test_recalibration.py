"""Batch statistics on Pareto manifolds against NumPy; manifolds on disk."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from mtl_jax import pareto, storage
from mtl_jax.models import as_functional

EPSILON = 1e-5


class Net(linen.Module):
    """Dense, BatchNorm, ReLU, dense, BatchNorm."""

    @linen.compact
    def __call__(self, x, train=False):
        for name, width in (("a", 4), ("b", 2)):
            x = linen.Dense(width, name=name, param_dtype=jnp.float64)(x)
            x = linen.BatchNorm(
                use_running_average=not train,
                momentum=0.7,
                epsilon=EPSILON,
                force_float32_reductions=False,
                param_dtype=jnp.float64,
                name=f"norm_{name}",
            )(x)
            x = linen.relu(x) if name == "a" else x
        return x


MODEL = as_functional(Net())


def update(params, state, x):
    return MODEL.apply(params, state, x, train=True)[1]


def outputs(params, state, x):
    return MODEL.apply(params, state, x)[0].mean(axis=0)


def numpy_statistics(params, batches):
    """Means over the batches of means and variances before each normalisation."""
    found = {"norm_a": [], "norm_b": []}
    for x in batches:
        for name in ("a", "b"):
            x = x @ np.asarray(params[name]["kernel"]) + np.asarray(
                params[name]["bias"]
            )
            mean, var = x.mean(axis=0), x.var(axis=0)
            found[f"norm_{name}"].append((mean, var))
            norm = params[f"norm_{name}"]
            x = (x - mean) / np.sqrt(var + EPSILON) * np.asarray(norm["scale"])
            x = np.maximum(x + np.asarray(norm["bias"]), 0)
    return {
        "batch_stats": {
            name: dict(zip(("mean", "var"), np.mean(pairs, axis=0), strict=True))
            for name, pairs in found.items()
        }
    }


@pytest.fixture
def problem(x64):
    rng = np.random.default_rng(0)
    batches = rng.normal(size=(3, 8, 5)) + 1
    params, state = jax.eval_shape(MODEL.init, jax.random.key(0), batches[0])
    members = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=(2, *leaf.shape))), params
    )
    state = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), state)
    return members, state, batches


def test_statistics_equal_numpys_at_every_point(problem):
    members, state, batches = problem
    grid = pareto.simplex_grid(2, 3)

    @jax.jit
    def at_grid(state):
        stats = pareto.recalibration(update, state, batches)
        return jax.vmap(lambda a: stats(pareto.member_mixture(members, a)))(
            jnp.asarray(grid)
        )

    found = at_grid(state)
    for i, alpha in enumerate(grid):
        # One-hot points have their member's own statistics.
        params = jax.tree.map(lambda leaf, a=alpha: np.tensordot(a, leaf, 1), members)
        expected = numpy_statistics(params, batches)
        one = jax.tree.map(lambda leaf, i=i: leaf[i], found)
        chex.assert_trees_all_close(one, expected, rtol=1e-9)
    # The running averages' values do not matter.
    other = jax.tree.map(lambda leaf: leaf + 3, state)
    chex.assert_trees_all_equal(at_grid(other), found)


def test_evaluation_with_own_and_with_shared_statistics(problem):
    members, state, batches = problem
    front, grid, x = (
        pareto.ManifoldFront(members),
        pareto.simplex_grid(2, 3),
        batches[0],
    )
    stats = pareto.recalibration(update, state, batches)
    own = front.evaluate(outputs, grid, x, stats=stats)
    shared = front.evaluate(outputs, grid, state, x)
    for i, alpha in enumerate(grid):
        params = jax.tree.map(lambda leaf, a=alpha: np.tensordot(a, leaf, 1), members)
        fresh = numpy_statistics(params, batches)
        np.testing.assert_allclose(own[i], outputs(params, fresh, x), rtol=1e-8)
        np.testing.assert_allclose(shared[i], outputs(params, state, x), rtol=1e-8)


def test_what_is_no_average_stays():
    def count(params, state, x):
        new = {
            "mean": 0.5 * state["mean"] + 0.5 * x.mean(),
            "constant": state["constant"],
        }
        return new | {"steps": state["steps"] + 1}

    state = {
        "mean": jnp.array(9.0),
        "constant": jnp.array([2.0, 3.0]),
        "steps": jnp.array(7),
    }
    for loop in ("vmap", "map"):
        found = pareto.recalibrate(
            count, None, state, jnp.arange(6.0).reshape(2, 3), loop=loop
        )
        chex.assert_trees_all_equal(found, state | {"mean": jnp.array(2.5)})
    assert pareto.recalibrate(count, None, {}, jnp.ones((1, 2))) == {}


def test_errors_of_recalibration():
    with pytest.raises(ValueError, match="leading axis of K"):
        pareto.recalibration(update, {}, (jnp.ones((2, 3)), jnp.ones((3, 3))))
    with pytest.raises(ValueError, match="leading axis of K"):
        pareto.recalibrate(update, {}, {"a": jnp.ones(1)}, jnp.ones(()))
    with pytest.raises(ValueError, match="expected that of the state"):
        pareto.recalibrate(
            lambda *_: (), {}, {"a": jnp.ones(1)}, jnp.ones((1, 2)), loop="unroll"
        )


# On disk.


def test_manifolds_come_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(1)
    members = {
        "kernel": jnp.asarray(rng.normal(size=(2, 3)), jnp.bfloat16),
        "pair": (jnp.asarray(rng.normal(size=(2,)), jnp.float32),),
    }
    pareto.ManifoldFront(members).save(tmp_path / "a" / "front")
    found = pareto.ManifoldFront.load(
        str(tmp_path / "a" / "front"), like={"kernel": 0, "pair": (0,)}
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(found.members, members)
    for one, two in zip(*map(jax.tree.leaves, (found.members, members)), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["front"]
    with pytest.raises(ValueError, match="exists: choose another folder"):
        found.save(tmp_path / "a" / "front")
    with pytest.raises(ValueError, match="those asked for are"):
        pareto.ManifoldFront.load(tmp_path / "a" / "front", like={"w": 0})


def test_what_is_no_manifold_is_said_in_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        pareto.ManifoldFront.load(tmp_path / "nothing")
    storage.write_arrays(tmp_path / "other", {"w": np.ones(3)})
    with pytest.raises(ValueError, match="holds no Pareto manifold"):
        pareto.ManifoldFront.load(tmp_path / "other")
    uneven = {"members": {"a": np.ones((2, 3)), "b": np.ones((3, 3))}}
    storage.write_arrays(tmp_path / "uneven", uneven)
    with pytest.raises(ValueError, match="leading axis") as caught:
        pareto.ManifoldFront.load(tmp_path / "uneven")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="leading axis"):
        pareto.ManifoldFront(uneven["members"]).save(tmp_path / "never")
    assert not (tmp_path / "never").exists()
