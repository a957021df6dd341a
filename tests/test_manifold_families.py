"""Families of networks other than stacked members: low rank, COSMOS, and their source."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import pareto
from tests.helpers import params_of
from tests.references.manifold import points_of, quadratics

source_of: Any = pareto.value_and_family_grad

# Low-rank members.

PARAMS = {"kernel": (3, 4, 5, 6), "dense": (7, 5), "bias": (5,), "scale": ()}


def random_tree(seed, shapes=None, dtype="f8"):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=shape), dtype)
        for name, shape in (shapes or PARAMS).items()
    }


def random_members(num_members, rank):
    def make(params):
        return pareto.low_rank_members(params, num_members, rank, key=jax.random.key(0))

    members = jax.eval_shape(make, random_tree(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), members)


def numpy_member(members, index, scaling):
    """Shared parameters plus one member's product of factors."""
    found = {}
    for name, leaf in members.shared.items():
        delta = {k: np.asarray(v)[index] for k, v in members.deltas[name].items()}
        change = delta["full"] if "full" in delta else delta["down"] @ delta["up"]
        found[name] = np.asarray(leaf) + scaling * change.reshape(leaf.shape)
    return found


def test_low_rank_mixture_is_linear_between_its_members(x64):
    members = random_members(3, 2)
    assert (
        set(members.deltas["kernel"]) == set(members.deltas["dense"]) == {"down", "up"}
    )
    assert set(members.deltas["bias"]) == set(members.deltas["scale"]) == {"full"}
    ends = [numpy_member(members, i, 0.5) for i in range(3)]
    mixture = jax.jit(pareto.low_rank_mixture)
    for alpha in (*np.eye(3), np.array([0.2, 0.5, 0.3])):
        found = mixture(members, jnp.asarray(alpha), scaling=0.5)
        expected = jax.tree.map(
            lambda *leaves, a=alpha: sum(
                x * leaf for x, leaf in zip(a, leaves, strict=True)
            ),
            *ends,
        )
        chex.assert_trees_all_close(found, expected, rtol=1e-12, atol=1e-12)


def test_low_rank_members_begin_as_the_shared_network_and_count():
    params = random_tree(0, dtype="bfloat16")

    @jax.jit
    def make(params):
        members = pareto.low_rank_members(params, 3, 2, key=jax.random.key(0))
        return members, pareto.low_rank_mixture(members, jnp.array([0.2, 0.5, 0.3]))

    members, start = make(params)
    chex.assert_trees_all_equal(start, params)
    chex.assert_trees_all_equal_dtypes(start, params)
    chex.assert_type(jax.tree.leaves(members), "bfloat16")
    size = sum(leaf.size for leaf in jax.tree.leaves(members))
    plain = 3 * 4 * 5 * 6 + 7 * 5 + 5 + 1
    assert size == plain + 3 * (2 * (60 + 6) + 2 * (7 + 5) + 5 + 1)
    down = np.asarray(members.deltas["kernel"]["down"], np.float64)
    assert 0.9 < np.abs(down).max() * np.sqrt(60) < 1.01
    assert (down[0] != down[1]).mean() > 0.9


def test_full_rank_reaches_any_member(x64):
    """From rank 4 on, factors of a 7x5 matrix are no smaller; at rank 3 they are."""
    shapes = {"dense": (7, 5)}
    small = pareto.low_rank_members(random_tree(0, shapes), 2, 2, key=jax.random.key(0))
    large = pareto.low_rank_members(random_tree(0, shapes), 2, 3, key=jax.random.key(0))
    assert set(small.deltas["dense"]) == {"down", "up"}
    assert set(large.deltas["dense"]) == {"full"}
    goal = np.random.default_rng(5).normal(size=(2, 7, 5))
    delta = {"full": jnp.asarray(goal - np.asarray(large.shared["dense"])[None])}
    moved = large._replace(deltas={"dense": delta})
    for i, alpha in enumerate(np.eye(2)):
        found = pareto.low_rank_mixture(moved, alpha)["dense"]
        np.testing.assert_allclose(found, goal[i], atol=1e-12)


# The source of gradients.


def losses_of(family, alpha, batch):
    """A family that is not linear in alpha."""
    x = jnp.tanh(family["w"] @ alpha) + family["b"] * alpha[0]
    return quadratics(x, batch, jnp.array([1.0, 3.0])), x.sum()


def family_of(seed=0):
    return random_tree(seed, {"w": (4, 2), "b": (4,)})


def test_source_equals_the_derivative_of_the_scalar(x64):
    alphas, _, _ = points_of(3, 3, 2)
    batch = jnp.asarray(np.random.default_rng(4).normal(size=(2, 4)))

    def objective(family, norms):
        losses = jax.vmap(lambda a: losses_of(family, a, batch)[0])(jnp.asarray(alphas))
        balanced = alphas * losses / (norms + 1e-3)
        return balanced.sum() + 0.5 * pareto.multi_forward_penalty(losses, alphas)

    def at_points(family):
        return jax.vmap(lambda a: losses_of(family, a, batch)[0])(jnp.asarray(alphas))

    family, options = family_of(), {"samples": 3, "sampler": alphas, "regularizer": 0.5}
    slopes = jax.jit(jax.jacobian(at_points))(family)
    squares = sum(
        np.square(leaf).reshape(3, 2, -1).sum(-1) for leaf in jax.tree.leaves(slopes)
    )
    options |= {"balance": "gradnorm", "loop": "vmap", "strategy": "vmap"}
    source = source_of(losses_of, 2, True, **options)

    @jax.jit
    def both(family):
        expected = jax.grad(objective)(family, jnp.sqrt(squares))
        return source.update(source.init(family), family, batch), expected

    ((losses, aux), grads, state), expected = both(family)
    chex.assert_trees_all_close(grads, expected, rtol=1e-9)
    assert losses.shape == state.weights.shape == (3, 2) and aux.shape == (3,)


