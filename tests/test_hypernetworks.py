"""Pareto hypernetworks, EPO weights against SciPy's linear programs, rays as channels."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from mtl_jax import pareto
from mtl_jax.models import RayChannels, as_functional
from mtl_jax.solvers.linear_program import maximise_on_vertices
from tests.helpers import adversarial_jacobians, jacobian_of, slow_but
from tests.references import epo as reference
from tests.references.manifold import quadratics

# EPO search.


def epo_case(seed, num_tasks, balanced):
    rng = np.random.default_rng(seed)
    jacobian = jacobian_of(seed, num_tasks)
    ray = rng.dirichlet(np.ones(num_tasks))
    losses = rng.uniform(0.1, 3, num_tasks)
    if balanced:
        losses = 1 / ray * rng.uniform(0.999, 1.001, num_tasks)
    return jacobian @ jacobian.T, losses, ray


@pytest.mark.parametrize("num_tasks", slow_but([3], [2, 3, 4, 6]))
def test_weights_solve_the_linear_program(x64, num_tasks):
    cases = [epo_case(seed, num_tasks, seed % 2) for seed in range(60)]
    batched = jax.jit(jax.vmap(pareto.epo_weights))
    found = np.asarray(batched(*map(np.stack, zip(*cases, strict=True))))
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)
    modes = []
    for weights, case in zip(found, cases, strict=True):
        expected, (objective, matrix, bounds), mode = reference.weights(*case)
        modes.append(mode)
        scale = np.abs(case[0]).max()
        assert (matrix @ weights >= bounds - 1e-9 * scale).all()
        np.testing.assert_allclose(
            objective @ weights,
            objective @ expected,
            rtol=1e-7,
            atol=1e-9 * np.abs(objective).max(),
        )
    assert {"balance", "descent"} <= set(modes)


def test_closed_forms_of_two_tasks():
    weights = jax.jit(pareto.epo_weights)
    half, ones = jnp.array([0.5, 0.5]), jnp.ones(2)
    # In balance: steepest descent of the sum; equal gradients share.
    np.testing.assert_allclose(
        weights(jnp.diag(jnp.array([1.0, 4.0])), ones, half), [0, 1]
    )
    np.testing.assert_allclose(weights(jnp.ones((2, 2)), ones, half), [0.5, 0.5])
    # Out of balance, orthogonal gradients: descent on the larger alone.
    losses = jnp.array([1.0, 3.0])
    np.testing.assert_allclose(weights(jnp.eye(2), losses, half), [0, 1])
    # What counts is the ray times the losses.
    ray = jnp.array([0.8, 0.2])
    np.testing.assert_allclose(weights(jnp.eye(2), losses, ray), [1, 0])
    # Conflict: loss 2 may rise, but no faster than the direction of balance lets it.
    share, conflict = np.array([0.55, 0.45]), 0.9
    mu = np.sum(share * np.log(2 * share))
    slope = 0.5 * (np.log(2 * share) - mu)
    rise = slope[1] - conflict * slope[0]
    first = (1 - rise) / (1 + conflict)
    gram = jnp.array([[1.0, -conflict], [-conflict, 1.0]])
    expected = [first, 1 - first]
    for scale in (1e-20, 1.0, 1e20):
        found = weights(scale * gram, jnp.array([5.5, 4.5]), half)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("num_tasks", slow_but([3], [1, 2, 3]))
def test_adversarial_weights_are_on_the_simplex(num_tasks):
    every = [jacobian for _, jacobian in adversarial_jacobians()]
    grams = [rows @ rows.T for rows in every if len(rows) == num_tasks]
    losses, rays = np.ones((2, 6, num_tasks))
    losses[1, 0], losses[2], losses[3] = 1e30, 0, -1
    rays[4, 0], rays[5, -1], rays[0] = 0, 1e6, np.arange(1, num_tasks + 1)
    batched = jax.vmap(jax.vmap(pareto.epo_weights, (None, 0, 0)), (0, None, None))
    found = jax.jit(batched)(np.stack(grams).astype("f4"), losses, rays)
    assert found.shape == (len(grams), 6, num_tasks) and (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-5)


def test_weights_in_single_precision():
    """Norms over six decades and strong conflict: near the optimum, and feasible."""
    cases = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        jacobian = jacobian_of(seed, 3) * 10 ** rng.uniform(-3, 3, (3, 1))
        jacobian += rng.choice([-1, 1], (3, 1)) * rng.choice([0, 5]) * jacobian[:1]
        ray, losses = rng.dirichlet(np.ones(3)) + 1e-3, rng.uniform(0.1, 3, 3)
        cases.append(((jacobian @ jacobian.T).astype("f4"), losses, ray / ray.sum()))
    stacked = [np.stack(part).astype("f4") for part in zip(*cases, strict=True)]
    found = np.asarray(jax.jit(jax.vmap(pareto.epo_weights))(*stacked), np.float64)
    for weights, case in zip(found, cases, strict=True):
        expected, (objective, matrix, bounds), _ = reference.weights(*case)
        size = np.abs(objective) @ expected
        assert objective @ weights >= objective @ expected - 1e-2 * size
        slack = matrix @ weights - bounds
        assert (slack >= -1e-4 * (np.abs(matrix) @ weights)).all()


def test_input_that_is_not_finite_gives_the_ray():
    weights = jax.jit(pareto.epo_weights)
    ray, nan = jnp.array([1.0, 3.0]), jnp.nan
    for gram, losses in (
        (nan * jnp.eye(2), jnp.ones(2)),
        (jnp.eye(2), jnp.array([1.0, nan])),
        (jnp.eye(2), jnp.array([jnp.inf, 1.0])),
    ):
        np.testing.assert_allclose(weights(gram, losses, ray), [0.25, 0.75])
    found = weights(jnp.eye(2), jnp.ones(2), jnp.array([nan, 1.0]))
    np.testing.assert_allclose(found, [0.5, 0.5])


def test_epo_search_ends_on_its_ray(x64):
    """On the segment between two centres, loss 1 : loss 2 = (1 : 4), so at a third."""
    centres = jnp.array([[0.0, 0.0], [3.0, 0.0]])
    source = pareto.value_and_family_grad(
        lambda x, ray: quadratics(x, centres, jnp.ones(2)),
        2,
        balance=pareto.epo_balance(),
        sampler=[[0.8, 0.2]],
        strategy="vmap",
        loop="vmap",
    )

    @jax.jit
    def descend(x):
        def step(carry, _):
            x, state = carry
            _, grads, state = source.update(state, x)
            return (x - 0.01 * grads, state), None

        return lax.scan(step, (x, source.init(x)), length=1500)[0][0]

    np.testing.assert_allclose(descend(jnp.array([4.0, 3.0])), [1, 0], atol=0.03)


def test_vertices_of_an_empty_set_are_none():
    objective, ones = jnp.array([1.0, 2.0]), jnp.ones(2)
    bounds = jnp.array([0.7, 0.7])
    found = jax.jit(maximise_on_vertices)(objective, ones, jnp.eye(2), bounds)
    assert not found.ok
    np.testing.assert_allclose(found.value, [0.5, 0.5])


# Hypernetworks.


def target():
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(0.3, 0.1, size=(5, 5, 3, 8)), "f4")
    layer = {"kernel": kernel, "bias": kernel[0, 0, 0]}
    return {"conv": layer, "pair": (kernel[0, 0].astype(jnp.bfloat16), jnp.ones(6))}


def test_generated_networks_look_like_those_drawn():
    params = target()
    hyper = pareto.pareto_hypernetwork(2)
    rays = jnp.array([[0.5, 0.5], [0.1, 0.9]])

    @jax.jit
    def generate(key, params):
        hyper_params = hyper.init(key, params)
        return hyper_params, jax.vmap(hyper.apply, (None, 0))(hyper_params, rays)

    hyper_params, found = generate(jax.random.key(0), params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    count = sum(leaf.size for leaf in jax.tree.leaves(hyper_params))
    assert count == 101 * size + (2 + 1) * 100 + 2 * 101 * 100
    for new, old in zip(*map(jax.tree.leaves, (found, params)), strict=True):
        assert new.shape == (2, *old.shape) and new.dtype == old.dtype
        if old.size > 100:
            np.testing.assert_allclose(new[0].std(), old.std(), rtol=0.1)
            np.testing.assert_allclose(new[0].mean(), old.mean(), rtol=0.1)
            assert jnp.abs(new[0] - new[1]).max() > 1e-3
    np.testing.assert_array_equal(found["pair"][1], 1)


def test_chunks_are_pieces_of_one_matrix():
    params = target()
    hyper = pareto.pareto_hypernetwork(2, hidden=(7, 5), chunk=64)
    hyper_params = jax.jit(hyper.init)(jax.random.key(0), params)
    head = hyper_params["heads"]["conv"]["kernel"]
    assert head["kernel"].shape == (5, 64) and head["gates"].shape == (10, 5)
    assert set(hyper_params["heads"]["conv"]["bias"]) == {"kernel"}
    found = jax.jit(hyper.apply)(hyper_params, jnp.array([0.25, 0.75]))

    layers = jax.tree.map(np.asarray, hyper_params["mlp"])
    x = np.array([0.25, 0.75]) @ layers["dense1"]["kernel"] + layers["dense1"]["bias"]
    x = np.maximum(x, 0) @ layers["dense2"]["kernel"] + layers["dense2"]["bias"]
    pieces = [(np.asarray(gate) * x) @ head["kernel"] for gate in head["gates"]]
    expected = np.concatenate(pieces)[:600].reshape(5, 5, 3, 8)
    expected = expected + np.asarray(hyper_params["bias"]["conv"]["kernel"])
    np.testing.assert_allclose(found["conv"]["kernel"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_hypernetwork_learns_the_front():
    """Quadratics: the front is the segment between the centres, at alpha by weights."""
    centres = jnp.array([[1.0, 0.0, 1.0], [-1.0, 2.0, 0.0]])
    hyper = pareto.pareto_hypernetwork(2, hidden=(20, 20))
    source = pareto.value_and_family_grad(
        lambda family, ray: quadratics(hyper.apply(family, ray), centres, jnp.ones(2)),
        2,
        samples=2,
        loop="vmap",
    )
    optimizer = optax.adam(3e-3)

    @jax.jit
    def train(family):
        def step(carry, _):
            family, state, opt_state = carry
            _, grads, state = source.update(state, family)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(family, updates), state, opt_state), None

        start = family, source.init(family), optimizer.init(family)
        return lax.scan(step, start, length=1500)[0][0]

    family = train(hyper.init(jax.random.key(0), jnp.zeros(3)))
    rays = pareto.circle_rays(5)
    found = pareto.evaluate_family(hyper.apply, family, rays)
    np.testing.assert_allclose(found, rays @ np.asarray(centres), atol=0.05)


# Rays as channels.


def test_learnt_channels():
    model, ray = as_functional(RayChannels()), jnp.array([0.25, 0.75])
    x = jax.random.normal(jax.random.key(0), (3, 20, 30, 1))
    params, state = model.init(jax.random.key(1), (x, ray))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 52 * 2**2
    found, _ = model.apply(params, state, (x, ray))
    chex.assert_shape(found, (3, 20, 30, 3))
    np.testing.assert_array_equal(found[..., :1], x)
    channels = np.asarray(found[..., 1:])
    np.testing.assert_array_equal(channels[0], channels[1])
    # 10x10 pixels, each repeated 2x3 times; none negative, not all alike.
    small = channels[0, ::2, ::3]
    assert small.shape == (10, 10, 2) and (small >= 0).all() and small.std() > 0
    np.testing.assert_array_equal(
        small.repeat(2, axis=0).repeat(3, axis=1), channels[0]
    )


# Errors.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: pareto.epo_weights(jnp.eye(2), jnp.ones(3), jnp.ones(2)),
            "losses and",
        ),
        (lambda: pareto.epo_weights(jnp.eye(7), jnp.ones(7), jnp.ones(7)), "up to 6"),
        (lambda: pareto.epo_balance(0.0), "tolerance"),
        (lambda: pareto.pareto_hypernetwork(0), "num_tasks"),
        (lambda: pareto.pareto_hypernetwork(2, hidden=()), "one width or more"),
        (lambda: pareto.pareto_hypernetwork(2, hidden=(0,)), "hidden"),
        (lambda: pareto.pareto_hypernetwork(2, chunk=0), "chunk"),
        (lambda: pareto.pareto_hypernetwork(2, spread=1.5), "spread"),
        (lambda: small_hypernetwork([0.5, 0.6]), "simplex"),
        (lambda: small_hypernetwork([1.0]), "shape"),
        (lambda: small_hypernetwork([1.0, 0.0], {}), "no leaves"),
        (
            lambda: as_functional(RayChannels()).init(
                jax.random.key(0), (jnp.ones((2, 3)), jnp.ones(2))
            ),
            "pair of pictures",
        ),
    ],
)
def test_errors_name_what_was_found(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def small_hypernetwork(ray, params=None):
    hyper = pareto.pareto_hypernetwork(2, hidden=(3,))
    params = jnp.ones(2) if params is None else params
    return hyper.apply(hyper.init(jax.random.key(0), params), ray)
