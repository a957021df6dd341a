"""One suite over every registered method: what users of optax rely on."""

import functools
import inspect
import re

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtl_jax
from mtl_jax.registry import METHODS, NEEDS, PROPERTIES
from tests.helpers import (
    adversarial_jacobians,
    jacobian_of,
    params_of,
    rows_of,
    slow_but,
    tree_of,
)

NAMES = sorted(METHODS)
ADVERSARIAL = dict(adversarial_jacobians())
# Options beyond the defaults, so that every branch goes through the suite.
VARIANTS = [
    "ls(reduction='mean', weights=(0.2, 0.3, 0.5))",
    "rlw(distribution='dirichlet')",
    "dwa(window=1, average='sliding', reduction='mean')",
    "gradnorm(parametrization='softmax', alpha=0.5)",
    "mgda(normalization='l2')",
    "mgda(normalization='loss', weights_on='normalized')",
    "mgda(normalization='loss+')",
    "mgda(solver='jaxopt')",
    "mgda(solver='frank_wolfe')",
    "pcgrad(reduction='mean')",
    "graddrop(leak=0.3)",
    "cagrad(c=0.0)",
    "cagrad(c=1.5, rescale='quadratic', reduction='sum')",
    "cagrad(rescale='linear')",
    "nash_mtl(max_norm=1.0)",
    "upgrad(preference=(0.2, 0.3, 0.5))",
    "aligned_mtl(scale='median')",
    "aligned_mtl(scale='rmse', preference=(1.0, 1.0, 2.0))",
    "fairgrad(alpha=0.5)",
    "fairgrad(alpha=2.0)",
    "dualproj(preference=(0.2, 0.3, 0.5))",
    "config(preference=(1.0, 2.0, 1.0))",
    "krum(num_selected=2)",
    "trimmed_mean(trim=0)",
    "gradvac(beta=0.0)",
    "stch(form='plain', mu=0.1)",
    "stch(warmup=1, window=1)",
    "pbi(theta=0.5, preference=(1.0, 2.0, 1.0))",
    "pcd(tau=(0.3, 0.9), primary=1)",
    "cr_mogm(around='cagrad(c=0.4)', alpha=0.5)",
    "sdmgrad(pull=0.0)",
    "moco(beta_decay=0.0, rho=0.1)",
    "db_mtl(beta=0.0)",
]
CALLS = NAMES + VARIANTS
# These run with the slow tests, but for their values (test_methods_gramian.py,
# test_methods_replays.py) and whatever takes no compilation.
LATER = {
    *("auto_lambda", "config", "cr_mogm", "dualproj", "excess_mtl", "fairgrad", "famo"),
    *("gradvac", "imtl", "imtl_l", "krum", "moco", "modo", "moml", "pbi", "pcd"),
    *("sdmgrad", "stch", "trimmed_mean"),
}
QUICK = [name for name in NAMES if name not in LATER]


# The published inner steps overshoot and amplify rounding.
AMPLIFIED = {"sdmgrad": 1000}


def quick(names):
    """Those of ``names`` that are in ``LATER`` are marked slow."""
    return slow_but(QUICK, names)


def step(tx, task_grads, state=None, losses=None, params=None):
    """One update; the losses default to 1, 2, ..., T."""
    num_tasks = jax.tree.leaves(task_grads)[0].shape[0]
    params = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), task_grads)
    state = tx.init(params) if state is None else state
    losses = jnp.arange(1.0, num_tasks + 1) if losses is None else losses
    return tx.update(task_grads, state, params, losses=losses)


@functools.cache
def jitted_step(call, num_tasks):
    """First step ``(task_grads, losses) -> (update, state)``, compiled once per dtype."""
    tx = mtl_jax.build(call, num_tasks)
    return jax.jit(lambda task_grads, losses: step(tx, task_grads, losses=losses))


