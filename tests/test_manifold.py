"""Pareto manifolds: closed forms, chain rule, samplers, regulariser, evaluation."""

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

manifold: Any = pareto.pareto_manifold  # its states are read as they are
EDGE3 = pareto.simplex_grid(3, 4)
LOOPS = [("rwa", "vmap"), ("ls", "map"), ("ls", "unroll"), ("full", "auto")]


def points_of(seed, samples, num_tasks, num_members=None, num_params=24):
    """Random alphas, losses and gradients in float64."""
    rng = np.random.default_rng(seed)
    alphas = rng.dirichlet(np.ones(num_members or num_tasks), samples)
    losses = rng.uniform(0.5, 3, (samples, num_tasks))
    return alphas, losses, rng.normal(size=(samples, num_tasks, num_params))


def quadratics(x, centres, scales):
    """``c_i |x - a_i|^2`` for ``x (n,)``, centres ``(T, n)``, scales ``(T,)``."""
    return scales * jnp.sum(jnp.square(x[None] - centres), axis=1)


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


def test_toy_is_covered_with_gradnorm_but_not_with_ls():
    pairs = TOY_STARTS[np.array([[3, 4], [0, 2]])]
    balanced = toy_members(pairs, 0.1, balance="gradnorm")[:, :, 0]
    assert balanced.min(axis=1).max() < -7 and balanced.max(axis=1).min() > 7
    plain = np.sort(toy_members(pairs, 0.1)[:, :, 0], axis=1)
    covered = (np.minimum(plain[:, 1], 7) - np.maximum(plain[:, 0], -7)) / 14
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
    grads, members = jnp.ones((2, 2, 3)), jnp.zeros((2, 3))
    for factor, is_open in ((sum_of_balanced / 4 - 0.1, True), (2.0, False)):
        tx = manifold(2, samples=2, sampler=alphas, regularizer=factor, gate=True)
        _, state = jax.jit(tx.update)(grads, tx.init(members), losses=losses)
        assert bool((jnp.abs(state.weights - alphas) > 0.1).all()) == is_open
        np.testing.assert_allclose(state.penalty, 4, rtol=1e-6)


# The regulariser.


@pytest.mark.parametrize(
    ("losses", "expected"),
    [((1, 2, 3), 0), ((3, 2, 1), 1), ((1, 3, 2), np.log((1 + np.e) / 2))],
)
def test_regulariser_of_the_three_orders(x64, losses, expected):
    weights, losses = np.array([[0.9], [0.5], [0.1]]), np.array(losses, float)[:, None]
    for order in ([0, 1, 2], [2, 0, 1]):
        value = pareto.multi_forward_penalty(losses[order] + 7, weights[order])
        np.testing.assert_allclose(value, expected, atol=1e-12)


def test_regulariser_equals_the_reference(x64):
    for seed in range(3):
        weights, losses, _ = points_of(seed, 5, 3)
        value = pareto.multi_forward_penalty(losses, weights, temperature=2.5)
        np.testing.assert_allclose(value, reference.penalty(losses, weights, 2.5))


def test_regulariser_of_ties_and_huge_losses():
    value_and_slopes = jax.jit(jax.value_and_grad(pareto.multi_forward_penalty))

    def of(losses, weights):
        return value_and_slopes(jnp.array([losses]).T, jnp.array([weights]).T)

    for losses, weights in (
        ((1.0, 1.0, 1.0), (0.9, 0.5, 0.1)),  # members all alike
        ((5.0, 1.0, 9.0), (0.5, 0.5, 0.5)),
    ):
        value, slopes = of(losses, weights)
        np.testing.assert_allclose(value, 0, atol=1e-6)
        np.testing.assert_array_equal(slopes, 0)
    value, slopes = of((1e30, 0.0, 1.0), (0.9, 0.5, 0.1))
    np.testing.assert_allclose(value, 1e30)
    np.testing.assert_array_equal(slopes, [[1], [-1], [0]])
    one = jnp.ones((1, 2))
    assert pareto.multi_forward_penalty(one, one) == 0


# Samplers.


@pytest.mark.parametrize(
    ("sampler", "concentration"),
    [
        ("stratified", 1.0),
        ("dirichlet", (2.0, 1.0, 0.5)),
        ("stratified", (2.0, 1.5, 0.5)),
    ],
)
def test_samples_are_dirichlet(sampler, concentration):
    tx = manifold(3, samples=4000, sampler=sampler, concentration=concentration, seed=3)
    alphas = np.asarray(jax.jit(tx.init)(jnp.zeros((3, 1))).alphas, np.float64)
    assert (alphas >= 0).all()
    np.testing.assert_allclose(alphas.sum(axis=1), 1, atol=1e-6)
    target = scipy.stats.dirichlet(np.broadcast_to(concentration, 3))
    np.testing.assert_allclose(alphas.mean(axis=0), target.mean(), atol=0.02)
    np.testing.assert_allclose(alphas.var(axis=0), target.var(), rtol=0.1)


