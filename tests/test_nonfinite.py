"""The ``nonfinite`` policies in training, with faults at random steps.

``tests/test_aggregate.py`` looks at single updates; here whole runs are scanned.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import mtl_jax
from mtl_jax.train import init_state, make_train_step
from tests.helpers import slow_but

TASKS, STEPS = 3, 120
METHODS = ("gradnorm", "uw", "dwa(window=3)", "pcgrad", "nash_mtl", "mgda")


class Batch(NamedTuple):
    x: jax.Array
    loss_fault: jax.Array
    """Added to the losses, ``(T,)``."""
    grad_fault: jax.Array
    """Replaces one entry of the task gradients where it is not zero, ``(T,)``."""


@jax.custom_vjp
def zero_with_gradient(x, gradient):
    """Zero, with a gradient of one's own choice."""
    del gradient
    return jnp.zeros_like(x)


zero_with_gradient.defvjp(
    lambda x, gradient: (jnp.zeros_like(x), gradient),
    # Not a product: the other tasks' cotangents are zero, and 0 * inf is NaN.
    lambda gradient, cotangent: (
        jnp.where(cotangent == 0, 0, gradient),
        jnp.zeros_like(gradient),
    ),
)


def losses_fn(params, model_state, batch, key):
    """Regressions that the same parameters solve; scales and noise set them apart."""
    del key
    target = jnp.linspace(-1, 1, 6)
    scales = jnp.array([0.5, 1.0, 2.0])
    error = jnp.einsum("tbi,i->tb", batch.x, params["w"] - target)
    losses = scales * jnp.square(error).mean(axis=1)
    faults = [
        zero_with_gradient(params["w"][0], batch.grad_fault[t]) for t in range(TASKS)
    ]
    return losses + jnp.stack(faults) + batch.loss_fault, model_state


@functools.cache
def plan():
    """Batches of a run, and which tasks have a fault at which step."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS, TASKS, 8, 6)).astype(np.float32)
    faults = np.zeros((2, STEPS, TASKS), np.float32)
    steps = rng.choice(np.arange(5, STEPS - 5), size=30, replace=False)
    for number, step in enumerate(steps):
        tasks = range(TASKS) if number < 2 else rng.choice(TASKS, 1 + (number < 6))
        for task in tasks:
            kinds = ([0], [1], [0, 1])[number % 3]  # the loss, the gradient, or both
            faults[kinds, step, task] = (np.nan, np.inf, -np.inf)[rng.integers(3)]
    bad = (faults != 0).any(axis=0)
    return Batch(jnp.asarray(x), *map(jnp.asarray, faults)), bad


def rate(call):
    """Nash-MTL's updates all have the norm ``sqrt(T)``, and a long way to go."""
    return 0.08 if call == "nash_mtl" else 0.02


def transformation(call, policy):
    weighting = mtl_jax.build_weighting(call, TASKS)
    return optax.chain(
        mtl_jax.aggregate(weighting, nonfinite=policy), optax.sgd(rate(call))
    )


@functools.cache
def runner(call, policy):
    """``run(batches) -> (states, losses)``: the states before and after every step."""
    tx = transformation(call, policy)
    step = make_train_step(losses_fn, tx, strategy="vmap")
    start = init_state({"w": jnp.full(6, 2.0)}, {}, tx, jax.random.key(0))

    def body(state, batch):
        new, record = step(state, batch)
        return new, (new, record.losses)

    @jax.jit
    def run(batches):
        _, (states, losses) = lax.scan(body, start, batches)
        both = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, states)
        return both, losses

    return run


def at(tree, step):
    return jax.tree.map(lambda leaf: leaf[step], tree)


def assert_counts(states, bad, lost):
    """The state counts what was injected, at every step."""
    zero = np.zeros((1, TASKS), int)
    aggregate = states.opt_state[0]
    tasks = np.concatenate([zero, np.cumsum(bad, axis=0)])
    steps = np.concatenate([[0], np.cumsum(lost)])
    np.testing.assert_array_equal(aggregate.skipped_tasks, tasks)
    np.testing.assert_array_equal(aggregate.skipped_steps, steps)


def assert_learned(states, losses, bad):
    assert np.isfinite(states.params["w"]).all()
    losses = np.asarray(losses)[~bad.any(axis=1)]
    assert np.isfinite(losses).all()
    assert (losses[-10:].mean(axis=0) < 0.1 * losses[:10].mean(axis=0)).all()


@pytest.mark.parametrize("call", slow_but(("gradnorm", "pcgrad", "nash_mtl"), METHODS))
def test_skip_step_is_the_run_without_those_steps(call):
    batches, bad = plan()
    states, losses = runner(call, "skip_step")(batches)
    lost = bad.any(axis=1)
    assert_counts(states, bad, lost)
    assert_learned(states, losses, bad)
    for step in np.flatnonzero(lost):
        before, after = at(states, step), at(states, step + 1)
        chex.assert_trees_all_equal(before.params, after.params)
        old, new = before.opt_state[0], after.opt_state[0]
        chex.assert_trees_all_equal(old.inner, new.inner)  # uw, dwa's history, keys
        chex.assert_trees_all_equal(old.weights, new.weights)
    # Bad batches last: bit by bit the same end.
    order = np.argsort(lost, kind="stable")
    sorted_states, _ = runner(call, "skip_step")(at(batches, order))
    ends = [at(s, -1) for s in (states, sorted_states)]
    chex.assert_trees_all_equal(*(end.params for end in ends))
    chex.assert_trees_all_equal(*(end.opt_state[0].inner for end in ends))