def update_of(call, jacobian, losses=None):
    """Combined update ``(P,)`` in float64 NumPy of one first step."""
    num_tasks = jacobian.shape[0]
    losses = np.arange(1.0, num_tasks + 1) if losses is None else losses
    losses = jnp.asarray(losses, jnp.float32)
    return rows_of(jitted_step(call, num_tasks)(tree_of(jacobian), losses)[0])


def direction(vector):
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("call", quick(CALLS))
def test_jit_equals_eager_and_shapes_fit(call):
    task_grads = tree_of(jacobian_of(0, 3))
    losses = jnp.arange(1.0, 4.0)
    eager, eager_state = step(mtl_jax.build(call, 3), task_grads, losses=losses)
    jitted, jitted_state = jitted_step(call, 3)(task_grads, losses)
    chex.assert_trees_all_equal_shapes_and_dtypes(eager, params_of())
    chex.assert_trees_all_close(eager, jitted, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(eager_state, jitted_state)


@pytest.mark.parametrize("call", quick(CALLS))
def test_compiles_once_and_keeps_its_state_structure(call):
    chex.clear_trace_counter()
    tx = mtl_jax.build(call, 3)
    params = params_of()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def update(task_grads, state, losses):
        return tx.update(task_grads, state, params, losses=losses)

    state = tx.init(params)
    for seed in range(3):
        grads = tree_of(jacobian_of(seed, 3))
        _, new_state = update(grads, state, jnp.arange(1.0, 4.0) + seed)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, new_state)
        state = new_state


@pytest.mark.parametrize("name", quick(NAMES))
def test_scan_equals_loop(name):
    tx = mtl_jax.build(name, 3)
    params = params_of()
    stacks = [tree_of(jacobian_of(seed, 3)) for seed in range(4)]
    losses = jnp.abs(jnp.asarray(jacobian_of(9, 4, 3), jnp.float32)) + 0.1

    def body(state, inputs):
        grads, losses = inputs
        update, state = tx.update(grads, state, params, losses=losses)
        return state, update

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *stacks)
    _, scanned = jax.lax.scan(body, tx.init(params), (stacked, losses))
    state, update = tx.init(params), None
    jitted = jax.jit(body)
    for grads, loss in zip(stacks, losses, strict=True):
        state, update = jitted(state, (grads, loss))
    last = jax.tree.map(lambda leaf: leaf[-1], scanned)
    slack = AMPLIFIED.get(name, 1)
    chex.assert_trees_all_close(last, update, rtol=slack * 1e-4, atol=slack * 1e-5)


@pytest.mark.parametrize("name", quick(NAMES))
def test_vmap_over_members_equals_each_alone(name):
    tx = mtl_jax.build(name, 3)
    stacks = [tree_of(jacobian_of(seed, 3)) for seed in range(3)]
    batched = jax.tree.map(lambda *leaves: jnp.stack(leaves), *stacks)
    losses = jnp.arange(1.0, 4.0)
    run = jax.vmap(lambda grads: step(tx, grads, losses=losses))
    together, _ = jax.jit(run)(batched)
    for index, grads in enumerate(stacks):
        alone, _ = jitted_step(name, 3)(grads, losses)
        member = jax.tree.map(lambda leaf, i=index: leaf[i], together)
        slack = AMPLIFIED.get(name, 1)
        chex.assert_trees_all_close(member, alone, rtol=slack * 1e-4, atol=slack * 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_init_needs_shapes_only(name):
    tx = mtl_jax.build(name, 3)
    abstract = jax.eval_shape(tx.init, params_of())
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, tx.init(params_of()))


@pytest.mark.parametrize("call", quick(CALLS))
def test_no_matrix_product_at_reduced_precision(call):
    """On accelerators float32 products are TF32 or bfloat16 by default."""
    tx = mtl_jax.build(call, 3)
    grads, losses = tree_of(jacobian_of(0, 3)), jnp.ones(3)
    text = str(jax.make_jaxpr(lambda g: step(tx, g, losses=losses))(grads))
    products = re.findall(r"dot_general\[.*?\]\s", text, flags=re.DOTALL)
    assert products or call.startswith(("graddrop", "trimmed_mean"))
    for product in products:
        assert "Precision.HIGHEST" in product, product