def test_strata_hold_one_sample_each():
    tx = manifold(2, samples=8, sampler="stratified", concentration=2.0)
    first = np.asarray(jax.jit(tx.init)(jnp.zeros((2, 1))).alphas[:, 0], np.float64)
    levels = scipy.stats.beta.cdf(first, 2, 2)
    np.testing.assert_array_equal(np.sort(np.floor(8 * levels)), np.arange(8))


def test_grids_are_drawn_without_replacement():
    grads, members = jnp.ones((4, 3, 1)), jnp.zeros((3, 1))
    tx = manifold(3, samples=4, sampler=EDGE3)
    state = tx.init(members)
    seen = []
    update = jax.jit(tx.update)
    for _ in range(3):
        _, state = update(grads, state)
        rows = [tuple(np.asarray(row, np.float64).round(3)) for row in state.alphas]
        assert len(set(rows)) == 4
        seen.append(rows)
        for row in rows:
            assert np.abs(EDGE3 - row).max(axis=1).min() < 1e-3
    assert seen[0] != seen[1] != seen[2]


def test_seeds_and_own_samplers():
    members = jnp.zeros((2, 1))

    def alphas_of(**options):
        return manifold(2, **options).init(members).alphas

    assert (alphas_of(seed=1) == alphas_of(seed=1)).all()
    assert (alphas_of(seed=1) != alphas_of(seed=2)).all()

    def ends(key):
        return jax.nn.one_hot(jax.random.permutation(key, 2), 2)

    own = alphas_of(samples=2, sampler=ends)
    np.testing.assert_array_equal(np.sort(own, axis=0), [[0, 0], [1, 1]])
    assert alphas_of(samples=11, sampler="grid").shape == (11, 2)


def test_grid():
    assert pareto.simplex_grid(2).shape == (11, 2)
    assert pareto.simplex_grid(3).shape == (66, 3)
    np.testing.assert_array_equal(pareto.simplex_grid(1, 5), [[1]])
    for num_members, num_points in ((2, 11), (3, 4), (4, 3)):
        np.testing.assert_allclose(
            pareto.simplex_grid(num_members, num_points),
            reference.grid(num_members, num_points),
        )


# Members and limits.


def test_mixtures_of_members():
    trees = [
        jax.tree.map(lambda leaf, i=i: leaf + i + 0.1, params_of()) for i in range(3)
    ]
    members = pareto.stack_members(trees)
    for i, one_hot in enumerate(np.eye(3)):
        chex.assert_trees_all_equal(pareto.member_mixture(members, one_hot), trees[i])
    half = pareto.member_mixture(members, [0.5, 0.0, 0.5])
    chex.assert_trees_all_close(half, trees[1])
    many = jax.vmap(pareto.member_mixture, (None, 0))(members, jnp.eye(3))
    chex.assert_trees_all_equal(many, members)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), members)
    chex.assert_type(
        jax.tree.leaves(pareto.member_mixture(narrow, [1, 0, 0])), "bfloat16"
    )


def test_similarity():
    members = {"a": jnp.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])}
    members["b"] = jnp.array([1.0, 2.0, 0.0])
    cosine = 1 / 2
    np.testing.assert_allclose(
        pareto.member_similarity(members),
        [[1, cosine, 0], [cosine, 1, 0], [0, 0, 1]],
        rtol=1e-6,
    )


@pytest.mark.parametrize("balance", slow_but(["full"], ["ls", "full"]))
def test_one_task_one_member_one_point(balance):
    tx = manifold(1, balance=balance, window=1, regularizer=1.0)
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


# Evaluation.


def test_evaluation_compiles_once():
    members = {"x": jnp.array([[1.0, 0.0], [0.0, 1.0]])}
    grid, centres = pareto.simplex_grid(2), jnp.eye(2)

    @chex.assert_max_traces(1)
    def losses_fn(params, centres):
        return quadratics(params["x"], centres, jnp.ones(2))

    front = pareto.ManifoldFront(members)
    losses = front.evaluate(losses_fn, grid, centres, loop="vmap")
    np.testing.assert_allclose(losses[:, 0], 2 * (1 - grid[:, 0]) ** 2, atol=1e-6)
    np.testing.assert_allclose(losses[:, 1], 2 * (1 - grid[:, 1]) ** 2, atol=1e-6)
    front.evaluate(losses_fn, grid, 2 * centres, loop="vmap")
    np.testing.assert_array_equal(pareto.monotonicity(losses, grid), 1)
    chex.assert_trees_all_close(front([0.2, 0.8]), {"x": jnp.array([0.2, 0.8])})


