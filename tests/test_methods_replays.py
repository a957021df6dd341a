"""Methods with a memory against replays of their rules in NumPy float64.

All of one kind run in one compiled scan of twelve steps.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtl_jax
from mtl_jax import Statistics
from tests.helpers import adversarial_jacobians
from tests.references import rules

STEPS, WIDTH = 12, 5
rng = np.random.default_rng(0)
LOSSES = np.abs(rng.normal(1, 0.5, size=(STEPS, 3))) + 0.1
REVISITED = 0.9 * LOSSES[np.arange(STEPS) - 1] * rng.uniform(0.8, 1.1, (STEPS, 3))
JACOBIANS = rng.normal(size=(STEPS, 3, WIDTH)) * rng.uniform(0.5, 2, (STEPS, 3, 1))
GRAMS = JACOBIANS @ JACOBIANS.transpose(0, 2, 1)
HELD_OUT = JACOBIANS + 0.5 * rng.normal(size=(STEPS, 3, WIDTH))
PRODUCTS = HELD_OUT @ JACOBIANS.transpose(0, 2, 1)
PRIMARY = np.array([1.0, 0.0, 2.0])


def orders(seed):
    """The orders that a method with this seed draws in each step."""
    key, drawn = jax.random.key(seed), []
    for _ in range(STEPS):
        key, draw = jax.random.split(key)
        keys = jax.random.split(draw, 3)
        drawn.append([np.asarray(jax.random.permutation(k, 3)) for k in keys])
    return np.array(drawn)


def with_jacobian(weights):
    """The updates that these weights make."""
    return np.einsum("st,stp->sp", weights, JACOBIANS)


WEIGHTS = {
    "famo(learning_rate=0.1)": lambda: rules.famo(LOSSES, REVISITED, 0.1),
    "imtl_l(learning_rate=0.1)": lambda: rules.imtl_l(LOSSES, 0.1),
    "imtl(learning_rate=0.1)": lambda: rules.imtl(LOSSES, GRAMS, 0.1),
    "stch(mu=0.5, warmup=6, window=2)": lambda: rules.stch(LOSSES, 0.5, 6, 2),
    "stch(form='plain', mu=0.2, preference=(1, 0, 2))": lambda: np.array(
        [PRIMARY * rules.softmax(PRIMARY * row / 0.2) for row in LOSSES]
    ),
    "gls": lambda: LOSSES.prod(1, keepdims=True) ** (1 / 3) / LOSSES / 3,
    "pbi(theta=2, preference=(1, 0, 2), ideal=(0.1, 0, 0))": lambda: rules.pbi(
        LOSSES, 2, PRIMARY, np.array([0.1, 0, 0])
    ),
    "modo(gamma=0.2, rho=0.3)": lambda: rules.modo(PRODUCTS, 0.2, 0.3),
    "sdmgrad(pull=0.4)": lambda: rules.sdmgrad(PRODUCTS, 0.4),
    "auto_lambda(learning_rate=0.3, primary=(1, 0, 2))": lambda: rules.auto_lambda(
        PRODUCTS, 0.3, PRIMARY
    ),
    "moml(learning_rate=0.3)": lambda: rules.moml(PRODUCTS, 0.3),
    "cr_mogm(alpha=0.75)": lambda: rules.cr_mogm(JACOBIANS, 0.75),
}
UPDATES_OF_WEIGHTS = {
    "gradvac(beta=0.3, seed=3)": lambda: rules.gradvac(JACOBIANS, orders(3), 0.3),
    "pcd(tau=0.2, beta=0.7, primary=1)": lambda: rules.pcd(JACOBIANS, 0.2, 0.7, 1),
}
UPDATES = {
    "moco(beta=0.6, gamma=0.4, rho=0.2)": lambda: rules.moco(
        JACOBIANS, LOSSES, 0.6, 0.5, 0.4, 0.5, 0.2
    ),
    "db_mtl(beta=0.8, beta_decay=0.3)": lambda: rules.db_mtl(
        JACOBIANS, LOSSES, 0.8, 0.3
    ),
    "excess_mtl(eta=0.3)": lambda: rules.excess_mtl(JACOBIANS, 0.3),
    "trimmed_mean": lambda: rules.trimmed_mean(JACOBIANS),
}


@functools.cache
def program_of_weights():
    """``(grams, losses, products, revisited) -> weights, last states`` by call."""
    calls = [*WEIGHTS, *UPDATES_OF_WEIGHTS]
    weightings = {call: mtl_jax.build_weighting(call, 3) for call in calls}

    def step(states, inputs):
        pairs = {
            c: w.update(Statistics(*inputs), states[c]) for c, w in weightings.items()
        }
        return {c: s for c, (_, s) in pairs.items()}, {
            c: w for c, (w, _) in pairs.items()
        }

    def run(inputs):
        states = {call: weighting.init() for call, weighting in weightings.items()}
        return jax.lax.scan(step, states, inputs)

    return jax.jit(run)


@functools.cache
def program_of_updates():
    """``(jacobians, losses) -> updates, last states`` of methods on whole gradients."""
    methods = {call: mtl_jax.build(call, 3) for call in UPDATES}

    def step(states, inputs):
        grads, losses = inputs
        pairs = {
            c: tx.update(grads, states[c], losses=losses) for c, tx in methods.items()
        }
        return {c: s for c, (_, s) in pairs.items()}, {
            c: u for c, (u, _) in pairs.items()
        }

    def run(inputs):
        states = {c: tx.init(jnp.zeros(WIDTH)) for c, tx in methods.items()}
        return jax.lax.scan(step, states, inputs)

    return jax.jit(run)


def run(program, *inputs):
    """Runs in float64, and returns NumPy arrays: last states, and what came out."""
    with jax.enable_x64(True):
        found = program()(tuple(map(jnp.asarray, inputs)))
        return jax.tree.map(np.asarray, jax.device_get(drop_keys(found)))


def drop_keys(tree):
    def is_key(leaf):
        return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)

    return jax.tree.map(lambda leaf: jnp.zeros(()) if is_key(leaf) else leaf, tree)


@functools.cache
def replayed_weights():
    """Weights ``(STEPS, 3)`` of all weightings by call."""
    return run(program_of_weights, GRAMS, LOSSES, PRODUCTS, REVISITED)[1]


@functools.cache
def replayed_updates():
    """Updates ``(STEPS, WIDTH)`` by call."""
    return run(program_of_updates, JACOBIANS, LOSSES)[1]


def test_nothing_breaks_on_adversarial_inputs():
    """Compiled above: degenerate gradients, zero and negative losses, one after another."""
    cases = [j for _, j in adversarial_jacobians(WIDTH) if len(j) == 3]
    jacobians = np.stack([*cases, *cases][:STEPS])
    assert len(cases) >= 9
    grams = jacobians @ jacobians.transpose(0, 2, 1)
    signs = np.resize([1.0, 0.0, 1.0, -1.0, 1e-30, 1e30, 1.0], (STEPS, 3))
    products = -2 * grams
    found = run(program_of_weights, grams, signs, products, -signs)
    found += run(program_of_updates, jacobians, signs)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        assert np.isfinite(leaf).all(), (jax.tree_util.keystr(path), leaf)


@pytest.mark.parametrize("call", WEIGHTS)
def test_weights(call):
    found = replayed_weights()[call]
    np.testing.assert_allclose(found, WEIGHTS[call](), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("call", UPDATES_OF_WEIGHTS)
def test_updates_of_weights(call):
    found = with_jacobian(replayed_weights()[call])
    expected = UPDATES_OF_WEIGHTS[call]()
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("call", UPDATES)
def test_updates(call):
    expected = UPDATES[call]()
    np.testing.assert_allclose(
        replayed_updates()[call], expected, rtol=1e-9, atol=1e-12
    )


def test_extra_arguments_reach_the_weighting():
    """Heads do not count in the products with other batches either."""
    grads, other = jnp.asarray(JACOBIANS[:2], jnp.float32)
    heads = {"shared": False, "head": True}
    statistics_seen = []

    def update(statistics, state):
        statistics_seen.append(statistics)
        return jnp.ones(3), state

    tx = mtl_jax.aggregate(mtl_jax.Weighting(lambda: (), update, 3), heads=heads)
    stack = {"shared": grads, "head": jnp.ones((1, 2))}
    state = tx.init({"shared": jnp.zeros(WIDTH), "head": jnp.zeros(2)})
    held_out = {"shared": other, "head": jnp.zeros((3, 2))}
    tx.update(stack, state, held_out=held_out, revisited_losses=jnp.arange(3.0))
    tx.update(stack, state, independent=(held_out, held_out))
    tx.update(stack, state)
    first, second, third = statistics_seen
    np.testing.assert_allclose(first.cross_gram, other @ grads.T, rtol=1e-5)
    np.testing.assert_allclose(second.cross_gram, other @ other.T, rtol=1e-5)
    np.testing.assert_allclose(first.revisited_losses, np.arange(3))
    assert third.cross_gram is None and third.revisited_losses is None
    with pytest.raises(ValueError, match="either held_out= or independent="):
        tx.update(stack, state, held_out=held_out, independent=(held_out, held_out))
    with pytest.raises(ValueError, match="must have the structure of the task"):
        tx.update(stack, state, held_out={"shared": other})
    with pytest.raises(ValueError, match=r"leaf 'shared' .*\(2, 5\)"):
        tx.update(stack, state, held_out=held_out | {"shared": other[:2]})


def test_a_bad_held_out_task_is_skipped():
    tx = mtl_jax.aggregate(mtl_jax.weighting.modo(3), nonfinite="skip_task")
    grads, other = jnp.asarray(JACOBIANS[:2], jnp.float32)
    bad = other.at[1, 0].set(jnp.nan)
    step = jax.jit(lambda g, h: tx.update(g, tx.init(g[0]), held_out=h))
    update, state = step(grads, bad)
    assert np.isfinite(update).all()
    np.testing.assert_array_equal(state.skipped_tasks, [0, 1, 0])
    assert state.weights[1] == 0


def test_famo_without_revisited_losses_takes_the_next_ones(x64):
    weighting = mtl_jax.weighting.famo(3)
    step = jax.jit(lambda losses, s: weighting.update(Statistics(losses=losses), s))
    state, weights = weighting.init(), jnp.zeros(3)
    for losses in LOSSES[:3]:
        weights, state = step(jnp.asarray(losses), state)
    np.testing.assert_allclose(weights, rules.famo(LOSSES[:3], LOSSES)[-1], rtol=1e-9)
    # Equal relative progress: only the decay moves the logits, towards zero.
    before = state.logits
    state = state._replace(opt_state=weighting.init().opt_state)
    _, state = step(0.5 * jnp.asarray(LOSSES[2]), state)
    assert (jnp.sign(state.logits - before) == -jnp.sign(before)).all()
    # A loss at its lower bound: the logits stay, the weights are their softmax.
    weights, after = step(jnp.array([1.0, 0.0, 1.0]), state)
    chex.assert_trees_all_equal(after.logits, state.logits)
    np.testing.assert_allclose(weights, jax.nn.softmax(state.logits), rtol=1e-12)
    weights, after = step(jnp.array([1.0, jnp.inf, 1.0]), state)
    chex.assert_trees_all_equal(after.logits, state.logits)
    np.testing.assert_allclose(weights, jax.nn.softmax(state.logits), rtol=1e-12)


def two_derivatives():
    """Ours, and that through a look-ahead step; the held-out gradients are taken there."""
    targets = jnp.asarray(JACOBIANS[0])
    held_out_targets = jnp.asarray(HELD_OUT[0])
    theta = jnp.asarray(HELD_OUT[1, 0])

    def losses(theta, targets):
        return 0.5 * jnp.square(theta[None] - targets).sum(1) ** 2

    grads = jax.jacrev(losses)(theta, targets)
    logits = jnp.zeros(3)

    def look_ahead(logits):
        return theta - 1e-3 * jax.nn.softmax(logits) @ grads

    def held_out_loss(logits):
        return losses(look_ahead(logits), held_out_targets).sum()

    expected = jax.grad(held_out_loss)(logits)
    weighting = mtl_jax.weighting.auto_lambda(3)
    held_out = jax.jacrev(losses)(look_ahead(logits), held_out_targets)
    statistics = Statistics(cross_gram=held_out @ grads.T)
    _, state = weighting.update(statistics, weighting.init())
    moment = optax.tree.get(state, "mu")
    return [x / jnp.linalg.norm(x) for x in (moment, expected)]


def test_auto_lambda_follows_the_derivative_of_the_look_ahead(x64):
    np.testing.assert_allclose(*jax.jit(two_derivatives)(), rtol=1e-9)


def test_wrapped_weightings_by_call_string():
    statistics = Statistics(jnp.asarray(GRAMS[0], jnp.float32))
    inside = mtl_jax.build_weighting("upgrad(preference=(1, 2, 3))", 3)
    around = mtl_jax.build_weighting(
        "cr_mogm(around='upgrad(preference=(1, 2, 3))')", 3
    )
    expected = jax.jit(lambda s: inside.update(s, inside.init())[0])(statistics)
    # The first step smooths nothing.
    found = jax.jit(lambda s: around.update(s, around.init())[0])(statistics)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for call, message in (
        ("cr_mogm(around=mdga)", "did you mean 'mgda'"),
        ("cr_mogm(around=graddrop)", "is no weighting"),
        ("cr_mogm(alpha=2)", "alpha must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            mtl_jax.build(call, 3)