@pytest.mark.parametrize("name", quick(NAMES))
def test_composes_with_optax(name):
    params = params_of()
    grads = tree_of(jacobian_of(1, 3))
    losses = jnp.array([1.0, 2.0, 3.0])
    alone, _ = jitted_step(name, 3)(grads, losses)

    chained = optax.chain(mtl_jax.build(name, 3), optax.sgd(0.1))
    update = jax.jit(
        lambda g: chained.update(g, chained.init(params), params, losses=losses)
    )
    scaled, _ = update(grads)
    chex.assert_trees_all_close(
        scaled, jax.tree.map(lambda x: -0.1 * x, alone), rtol=1e-5, atol=1e-6
    )

    # Integers that fix shapes are static; every other number becomes an array.
    factory = METHODS[name].factory
    options = inspect.signature(factory).parameters.values()
    static = [o.name for o in options if "int" in o.annotation and o.name != "seed"]
    tx = optax.inject_hyperparams(factory, static_args=static)(num_tasks=3)
    update = jax.jit(lambda g, s: tx.update(g, s, params, losses=losses))
    with_injection, _ = update(grads, tx.init(params))
    chex.assert_trees_all_close(with_injection, alone, rtol=1e-5, atol=1e-6)

    labels = {"encoder": "shared", "scale": "shared", "heads": "heads"}
    split = optax.partition(
        {"shared": mtl_jax.build(name, 3), "heads": mtl_jax.ls(3)}, labels
    )
    update = jax.jit(
        lambda g: split.update(g, split.init(params), params, losses=losses)
    )
    both, _ = update(grads)
    plain_sum = grads["heads"]["kernel"].sum(axis=0)
    chex.assert_trees_all_close(both["heads"]["kernel"], plain_sum, rtol=1e-5)


@pytest.mark.parametrize("name", quick(NAMES))
def test_unknown_extra_arguments_pass_through(name):
    tx = mtl_jax.build(name, 2)
    grads = tree_of(jacobian_of(1, 2))
    losses = jnp.ones(2)
    state = tx.init(params_of())
    with_extra, _ = tx.update(grads, state, params_of(), losses=losses, value=1.0)
    without, _ = tx.update(grads, state, params_of(), losses=losses)
    chex.assert_trees_all_close(with_extra, without)


@pytest.mark.parametrize(
    ("call", "dtype"),
    slow_but(
        [(name, jnp.float32) for name in QUICK] + [("nash_mtl", jnp.bfloat16)],
        [(call, dtype) for call in CALLS for dtype in (jnp.float32, jnp.bfloat16)],
    ),
)
def test_finite_on_adversarial_gradients(call, dtype):
    for case, jacobian in ADVERSARIAL.items():
        num_tasks = jacobian.shape[0]
        if num_tasks != 3 and (call in VARIANTS or dtype == jnp.bfloat16):
            continue  # the other sizes once per method: each is a compilation
        losses = jnp.arange(1.0, num_tasks + 1)
        grads = tree_of(jacobian, dtype)
        update, state = jitted_step(call, num_tasks)(grads, losses)
        for leaf in jax.tree.leaves(update):
            assert leaf.dtype == dtype, case
            assert np.isfinite(np.asarray(leaf, np.float32)).all(), case
        weights = optax.tree.get(state, "weights", None)
        assert weights is None or np.isfinite(weights).all(), case
        if case == "zeros":
            assert not rows_of(update).any()


@pytest.mark.parametrize("name", quick(NAMES))
def test_one_task_keeps_the_direction(name):
    jacobian = jacobian_of(2, 1)
    update = update_of(name, jacobian)
    np.testing.assert_allclose(direction(update), direction(jacobian[0]), atol=1e-6)


