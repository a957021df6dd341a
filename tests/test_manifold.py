"""Pareto manifolds: closed forms, the chain rule with every balance, limits, sources."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from jax import lax

import mtl_jax
from mtl_jax import pareto
from mtl_jax.data.toy import TOY_STARTS, toy_losses
from tests.helpers import params_of, slow_but
from tests.references import manifold as reference
from tests.references import nash
from tests.references.manifold import points_of, quadratics

manifold: Any = pareto.pareto_manifold  # its states are read as they are
LOOPS = [("rwa", "vmap"), ("ls", "map"), ("ls", "unroll"), ("full", "auto")]


def descend(centres, scales, optimizer, steps, **options):
    """Members after so many steps from the origin."""
    centres, scales = jnp.asarray(centres), jnp.asarray(scales)
    source = pareto.value_and_member_grad(
        lambda x: quadratics(x, centres, scales), len(centres), loop="vmap", **options
    )

    @jax.jit
    def run(members):
        def step(carry, _):
            members, state, opt_state = carry
            _, grads, state = source.update(state, members)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(members, updates), state, opt_state), None

        start = members, source.init(members), optimizer.init(members)
        return lax.scan(step, start, length=steps)[0][0]

    return run(jnp.zeros_like(centres))


# Closed forms.


@pytest.mark.parametrize(
    ("num_tasks", "options"),
    [
        (2, {"concentration": 7.0, "samples": 3, "regularizer": 1.0}),
        (3, {"concentration": 0.5}),
    ],
)
def test_equal_quadratics_have_their_optima_as_members(x64, num_tasks, options):
    centres = np.random.default_rng(num_tasks).normal(size=(num_tasks, 4))
    members = descend(centres, np.ones(num_tasks), optax.sgd(0.2), 4000, **options)
    np.testing.assert_allclose(members, centres, atol=1e-8)


@pytest.mark.parametrize(
    ("concentration", "expected"), [(1, (30 / 47, 50 / 47)), (2, (90 / 131, 140 / 131))]
)
def test_scaled_quadratics_leave_the_first_end(x64, concentration, expected):
    scales, count = np.array([1.0, 10.0]), 400
    np.testing.assert_allclose(reference.line_optimum(scales, concentration), expected)
    # The quantiles of the first entry stand for its distribution.
    levels = (np.arange(count) + 0.5) / count
    first = scipy.stats.beta.ppf(levels, concentration, concentration)
    members = descend(
        np.array([[0.0, 0.0], [1.0, 2.0]]),
        scales,
        optax.sgd(0.2 / count),
        2000,
        samples=count,
        sampler=np.stack([first, 1 - first], axis=1),
    )
    np.testing.assert_allclose(members[:, 0], expected, atol=1e-4)
    np.testing.assert_allclose(members[:, 1], 2 * members[:, 0], atol=1e-9)


def toy_members(starts, scale, steps=20_000, **options):
    """Toy members after Adam at 0.01 from each pair of starts ``(K, 2, 2)``."""
    tx = optax.chain(manifold(2, **options), optax.adam(0.01))
    grads_fn = pareto.value_and_manifold_grads(
        lambda x: toy_losses(x, scale), strategy="vmap", loop="vmap"
    )

    def run(members):
        def step(carry, _):
            members, state = carry
            losses, grads = grads_fn(members, optax.tree.get(state, "alphas"))
            updates, state = tx.update(grads, state, members, losses=losses)
            return (optax.apply_updates(members, updates), state), None

        return lax.scan(step, (members, tx.init(members)), length=steps)[0][0]

    return np.asarray(jax.jit(jax.vmap(run))(jnp.asarray(starts)))


def test_toy_is_covered_with_gradnorm():
    pairs = TOY_STARTS[np.array([[3, 4], [0, 2]])]
    members = toy_members(pairs, 0.1, steps=10_000, balance="gradnorm")[:, :, 0]
    assert members.min(axis=1).max() < -7 and members.max(axis=1).min() > 7


@pytest.mark.slow
def test_toy_is_covered_by_a_third_with_ls():
    pairs = TOY_STARTS[np.array([[3, 4], [0, 2]])]
    ends = np.sort(toy_members(pairs, 0.1)[:, :, 0], axis=1)
    covered = (np.minimum(ends[:, 1], 7) - np.maximum(ends[:, 0], -7)) / 14
    np.testing.assert_allclose(covered, 0.35, atol=0.04)


@pytest.mark.slow
def test_toy_members_stay_apart_with_the_regulariser():
    pairs = TOY_STARTS[np.array([[3, 4], [0, 2]])]
    members = toy_members(pairs, 1.0, samples=4, regularizer=2.0)
    # Task 1 is best at x = 7.
    np.testing.assert_allclose(members[:, :, 0], [[7, -7], [7, -7]], atol=0.4)


# The chain rule, with every balance.


@pytest.mark.parametrize("num_members", [3, 5])
def test_members_get_the_chain_rule(x64, num_members):
    samples, num_tasks = 4, 3
    alphas, losses, grads = points_of(0, samples, num_tasks, num_members)
    table = np.random.default_rng(1).dirichlet(np.ones(3), num_members)
    tx = manifold(
        num_tasks, preferences=table, samples=samples, sampler=alphas, regularizer=0.7
    )
    members = jnp.zeros((num_members, 24))
    state = tx.init(members)
    np.testing.assert_array_equal(state.alphas, alphas)
    updates, state = jax.jit(tx.update)(grads, state, members, losses=losses)

    slopes = np.zeros_like(losses)  # of the regulariser, by differences
    for place in np.ndindex(*losses.shape):
        moved = np.zeros_like(losses)
        moved[place] = 1e-6
        up, down = (
            reference.penalty(losses + sign * moved, alphas @ table) for sign in (1, -1)
        )
        slopes[place] = (up - down) / 2e-6
    weights = alphas @ table + 0.7 * slopes
    np.testing.assert_allclose(state.weights, weights, atol=1e-8)
    np.testing.assert_allclose(
        state.penalty, reference.penalty(losses, alphas @ table), rtol=1e-12
    )
    expected = reference.member_updates(alphas, weights, grads)
    np.testing.assert_allclose(updates, expected, atol=1e-7)


def test_equals_the_derivative_of_the_released_scalar(x64):
    """The whole objective, differentiated through the mixtures by JAX."""
    alphas = jnp.asarray(points_of(2, 3, 2)[0])
    centres, members = jnp.asarray(np.random.default_rng(3).normal(size=(2, 2, 4)))
    scales = jnp.array([1.0, 3.0])

    def losses_fn(x):
        return quadratics(x, centres, scales)

    def objective(members):
        def at_points(members):
            return jax.vmap(losses_fn)(alphas @ members)

        losses, slopes = at_points(members), jax.jacobian(at_points)(members)
        norms = lax.stop_gradient(jnp.sqrt(jnp.square(slopes).sum(axis=(2, 3))))
        balanced = alphas * losses / (norms + 1e-3)
        return balanced.sum() + 0.5 * pareto.multi_forward_penalty(losses, alphas)

    source = pareto.value_and_member_grad(
        losses_fn,
        2,
        loop="vmap",
        samples=3,
        sampler=alphas,
        balance="gradnorm",
        regularizer=0.5,
    )

    @jax.jit
    def both(members):
        _, grads, _ = source.update(source.init(members), members)
        return grads, jax.grad(objective)(members)

    grads, expected = both(members)
    np.testing.assert_allclose(grads, expected, rtol=1e-10)


@pytest.mark.parametrize("balance", ["rwa", "full"])
def test_running_averages(x64, balance):
    samples, window = 3, 4
    history = np.zeros((0, 2))
    alphas, _, grads = points_of(5, samples, 2)
    tx = manifold(2, samples=samples, sampler=alphas, balance=balance, window=window)
    update, state = jax.jit(tx.update), tx.init(jnp.zeros((2, 24)))
    norms = np.linalg.norm(grads, axis=2) * np.linalg.norm(alphas, axis=1)[:, None]
    divisors = norms + 1e-3 if balance == "full" else np.ones_like(norms)
    for step in range(4):
        losses = points_of(10 + step, samples, 2)[1]
        _, state = update(jnp.asarray(grads), state, losses=losses)
        factors = reference.running_factors(history, window)
        np.testing.assert_allclose(
            state.weights, factors * alphas / divisors, rtol=1e-10
        )
        history = np.concatenate([history, losses])
    for _ in range(3):  # shares of negative losses mean nothing
        _, state = update(jnp.asarray(grads), state, losses=losses * [-1, 1])
    np.testing.assert_allclose(state.weights, alphas / divisors, rtol=1e-10)


def test_any_weighting_balances_every_point(x64):
    samples = 4
    alphas, losses, grads = points_of(6, samples, 3)
    expected = {
        mtl_jax.weighting.nash_mtl(3): [nash.weights(rows) for rows in grads],
        mtl_jax.weighting.si(3): 1 / losses,
    }
    for weighting, weights in expected.items():
        tx = manifold(3, samples=samples, sampler=alphas, balance=weighting)
        _, state = jax.jit(tx.update)(
            jnp.asarray(grads), tx.init(jnp.zeros((3, 24))), losses=losses
        )
        np.testing.assert_allclose(state.weights, alphas * np.array(weights), rtol=1e-8)


def test_gradnorm_leaves_out_heads_and_does_not_see_the_scale_of_a_loss(x64):
    alphas, _, grads = points_of(7, 2, 2)
    members = {"shared": jnp.zeros((2, 5)), "head": jnp.zeros((2, 19))}
    tx = manifold(
        2,
        samples=2,
        sampler=alphas,
        balance="gradnorm",
        epsilon=1e-12,
        heads=lambda path: path == "head",
    )
    update, state = jax.jit(tx.update), tx.init(members)
    norms = np.linalg.norm(grads[..., :5], axis=2)
    weights = alphas / (norms * np.linalg.norm(alphas, axis=1)[:, None])
    expected = reference.member_updates(alphas, weights, grads)
    for scale in (1.0, 1e6):
        scaled = jnp.asarray(grads * np.array([scale, 1.0])[None, :, None])
        updates, _ = update({"shared": scaled[..., :5], "head": scaled[..., 5:]}, state)
        np.testing.assert_allclose(updates["shared"], expected[:, :5], rtol=1e-9)
        np.testing.assert_allclose(updates["head"], expected[:, 5:], rtol=1e-9)


def test_gate_closes_where_the_regulariser_outweighs_the_losses():
    alphas = np.array([[0.9, 0.1], [0.1, 0.9]])
    losses = jnp.array([[3.0, 1.0], [1.0, 3.0]])  # all in the wrong order: R = 4
    sum_of_balanced = 2 * (0.9 * 3 + 0.1)

    @jax.jit
    def weights_of(factor):
        tx = manifold(2, samples=2, sampler=alphas, regularizer=factor, gate=True)
        state = tx.init(jnp.zeros((2, 3)))
        state = tx.update(jnp.ones((2, 2, 3)), state, losses=losses)[1]
        return state.weights, state.penalty

    for factor, slope in ((sum_of_balanced / 4 - 0.1, 1), (2.0, 0)):
        weights, penalty = weights_of(factor)
        signs = np.array([[1, -1], [-1, 1]])
        np.testing.assert_allclose(
            weights, alphas + slope * factor * signs, rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(penalty, 4, rtol=1e-6)


# Limits.


@pytest.mark.parametrize("balance", slow_but(["full"], ["ls", "full"]))
def test_one_task_one_member_one_point(balance):
    tx = manifold(1, balance=balance, window=1, regularizer=1.0, sampler="stratified")
    members = jax.tree.map(lambda leaf: np.asarray(leaf)[None], params_of())
    grads = jax.tree.map(lambda leaf: np.ones_like(leaf)[None], members)

    @jax.jit
    def two_steps(members, grads):
        state = tx.init(members)
        _, after = tx.update(grads, state, losses=jnp.array([[2.0]]))
        updates, _ = tx.update(grads, after, losses=jnp.array([[2.0]]))
        none = jax.tree.map(jnp.zeros_like, grads)
        return (
            state.alphas,
            updates,
            tx.update(none, after, losses=jnp.zeros((1, 1)))[0],
        )

    alphas, updates, none = two_steps(members, grads)
    np.testing.assert_array_equal(alphas, [[1]])
    factor = 1 / (np.sqrt(24) + 1e-3) if balance == "full" else 1
    expected = jax.tree.map(lambda leaf: factor * np.ones_like(leaf), members)
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)
    chex.assert_trees_all_equal(none, members)  # zeros


@pytest.mark.parametrize("balance", ["full", mtl_jax.weighting.nash_mtl(2)])
def test_dtypes_are_kept(balance):
    def step(members, grads):
        tx = manifold(2, balance=balance, regularizer=1.0, sampler="stratified")
        state = tx.init(members)
        return state, *tx.update(grads, state, losses=jnp.ones((1, 2), jnp.bfloat16))

    shapes = jnp.zeros((2, 3), jnp.bfloat16), jnp.zeros((1, 2, 3), jnp.bfloat16)
    state, updates, new = jax.eval_shape(step, *shapes)
    assert updates.dtype == jnp.bfloat16 and state.alphas.dtype == jnp.float32
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new)


# Sources: points, loops, one pull-back a point, compilation.


def batch_losses(x, batch):
    return quadratics(x, batch, jnp.array([1.0, 2.0])), x.sum()


@pytest.mark.parametrize(("balance", "loop"), slow_but([("rwa", "vmap")], LOOPS))
def test_member_grad_equals_the_long_way(balance, loop):
    chex.clear_trace_counter()
    options = {"samples": 3, "balance": balance, "regularizer": 0.5, "window": 4}
    options["sampler"] = "grid"
    tx = manifold(2, **options)
    grads_fn = pareto.value_and_manifold_grads(batch_losses, True, loop=loop)
    source = pareto.value_and_member_grad(batch_losses, 2, True, loop=loop, **options)

    @jax.jit
    @chex.assert_max_traces(1)
    def both(members, state, batch):
        (losses, aux), grads = grads_fn(members, state.alphas, batch)
        updates, new = tx.update(grads, state, members, losses=losses)
        return ((losses, aux), updates, new), source.update(state, members, batch)

    members, *batches = np.random.default_rng(0).normal(size=(4, 2, 4)).astype("f4")
    state = tx.init(members)
    for batch in batches:
        long, short = both(members, state, batch)
        chex.assert_trees_all_close(long[:2], short[:2], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(long[2].weights, short[2].weights, rtol=1e-5)
        points = pareto.manifold_points(members, state)
        np.testing.assert_allclose(long[0][1], points.sum(axis=1), rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, long[2])
        state = long[2]
