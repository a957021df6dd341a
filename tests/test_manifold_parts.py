"""What Pareto manifolds consist of: regulariser, samplers, members, evaluation, errors."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import mtl_jax
from mtl_jax import pareto
from tests.helpers import params_of
from tests.references import manifold as reference
from tests.references.manifold import points_of, quadratics

manifold: Any = pareto.pareto_manifold  # its states are read as they are
EDGE3 = pareto.simplex_grid(3, 4)

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
        pytest.param("dirichlet", (2.0, 1.0, 0.5), marks=pytest.mark.slow),
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
        return manifold(2, **{"sampler": "stratified", **options}).init(members).alphas

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


# Members.


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