@pytest.mark.parametrize("name", quick(NAMES))
def test_float64_stays_float64(name, x64):
    del x64
    tx = mtl_jax.build(name, 3)
    update, state = step(tx, tree_of(jacobian_of(0, 3), jnp.float64))
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(update))
    weights = optax.tree.get(state, "weights", None)
    assert weights is None or weights.dtype == jnp.float64


@pytest.mark.parametrize("name", NAMES)
def test_wrong_stacks_give_readable_errors(name):
    tx = mtl_jax.build(name, 3)
    params = params_of()
    good = tree_of(jacobian_of(0, 3))
    state = tx.init(params)
    losses = jnp.ones(3)
    four = tree_of(jacobian_of(0, 4))
    with pytest.raises(
        ValueError, match=r"leaf 'encoder/bias'.*\(4, 3\).*\(3, \.\.\.\)"
    ):
        tx.update(four, state, params, losses=losses)
    integer = good | {"scale": jnp.ones(3, jnp.int32)}
    with pytest.raises(ValueError, match=r"leaf 'scale'.*int32"):
        tx.update(integer, state, params, losses=losses)
    if "losses" in METHODS[name].needs:
        with pytest.raises(ValueError, match=f"{name} needs the task losses"):
            tx.update(good, state, params)
        with pytest.raises(ValueError, match=r"shape \(3,\).*got \(2,\)"):
            tx.update(good, state, params, losses=jnp.ones(2))
    for bad in (0, -1, 2.0, True, "3"):
        with pytest.raises(ValueError, match="num_tasks must be"):
            METHODS[name].factory(bad)


# -- declared properties, and what they need -----------------------------------------


def having(prop):
    return quick(name for name in NAMES if prop in METHODS[name].properties)


def test_registry_uses_known_words():
    for spec in METHODS.values():
        assert spec.properties <= set(PROPERTIES), spec.name
        assert spec.needs <= set(NEEDS), spec.name
    assert {p for spec in METHODS.values() for p in spec.properties} == set(PROPERTIES)


seeds = st.integers(0, 10_000)
task_counts = st.sampled_from([2, 3, 5])


@pytest.mark.parametrize("name", having("non_conflicting"))
@hypothesis.given(seed=seeds, num_tasks=task_counts)
def test_property_non_conflicting(name, seed, num_tasks):
    jacobian = jacobian_of(seed, num_tasks).astype(np.float32)
    update = update_of(name, jacobian)
    cosines = jacobian @ update
    cosines /= np.linalg.norm(jacobian, axis=1) * np.linalg.norm(update) + 1e-30
    assert cosines.min() >= -1e-4  # rounding of float32 updates


@pytest.mark.parametrize("name", having("descent"))
@hypothesis.given(seed=seeds, num_tasks=task_counts)
def test_property_descent(name, seed, num_tasks):
    jacobian = jacobian_of(seed, num_tasks).astype(np.float32)
    assert (jacobian @ update_of(name, jacobian)).min() > 0


@pytest.mark.parametrize("name", having("scale_invariant"))
@hypothesis.given(seed=seeds, num_tasks=task_counts)
def test_property_scale_invariant(name, seed, num_tasks):
    rng = np.random.default_rng(seed)
    jacobian = jacobian_of(seed, num_tasks)
    losses = rng.uniform(0.5, 2, num_tasks)
    scales = 10 ** rng.uniform(-2, 2, num_tasks)
    plain = update_of(name, jacobian, losses)
    rescaled = update_of(name, jacobian * scales[:, None], losses * scales)
    np.testing.assert_allclose(direction(plain), direction(rescaled), atol=2e-4)