def test_source_of_stacked_members_is_the_member_source(x64):
    members = random_tree(7, {"w": (2, 4)})
    batch = jnp.asarray(np.random.default_rng(4).normal(size=(2, 4)))

    def at_mixture(members, alpha):
        return quadratics(
            pareto.member_mixture(members, alpha)["w"], batch, jnp.array([1.0, 3.0])
        )

    options = {"samples": 2, "balance": "full", "window": 2, "sampler": "grid"}
    one = source_of(at_mixture, 2, loop="vmap", **options)
    two = pareto.value_and_member_grad(
        lambda x: quadratics(x["w"], batch, jnp.array([1.0, 3.0])),
        2,
        loop="vmap",
        **options,
    )

    @jax.jit
    def step(state, members):
        return one.update(state, members), two.update(state, members)

    state = one.init(members)
    chex.assert_trees_all_equal(state.alphas, two.init(members).alphas)
    for _ in range(3):
        found, expected = step(state, members)
        chex.assert_trees_all_close(found[:2], expected[:2], rtol=1e-9)
        state = found[2]


# COSMOS.


def test_cosmos_descends_on_its_objective(x64):
    rays, _, _ = points_of(8, 3, 2)
    batch = jnp.asarray(np.random.default_rng(4).normal(size=(2, 4)))
    family = family_of(2)

    def objective(family):
        def at(ray):
            losses = np.array([1.0, 1.0]) * losses_of(family, ray, batch)[0]
            cosine = losses @ ray / jnp.linalg.norm(losses) / jnp.linalg.norm(ray)
            return losses @ ray - 8 * cosine

        return sum(at(jnp.asarray(ray)) for ray in rays)

    source = source_of(
        losses_of,
        2,
        True,
        loop="vmap",
        samples=3,
        sampler=rays,
        balance=pareto.cosmos_balance(8.0),
    )
    _, grads, _ = jax.jit(source.update)(source.init(family), family, batch)
    chex.assert_trees_all_close(grads, jax.jit(jax.grad(objective))(family), rtol=1e-9)


def test_cosmos_cosine_is_safe():
    slopes = jax.jit(jax.value_and_grad(pareto.cosmos_objective))
    ray = jnp.array([0.25, 0.75])
    for losses in ((0.0, 0.0), (1e30, 3e30), (1e-30, 3e-30), (-1.0, 1.0)):
        value, grads = slopes(jnp.array(losses), ray)
        assert jnp.isfinite(value) and jnp.isfinite(grads).all()
    _, zero = slopes(jnp.zeros(2), jnp.zeros(2))
    np.testing.assert_array_equal(zero, 0)
    # On the ray the cosine is one, and its slope vanishes; the scale does not matter.
    for scale in (1e-30, 1.0, 1e30):
        value, grads = slopes(scale * jnp.array([1.0, 3.0]), ray)
        np.testing.assert_allclose(value, scale * 2.5 - 1, rtol=1e-6)
        np.testing.assert_allclose(grads, ray, rtol=max(1e-6, 1e-6 / scale), atol=1e-6)


def test_rays_as_inputs():
    ray = jnp.array([0.25, 0.75])
    pictures = pareto.append_ray(jnp.ones((2, 3, 3, 1), jnp.bfloat16), ray)
    assert pictures.shape == (2, 3, 3, 3) and pictures.dtype == jnp.bfloat16
    np.testing.assert_array_equal(pictures[1, 2, 0], np.array([1, 0.25, 0.75]))
    rays = pareto.circle_rays()
    assert rays.shape == (11, 2)
    np.testing.assert_allclose(rays.sum(axis=1), 1)
    angles = np.arctan2(rays[:, 1], rays[:, 0])
    np.testing.assert_allclose(angles, np.linspace(0.1, np.pi / 2 - 0.1, 11))


# Errors.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: low_rank(0), "rank must be a Python integer >= 1"),
        (lambda: low_rank(1.5), "rank"),
        (lambda: low_rank(2, num_members=0), "num_members"),
        (lambda: low_rank(2, {"w": jnp.ones(3, int)}), "floating"),
        (lambda: pareto.low_rank_mixture(low_rank(1), [0.5, 0.6]), "simplex"),
        (lambda: pareto.low_rank_mixture(low_rank(1), [1.0]), "shape"),
        (lambda: pareto.cosmos_balance(-1.0), "penalty"),
        (lambda: pareto.cosmos_objective(jnp.ones(2), jnp.ones(3)), "shape"),
        (lambda: pareto.append_ray(jnp.ones(2), jnp.ones(2)), "inputs must have"),
        (lambda: pareto.append_ray(jnp.ones((2, 2)), jnp.ones((2, 2))), "ray"),
        (lambda: pareto.circle_rays(1), "num_points"),
        (lambda: pareto.circle_rays(margin=1.0), "margin"),
        (lambda: source_of(losses_of, 2, balance="epo"), "cosmos_balance"),
        (lambda: source_of(losses_of, 2, samples=0), "samples"),
        (lambda: source_of(losses_of, 2, loop="for"), "loop"),
        (lambda: pareto.evaluate_family(jnp.sum, {}, [[0.5, 0.6]]), "simplex"),
        (lambda: pareto.evaluate_family(jnp.sum, {}, 1.0), "shape"),
    ],
)
def test_errors_name_what_was_found(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def low_rank(rank, params=None, num_members=2):
    params = params_of() if params is None else params
    return pareto.low_rank_members(params, num_members, rank, key=jax.random.key(0))
