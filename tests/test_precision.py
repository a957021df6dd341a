"""16-bit gradients with float32 arithmetic inside, and float64 throughout under x64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import mtl_jax
from mtl_jax.registry import METHODS
from mtl_jax.train import (
    init_state,
    make_combined_step,
    make_train_step,
    scan_steps,
)
from tests.helpers import jacobian_of, params_of, rows_of, slow_but, tree_of
from tests.test_methods_common import CALLS, quick

NAMES = sorted(METHODS)
WEIGHTINGS = [name for name in NAMES if METHODS[name].weighting]
HEADS = {"encoder": False, "scale": False, "heads": True}
LOSSES = (1.0, 2.0, 3.0)  # exact in 16 bits
BFLOAT16, FLOAT16 = jnp.dtype("bfloat16"), jnp.dtype("float16")
FLOAT32, FLOAT64 = jnp.dtype("float32"), jnp.dtype("float64")
SHORT = (BFLOAT16, FLOAT16)


def equations(jaxpr):
    """All equations of a jaxpr, those of loops, branches and calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def dtypes_of(equation):
    avals = [variable.aval for variable in (*equation.invars, *equation.outvars)]
    return {getattr(aval, "dtype", None) for aval in avals}


def float_dtypes(tree):
    leaves = jax.tree.leaves(tree)
    return {x.dtype for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)}


def update_jaxpr(tx, dtype):
    grads, losses = tree_of(jacobian_of(0, 3), dtype), jnp.asarray(LOSSES, dtype)
    state = tx.init(params_of(dtype))
    update = lambda *args: tx.update(args[0], args[1], losses=args[2])  # noqa: E731
    return jax.make_jaxpr(update)(grads, state, losses).jaxpr


def test_the_walk_sees_inner_jaxprs(x64):
    def program(x):
        def body(carry):
            flag = carry > 3
            return lax.cond(flag, lambda y: (y.astype("f4") + 1).astype("f8"), abs, x)

        return lax.while_loop(lambda y: y < 9, jax.jit(body), x)

    found = [dtypes_of(e) for e in equations(jax.make_jaxpr(program)(1.0).jaxpr)]
    assert any(FLOAT32 in dtypes for dtypes in found)


# -- 16-bit gradients ----------------------------------------------------------------


@pytest.mark.parametrize("name", quick(NAMES))
def test_short_gradients_give_the_float32_update_rounded_once(name):
    """Both start from the same numbers and compute in float32; only the end differs."""
    tx = mtl_jax.build(name, 3)
    update = jax.jit(
        lambda grads, losses: tx.update(grads, tx.init(params_of()), losses=losses)
    )
    for seed in range(3):
        for dtype in SHORT if name in ("mgda", "graddrop") else (BFLOAT16,):
            short = tree_of(jacobian_of(seed, 3), dtype)
            wide = jax.tree.map(lambda leaf: leaf.astype(FLOAT32), short)
            rounded, state = update(short, jnp.asarray(LOSSES, dtype))
            exact, wide_state = update(wide, jnp.asarray(LOSSES))
            assert float_dtypes(rounded) == {dtype}
            # Half a unit in the last place of the answer, and float32 rounding of sums
            # whose order may differ (relative to the gradients: the answer may cancel).
            np.testing.assert_allclose(
                rows_of(rounded),
                rows_of(exact),
                rtol=float(jnp.finfo(dtype).eps) / 2,
                atol=1e-5 * np.abs(rows_of(wide)).max(),
            )
            assert float_dtypes(state) <= {FLOAT32}  # weights, solvers
            chex.assert_trees_all_equal_dtypes(state, wide_state)
            if name in WEIGHTINGS:
                np.testing.assert_allclose(
                    state.weights, wide_state.weights, rtol=1e-4, atol=1e-5
                )


@pytest.mark.parametrize("call", quick(CALLS))
def test_nothing_is_computed_in_16_bits(call):
    """The only operation with a 16-bit result is the rounding of the update."""
    jaxpr = update_jaxpr(mtl_jax.build(call, 3), BFLOAT16)
    results = [
        e for e in equations(jaxpr) if BFLOAT16 in {v.aval.dtype for v in e.outvars}
    ]
    assert {e.primitive.name for e in results} == {"convert_element_type"}
    assert len(results) == len(jax.tree.leaves(params_of()))


@pytest.mark.parametrize("head_weights", ["unit", "weighted"])
@pytest.mark.parametrize("policy", ["propagate", "skip_task", "skip_step"])
def test_heads_and_policies_do_no_arithmetic_in_16_bits(head_weights, policy):
    tx = mtl_jax.aggregate(
        mtl_jax.weighting.nash_mtl(3),
        heads=HEADS,
        head_weights=head_weights,
        nonfinite=policy,
    )
    jaxpr = update_jaxpr(tx, BFLOAT16)
    short = {
        e.primitive.name
        for e in equations(jaxpr)
        if any(v.aval.dtype == BFLOAT16 for v in e.outvars)
    }
    moves = {"convert_element_type", "broadcast_in_dim", "select_n", "reshape", "jit"}
    assert short <= moves  # zeros for what is skipped, and rounding