@pytest.mark.parametrize("call", slow_but(("gradnorm", "pcgrad", "nash_mtl"), METHODS))
def test_skip_task_lets_the_mean_of_the_others_stand_in(call):
    batches, bad = plan()
    states, losses = runner(call, "skip_task")(batches)
    assert_counts(states, bad, bad.all(axis=1))
    assert_learned(states, losses, bad)
    weighting = mtl_jax.build_weighting(call, TASKS)
    update = jax.jit(weighting.update)
    clean = batches._replace(
        loss_fault=jnp.zeros_like(batches.loss_fault),
        grad_fault=jnp.zeros_like(batches.grad_fault),
    )
    value_and_grads = jax.jit(
        lambda params, batch: (
            losses_fn(params, {}, batch, None)[0],
            jax.jacrev(lambda p: losses_fn(p, {}, batch, None)[0])(params)["w"],
        )
    )
    last = np.ones(TASKS, np.float32)  # the losses that stand in
    checked = 0
    for step in range(STEPS):
        before, after = at(states, step), at(states, step + 1)
        old, new = before.opt_state[0], after.opt_state[0]
        found = np.asarray(losses[step])
        last = np.where(np.isfinite(found), found, last)
        np.testing.assert_array_equal(new.last_losses, last)
        good = ~bad[step]
        if good.all():
            continue
        if not good.any():
            chex.assert_trees_all_equal(before.params, after.params)
            chex.assert_trees_all_equal(old.inner, new.inner)
            continue
        _, rows = value_and_grads(before.params, at(clean, step))
        rows = np.asarray(rows, np.float64)
        rows[~good] = rows[good].mean(axis=0)
        gram = jnp.asarray(rows @ rows.T, jnp.float32)
        weights, inner = update(mtl_jax.Statistics(gram, jnp.asarray(last)), old.inner)
        weights = np.asarray(weights, np.float64)
        expected = weights @ rows  # a weight on the mean is a weight on the others
        folded = np.where(good, weights + weights[~good].sum() / good.sum(), 0)
        # float32 Gramians of the library and of float64 rows; the solvers amplify that.
        np.testing.assert_allclose(new.weights, folded, rtol=2e-3, atol=2e-4)
        moved = (np.asarray(before.params["w"]) - np.asarray(after.params["w"])) / rate(
            call
        )
        scale = np.abs(weights) @ np.linalg.norm(rows, axis=1)
        # The parameters, about 2, are rounded to 1e-7 of that, and divided by the rate.
        np.testing.assert_allclose(moved, expected, atol=1e-3 * scale + 2e-5)
        if call == "pcgrad":
            chex.assert_trees_all_equal(inner, new.inner)  # the next key
        elif call in ("uw", "dwa(window=3)"):
            chex.assert_trees_all_close(inner, new.inner, rtol=1e-5)
        checked += 1
    assert checked == 28


@pytest.mark.parametrize("call", ["uw", "mgda"])
def test_propagate_shows_at_the_first_bad_gradient(call):
    batches, _ = plan()
    states, _ = runner(call, "propagate")(batches)
    used = (
        batches.grad_fault
        if call == "mgda"
        else (batches.grad_fault + batches.loss_fault)
    )
    first = int(np.flatnonzero((np.asarray(used) != 0).any(axis=1))[0])
    finite = np.isfinite(states.params["w"]).all(axis=1)
    assert finite[: first + 1].all() and not finite[first + 2 :].any()
    assert not states.opt_state[0].skipped_tasks.any()


@pytest.mark.parametrize("policy", ["skip_task", "skip_step"])
def test_a_summed_head_that_blames_no_task_skips_the_step(policy):
    """Its task is lost in the sum, so neither policy can leave out that task alone."""
    tx = mtl_jax.aggregate(
        mtl_jax.weighting.uw(2),
        heads=lambda path: path == "head",
        nonfinite=policy,
    )
    params = {"shared": jnp.zeros(2), "head": jnp.zeros(2)}
    grads = {"shared": jnp.eye(2), "head": jnp.ones((1, 2))}
    losses = jnp.ones(2) * 3
    _, state = tx.update(grads, tx.init(params), params, losses=losses)
    broken = grads | {"head": jnp.array([[jnp.nan, 1.0]])}
    update, after = jax.jit(tx.update)(broken, state, params, losses=losses)
    chex.assert_trees_all_equal(update, params)  # zeros
    chex.assert_trees_all_equal(after.inner, state.inner)
    assert int(after.skipped_steps) == 1 and not after.skipped_tasks.any()
    # Where a task is to blame, the policies are what they say.
    _, after = tx.update(broken, state, params, losses=jnp.array([3.0, jnp.nan]))
    np.testing.assert_array_equal(after.skipped_tasks, [0, 1])
    assert int(after.skipped_steps) == (policy == "skip_step")