@pytest.mark.parametrize("name", having("homogeneous"))
@pytest.mark.parametrize("factor", [1e-10, 1e-3, 1e10])
def test_property_homogeneous(name, factor):
    jacobian = jacobian_of(4, 3)
    tx = mtl_jax.build(name, 3)
    losses = jnp.array([1.0, 2.0, 3.0])
    plain, state = step(tx, tree_of(jacobian), losses=losses)
    scaled, scaled_state = step(tx, tree_of(jacobian * factor), losses=losses)
    np.testing.assert_allclose(
        rows_of(scaled) / factor, rows_of(plain), rtol=2e-4, atol=1e-5
    )
    weights = optax.tree.get(state, "weights", None)
    if weights is not None:
        scaled_weights = optax.tree.get(scaled_state, "weights")
        np.testing.assert_allclose(scaled_weights, weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", having("permutation_equivariant"))
@hypothesis.given(seed=seeds)
def test_property_permutation_equivariant(name, seed):
    rng = np.random.default_rng(seed)
    jacobian, losses = jacobian_of(seed, 4), rng.uniform(0.5, 2, 4)
    order = rng.permutation(4)
    plain = update_of(name, jacobian, losses)
    permuted = update_of(name, jacobian[order], losses[order])
    scale = np.linalg.norm(plain)
    np.testing.assert_allclose(permuted, plain, atol=2e-4 * scale)


@pytest.mark.parametrize("name", having("convex"))
@hypothesis.given(seed=seeds, num_tasks=task_counts)
def test_property_convex(name, seed, num_tasks):
    grads = tree_of(jacobian_of(seed, num_tasks))
    _, state = jitted_step(name, num_tasks)(grads, jnp.ones(num_tasks))
    weights = np.asarray(optax.tree.get(state, "weights"))
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(), 1, atol=1e-6)


@pytest.mark.parametrize("name", having("mean_without_conflict"))
@hypothesis.given(seed=seeds, num_tasks=task_counts)
def test_property_mean_without_conflict(name, seed, num_tasks):
    jacobian = np.abs(jacobian_of(seed, num_tasks))  # all products positive
    mean = jacobian.mean(axis=0)
    np.testing.assert_allclose(
        direction(update_of(name, jacobian)), direction(mean), atol=1e-5
    )


@pytest.mark.parametrize("name", quick(n for n in NAMES if "key" in METHODS[n].needs))
def test_random_methods_follow_their_seed(name):
    jacobian = jacobian_of(11, 5)
    # Without the common direction nearly all pairs conflict, so that orders matter.
    grads = tree_of(jacobian - 1.2 * jacobian.mean(axis=0, keepdims=True))

    def three_updates(seed):
        tx = METHODS[name].factory(5, seed=seed)
        state, updates = tx.init(params_of()), []
        move = jax.jit(lambda state: step(tx, grads, state))
        for _ in range(3):
            update, state = move(state)
            updates.append(rows_of(update))
        return np.stack(updates)

    first = three_updates(0)
    np.testing.assert_array_equal(first, three_updates(0))
    assert not np.array_equal(first, three_updates(1))
    assert not np.array_equal(first[0], first[1])  # the key moves on


@pytest.mark.parametrize("name", quick(n for n in NAMES if METHODS[n].weighting))
def test_weighting_and_transformation_agree(name):
    grads = tree_of(jacobian_of(6, 3))
    losses = jnp.array([1.0, 2.0, 3.0])
    weighting = mtl_jax.build_weighting(name, 3)
    statistics = mtl_jax.Statistics(mtl_jax.tree.gram(grads), losses)
    weights_of = jax.jit(lambda s: weighting.update(s, weighting.init())[0])
    weights = weights_of(statistics)
    chex.assert_shape(weights, (3,))
    update, state = jitted_step(name, 3)(grads, losses)
    chex.assert_trees_all_close(optax.tree.get(state, "weights"), weights, rtol=1e-6)
    expected = mtl_jax.tree.combine(weights, grads)
    chex.assert_trees_all_close(update, expected, rtol=1e-5, atol=1e-6)
    needs_gram = "gram" in METHODS[name].needs
    lean = mtl_jax.Statistics(statistics.gram if needs_gram else None, losses)
    if "losses" not in METHODS[name].needs:
        lean = lean._replace(losses=None)
    chex.assert_trees_all_close(weights_of(lean), weights, rtol=1e-6)