def test_gramians_accumulate_in_float32():
    """300 + 1 + ... + 1 stays 300 in bfloat16, and the products' sum would be lost."""
    rows = np.ones((2, 3000))
    rows[0, 0] = 300  # exact in bfloat16 is 300; its square is not
    rows[1, 1::2] = -1
    expected = rows @ rows.T
    for dtype in SHORT:
        gram = mtl_jax.tree.gram({"w": jnp.asarray(rows, dtype)})
        assert gram.dtype == FLOAT32
        np.testing.assert_array_equal(gram, expected)  # integers below 2**24
        norms = mtl_jax.tree.task_norms({"w": jnp.asarray(rows, dtype)})
        np.testing.assert_allclose(norms, np.sqrt(np.diagonal(expected)), rtol=1e-6)


def test_leaves_of_several_dtypes_keep_their_own():
    wide = tree_of(jacobian_of(3, 3), BFLOAT16)
    wide = jax.tree.map(lambda leaf: leaf.astype(FLOAT32), wide)
    mixed = wide | {
        "encoder": jax.tree.map(lambda leaf: leaf.astype("bfloat16"), wide["encoder"]),
    }
    tx = mtl_jax.cagrad(3)
    update, state = tx.update(mixed, tx.init(params_of()))
    expected, wide_state = tx.update(wide, tx.init(params_of()))
    chex.assert_trees_all_close(state.weights, wide_state.weights, rtol=1e-5)
    assert float_dtypes(update["encoder"]) == {BFLOAT16}
    assert float_dtypes(update["heads"]) == {FLOAT32}
    chex.assert_trees_all_close(update["heads"], expected["heads"], rtol=1e-5)


# -- training in 16 bits -------------------------------------------------------------


