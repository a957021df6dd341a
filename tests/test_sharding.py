"""Rules place parameters and states; sharded training equals training on one device."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mtl_jax
from mtl_jax import sharding, tree
from mtl_jax.train import init_state
from tests.sharded import (
    RULES,
    Training,
    check_no_jacobian_moves,
    count,
    is_head,
    mesh_of,
    problem,
    sent,
)
from tests.test_methods_common import quick

NAMES = sorted(mtl_jax.METHODS)


# -- rules ---------------------------------------------------------------------------


def test_the_first_matching_rule_decides_and_the_rest_is_replicated():
    mesh = mesh_of(4, 2)
    params = problem(2)[0]
    rules = (("encoder/0", P()), *RULES, (is_head, P("data")))
    shardings = sharding.param_shardings(jax.eval_shape(lambda: params), mesh, rules)
    chex.assert_trees_all_equal_structs(params, shardings)
    encoder, heads = shardings["encoder"], shardings["heads"]
    assert encoder["0"]["kernel"].spec == P()  # by the first rule, not the second
    assert encoder["1"]["kernel"].spec == P("model", None)
    assert encoder["1"]["bias"].spec == P("model")
    assert heads["1"]["kernel"].spec == P("model", None)
    assert heads["1"]["bias"].spec == P("data")
    plain = sharding.param_shardings(params, mesh)
    assert all(s.is_fully_replicated for s in jax.tree.leaves(plain))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            ("bias", P(None, "model")),
            r"'bias' of shape \(6,\).*\(None, 'model'\).*2 entries",
        ),
        (("kernel", P("model")), r"'kernel' of shape \(5, 8\).*size 5.*multiple of 2"),
        (("bias", P(("data", "model"))), r"'bias'.*size 6.*multiple of 8"),
        (("bias", P("batch")), r"'bias'.*no axis 'batch'.*data"),
        (("kernal", P("model")), r"'kernal' matches no parameter"),
    ],
)
def test_specs_that_do_not_fit_are_named(rule, message):
    params = {"kernel": jnp.zeros((5, 8)), "bias": jnp.zeros(6)}
    with pytest.raises(ValueError, match=message):
        sharding.param_shardings(params, mesh_of(4, 2), [rule])


def test_the_model_axis_must_divide_the_devices():
    assert dict(sharding.make_mesh(model=4).shape) == {"data": 2, "model": 4}
    for model in (3, 0):
        with pytest.raises(ValueError, match=rf"devices, 8, got {model}"):
            sharding.make_mesh(model=model)


def test_states_follow_their_parameters():
    mesh = mesh_of(4, 2)
    params = problem(2)[0]
    shardings = sharding.param_shardings(params, mesh, RULES)
    tx = optax.chain(mtl_jax.nash_mtl(2), optax.adamw(1e-3))
    state = jax.eval_shape(
        lambda: init_state(params, {"seen": jnp.zeros(())}, tx, jax.random.key(0))
    )
    placed = sharding.state_shardings(state, params, shardings)
    chex.assert_trees_all_equal_structs(placed, state)
    assert placed.params == shardings
    assert optax.tree.get(placed, "mu") == optax.tree.get(placed, "nu") == shardings
    rest = [placed.model_state, placed.key, placed.step, placed.opt_state[0]]
    assert all(s.is_fully_replicated for s in jax.tree.leaves(rest))
    with pytest.raises(ValueError, match="structure of params"):
        sharding.state_shardings(state, params, shardings["encoder"])


def test_states_of_partitioned_optimisers_follow_too():
    mesh = mesh_of(4, 2)
    params = {
        "kernel": jnp.zeros((4, 4)),
        "inner": {"kernel": jnp.zeros((4, 4)), "bias": jnp.zeros(2)},
    }
    rules = [("^kernel", P("model")), ("inner/kernel", P(None, "model"))]
    shardings = sharding.param_shardings(params, mesh, rules)
    labels = {"kernel": "a", "inner": "b"}
    tx = optax.partition({"a": optax.adam(1.0), "b": optax.adafactor(1.0)}, labels)
    placed = sharding.state_shardings(tx.init(params), params, shardings)
    a, b = placed.inner_states["a"].inner_state, placed.inner_states["b"].inner_state
    assert optax.tree.get(a, "mu")["kernel"].spec == P("model")
    # The longest path decides: not the rule of the outer "kernel". Factors and
    # placeholders of other shapes are replicated.
    moment = optax.tree.get(b, "v")["inner"]
    factors = sharding.state_shardings(
        {"v": params["inner"], "row": {"inner": {"kernel": jnp.zeros(4)}}},
        params,
        shardings,
    )
    assert jax.tree.leaves(moment)
    assert factors["row"]["inner"]["kernel"].spec == P()
    whole = sharding.state_shardings({"ema": params}, params, shardings)
    assert whole["ema"] == shardings


# -- equal to one device -------------------------------------------------------------


def check_equals_one_device(call, shape):
    """Two steps of Adam in float64 on ``mesh``, from and to its shardings.

    The devices only add in another order, about 1e-16 relative; Adam's first steps divide
    every gradient by its own size, and iterative solvers stop at their own tolerance:
    1e-10 leaves room for both, and none for a wrong factor or a stale shard.
    """
    mesh = mesh_of(*shape)
    one = Training(call, 3, dtype=jnp.float64)
    many = Training(call, 3, mesh, RULES, jnp.float64)
    state, expected = many.state, one.state
    for _ in range(2):
        before = state
        state, record = many.step(state, many.batch)
        expected, expected_record = one.step(expected, one.batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
        chex.assert_trees_all_close(
            jax.device_get((state.params, record)),
            jax.device_get((expected.params, expected_record)),
            rtol=1e-10,
            atol=1e-10,
        )
    for leaf, asked in zip(
        jax.tree.leaves(state), jax.tree.leaves(many.shardings), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(asked, leaf.ndim)
    kernel = optax.tree.get(state.opt_state[1], "mu")["encoder"]["0"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (40, 32 // shape[1])

    found = many.collectives()
    check_no_jacobian_moves(found, many.params, 3, mesh)
    over_data = tuple(map(tuple, np.arange(8).reshape(shape).T.tolist()))
    assert sent(found, groups=over_data) == 3 * count(many.params, mesh, RULES) + 3


@pytest.mark.parametrize("call", quick(NAMES))
def test_every_method_equals_one_device(call, x64):
    del x64
    check_equals_one_device(call, (4, 2))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
@pytest.mark.parametrize("call", NAMES)
def test_every_method_equals_one_device_on_other_meshes(call, shape, x64):
    del x64
    check_equals_one_device(call, shape)


# -- meshes with explicit axes -------------------------------------------------------


@pytest.mark.parametrize("spec", [P(None, "data", "model"), P(None, None, "model")])
def test_stacked_algebra_on_explicit_axes(spec):
    """There a contraction over sharded axes must say where its result lies."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Explicit,) * 2)
    rng = np.random.default_rng(0)
    stack = {
        "kernel": jnp.asarray(rng.normal(size=(3, 8, 4)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
    }
    tx = mtl_jax.nash_mtl(3)
    weights = jnp.array([0.2, 0.3, 0.5])

    def everything(stack):
        params = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), stack)
        return (
            tree.gram(stack),
            tree.combine(weights, stack),
            tree.scale_tasks(weights, stack),
            tree.zero_tasks(weights > 0.25, stack),
            tree.task_norms(stack),
            tree.finite_tasks(stack),
            tx.update(stack, tx.init(params), params)[0],
        )

    expected = jax.jit(everything)(stack)
    placed = {
        "kernel": jax.device_put(stack["kernel"], NamedSharding(mesh, spec)),
        "bias": jax.device_put(stack["bias"], NamedSharding(mesh, P(None, "model"))),
    }
    with jax.set_mesh(mesh):
        found = jax.jit(everything)(placed)
    assert found[1]["kernel"].sharding.spec == P(*spec[1:])
    chex.assert_trees_all_close(
        jax.device_get(found), jax.device_get(expected), rtol=1e-4, atol=1e-6
    )