def test_evaluation_loops_agree():
    members = jnp.asarray(np.random.default_rng(3).normal(size=(3, 4)), "f4")

    def measure(x):
        return {"square": jnp.square(x), "sum": x.sum()}

    points = EDGE3 @ np.asarray(members)
    every: list[Any] = [{"loop": "map"}, {"loop": "vmap"}, {"batch_size": 4}]
    for options in every:
        found = pareto.evaluate_manifold(measure, members, EDGE3, **options)
        np.testing.assert_allclose(found["square"], points**2, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["sum"], points.sum(axis=1), atol=1e-5)


def test_monotonicity_equals_the_reference():
    losses = np.random.default_rng(4).normal(size=(10, 3))
    np.testing.assert_allclose(
        pareto.monotonicity(losses, EDGE3),
        reference.monotonicity(losses, EDGE3),
        rtol=1e-6,
    )
    np.testing.assert_array_equal(pareto.monotonicity(-EDGE3, EDGE3), 1)
    np.testing.assert_array_equal(pareto.monotonicity(EDGE3, EDGE3), 0)
    np.testing.assert_array_equal(pareto.monotonicity(EDGE3 * np.nan, EDGE3), 0)


# Errors.

PAIR = jnp.zeros((2, 3))


def init_and_update(grads, losses=None, members=PAIR, **options):
    tx = manifold(2, **options)
    return tx.update(grads, tx.init(members), members, losses=losses)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pareto.member_mixture(PAIR, [0.7, 0.7]), "simplex"),
        (lambda: pareto.member_mixture(PAIR, [1.5, -0.5]), "simplex"),
        (lambda: pareto.member_mixture(PAIR, [np.nan, 1.0]), "simplex"),
        (lambda: pareto.member_mixture(PAIR, [1.0, 0.0, 0.0]), "shape"),
        (lambda: pareto.member_mixture({"a": PAIR, "b": PAIR[:1]}, [1, 0]), "axis"),
        (lambda: pareto.member_mixture(jnp.zeros((2, 3), int), [1, 0]), "floating"),
        (lambda: pareto.stack_members([]), "one member or more"),
        (lambda: pareto.stack_members([{"a": PAIR}, {"b": PAIR}]), "member 1 lacks"),
        (lambda: pareto.stack_members([PAIR, PAIR[:1]]), "has shape"),
        (lambda: pareto.simplex_grid(2, 1), "num_points"),
        (lambda: pareto.simplex_grid(20, 11), "fewer"),
        (lambda: manifold(0), "num_tasks"),
        (lambda: manifold(2, samples=0), "samples"),
        (lambda: manifold(2, samples=12, sampler="grid"), "more than"),
        (lambda: manifold(2, concentration=0.0), "concentration"),
        (lambda: manifold(2, concentration=-1), "concentration"),
        (lambda: manifold(2, concentration=(1.0, 0.0)), "concentration"),
        (lambda: manifold(2, concentration=(1.0,)), "concentration"),
        (lambda: manifold(2, sampler="sobol"), "sampler"),
        (lambda: manifold(2, sampler=[[0.5, 0.6]]), "simplex"),
        (lambda: manifold(2, balance="nash"), "weighting"),
        (lambda: manifold(2, balance=mtl_jax.weighting.ls(3)), "3 tasks"),
        (lambda: manifold(2, num_members=3), "preferences"),
        (lambda: manifold(2, preferences=[[1.0, 1.0]] * 2), "simplex"),
        (lambda: manifold(2, preferences=np.eye(3)), "preferences"),
        (lambda: manifold(2, regularizer=-1.0), "regularizer"),
        (lambda: manifold(2, temperature=0.0), "temperature"),
        (lambda: manifold(2, window=0), "window"),
        (lambda: manifold(2).init(jnp.zeros((3, 4))), "size 2"),
        (
            lambda: manifold(2, sampler=lambda key: jnp.ones(2)).init(PAIR),
            "sampler must return",
        ),
        (lambda: init_and_update(jnp.zeros((2, 3))), "gradient per sampled point"),
        (lambda: init_and_update(jnp.zeros((1, 2, 3), int)), "floating"),
        (lambda: init_and_update(jnp.zeros((1, 2, 3)), balance="rwa"), "losses"),
        (lambda: init_and_update(jnp.zeros((1, 2, 3)), regularizer=1.0), "losses"),
        (lambda: init_and_update(jnp.zeros((1, 2, 3)), jnp.zeros(2)), "losses"),
        (lambda: pareto.multi_forward_penalty(PAIR, PAIR[:1]), "shape"),
        (lambda: pareto.monotonicity(PAIR, PAIR[:1]), "shape"),
        (lambda: pareto.evaluate_manifold(jnp.sum, PAIR, [[1.0, 1.0]]), "simplex"),
        (lambda: pareto.evaluate_manifold(jnp.sum, PAIR, [1.0, 0.0]), "shape"),
        (lambda: pareto.value_and_manifold_grads(jnp.sum, loop="for"), "loop"),
    ],
)
def test_errors_name_what_was_found(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