def regression(dtype=FLOAT32):
    """Data, parameters ``dtype`` and the losses of a small network with three tasks."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 5))
    y = np.tanh(x @ rng.normal(size=(5, 3)))
    params = {
        "encoder": {"kernel": 0.5 * rng.normal(size=(5, 8)), "bias": np.zeros(8)},
        "heads": {"kernel": 0.3 * rng.normal(size=(8, 3))},
    }

    def losses_fn(params, model_state, batch, key):
        x, y = batch
        hidden = jnp.tanh(
            x @ params["encoder"]["kernel"] + params["encoder"]["bias"][None]
        )
        keep = jax.random.bernoulli(key, 0.9, hidden.shape)
        error = (hidden * keep) @ params["heads"]["kernel"] - y
        return jnp.square(error).mean(axis=0), model_state

    place = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)  # noqa: E731
    return place((x, y)), place(params), losses_fn


def trained(name, data, params, losses_fn, steps=60):
    """Final state and records of a scan over batches of 32."""
    tx = optax.chain(mtl_jax.build(name, 3), optax.sgd(0.1, momentum=0.5))
    step = make_train_step(losses_fn, tx)
    state = init_state(params, {}, tx, jax.random.key(0))
    rows = jnp.asarray(np.random.default_rng(1).integers(64, size=(steps, 32)))
    return jax.jit(lambda s: scan_steps(step, s, data, rows))(state)


@pytest.mark.parametrize("name", slow_but(["mgda"], ["mgda", "gradnorm", "graddrop"]))
def test_training_with_short_parameters_or_short_compute(name):
    data, params, losses_fn = regression()
    short_data, short_params, _ = regression(BFLOAT16)

    def losses_in_bfloat16(params, model_state, batch, key):
        params = jax.tree.map(lambda leaf: leaf.astype(BFLOAT16), params)
        losses, model_state = losses_fn(params, model_state, batch, key)
        return losses.astype(FLOAT32), model_state

    _, wide = trained(name, data, params, losses_fn)
    state, short = trained(name, short_data, short_params, losses_fn)
    assert float_dtypes(state.params) == {BFLOAT16}
    assert short.losses.dtype == BFLOAT16  # the network's own
    assert short.cosines.dtype == FLOAT32
    state, mixed = trained(name, short_data, params, losses_in_bfloat16)
    assert float_dtypes(state.params) == {FLOAT32}
    assert mixed.losses.dtype == FLOAT32

    start = np.asarray(wide.losses[0], np.float64)
    ends = [
        np.asarray(r.losses[-10:], np.float64).mean(0) for r in (wide, mixed, short)
    ]
    assert (np.stack(ends) < 0.7 * start).all()
    # Compute in bfloat16 costs about its rounding, 2**-8, amplified by the training;
    # parameters in bfloat16 also lose the updates below half their last place.
    np.testing.assert_allclose(ends[1], ends[0], atol=0.03 * start.max())
    np.testing.assert_allclose(ends[2], ends[0], atol=0.10 * start.max())


@pytest.mark.parametrize("strategy", ["vmap", "layerwise", "gramian", "features"])
def test_combined_sources_have_float32_gramians_of_short_networks(strategy):
    (x, y), params, losses_fn = regression(BFLOAT16)

    def is_head(path):
        return path.startswith("heads/")

    args = (params, {}, (x, y), jax.random.key(0))
    source = mtl_jax.value_and_combined_grad(
        losses_fn,
        mtl_jax.weighting.nash_mtl(3),
        has_aux=True,
        strategy=strategy,
        heads=is_head,
    )
    _, grads, state = jax.jit(source.update)(source.init(params), *args)
    assert float_dtypes(grads) == {BFLOAT16}
    assert float_dtypes(state) == {FLOAT32}
    if strategy == "features":
        return  # another Gramian, that of the representation
    stored = mtl_jax.value_and_task_grads(losses_fn, has_aux=True, heads=is_head)
    expected = np.asarray(mtl_jax.tree.gram(stored(*args)[1]["encoder"]))
    norms = np.sqrt(np.diagonal(expected))
    # The task gradients are rounded to bfloat16 where they are stored, others where the
    # network's own products are; all sums over parameters but gramian's are in float32.
    error = np.abs(np.asarray(state.gram) - expected) / (norms[:, None] * norms)
    assert error.max() < 4 * float(jnp.finfo(BFLOAT16).eps), error


# -- float64 under x64 ---------------------------------------------------------------


def assert_all_float64(step, *arguments):
    narrow = {FLOAT32, *SHORT}
    jaxpr = jax.make_jaxpr(step)(*arguments).jaxpr
    wrong = [str(e) for e in equations(jaxpr) if dtypes_of(e) & narrow]
    assert not wrong, wrong[:3]
    assert any(FLOAT64 in dtypes_of(e) for e in equations(jaxpr))


@pytest.mark.parametrize("call", quick(CALLS))
def test_a_whole_step_is_float64_throughout(call, x64):
    """Source, method, Adam and record: no narrower number anywhere."""
    data, params, losses_fn = regression(FLOAT64)
    # A constant rate: optax computes its schedules in float32, whatever the mode.
    tx = optax.chain(mtl_jax.build(call, 3), optax.adam(1e-2))
    state = init_state(params, {}, tx, jax.random.key(0))
    assert float_dtypes(state) == {FLOAT64}
    assert_all_float64(make_train_step(losses_fn, tx), state, data)


@pytest.mark.parametrize("strategy", ["vmap", "unroll", "map"])
@pytest.mark.parametrize("policy", ["skip_task", "skip_step"])
def test_heads_policies_and_strategies_are_float64_throughout(policy, strategy, x64):
    data, params, losses_fn = regression(FLOAT64)

    def is_head(path):
        return path.startswith("heads/")

    weighting = mtl_jax.weighting.uw(3)
    method = mtl_jax.aggregate(weighting, heads=is_head, nonfinite=policy)
    tx = optax.chain(method, optax.sgd(0.1))
    step = make_train_step(losses_fn, tx, heads=is_head, strategy=strategy)
    assert_all_float64(step, init_state(params, {}, tx, jax.random.key(0)), data)


@pytest.mark.parametrize("every_k", [1, 3])
@pytest.mark.parametrize("strategy", ["map", "layerwise", "gramian", "features"])
def test_combined_sources_are_float64_throughout(strategy, every_k, x64):
    data, params, losses_fn = regression(FLOAT64)
    source = mtl_jax.value_and_combined_grad(
        losses_fn,
        mtl_jax.weighting.nash_mtl(3),
        has_aux=True,
        strategy=strategy,
        heads=lambda path: path.startswith("heads/"),
        every_k=every_k,
        nonfinite="skip_task",
    )
    tx = optax.sgd(0.1)
    state = init_state(params, {}, tx, jax.random.key(0), source=source)
    step = make_combined_step(source, tx)
    assert_all_float64(step, state, data)
    after, _ = jax.eval_shape(step, state, data)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)  # for lax.scan


@pytest.mark.parametrize("kind", ["l2", "loss", "loss+"])
def test_normalize_is_float64_throughout(kind, x64):
    tx = mtl_jax.normalize(kind, num_tasks=3)
    grads = tree_of(jacobian_of(0, 3), FLOAT64)

    def update(grads, losses):
        return tx.update(grads, tx.init(params_of(FLOAT64)), losses=losses)[0]

    assert_all_float64(update, grads, jnp.asarray(LOSSES, FLOAT64))


@pytest.mark.parametrize("name", quick(NAMES))
@pytest.mark.parametrize(
    "dtypes",
    [
        ("float64", "bfloat16"),
        pytest.param(("bfloat16", "float64"), marks=pytest.mark.slow),
    ],
)
def test_states_keep_their_dtypes_whatever_comes_in(name, dtypes, x64):
    """As ``lax.scan`` needs it, also where gradients are wider than parameters."""
    of_params, of_grads = map(jnp.dtype, dtypes)
    tx = mtl_jax.build(name, 3)
    before = tx.init(params_of(of_params))
    grads = tree_of(jacobian_of(0, 3), of_grads)
    update, after = jax.eval_shape(
        lambda grads, state: tx.update(grads, state, losses=jnp.asarray(LOSSES)),
        grads,
        before,
    )
    assert float_dtypes(update) == {of_grads}
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
