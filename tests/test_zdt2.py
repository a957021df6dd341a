"""The variant of ZDT2: its losses, its Pareto set, and the closed forms on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.data import zdt2_front, zdt2_losses, zdt2_pareto_point, zdt2_sample
from tests.references import zdt2 as reference

SAMPLES = np.stack([zdt2_sample(seed) for seed in range(10)])


@functools.cache
def derivatives():
    """Losses, Jacobian and Hessians of many points, compiled once."""
    both = (zdt2_losses, jax.jacobian(zdt2_losses), jax.hessian(zdt2_losses))
    return jax.jit(jax.vmap(lambda x: tuple(f(x) for f in both)))


def test_losses_equal_the_reference(x64):
    points = np.random.default_rng(0).uniform(-6, 6, (10, 3))
    losses, _, _ = derivatives()(jnp.asarray(points))
    assert losses.dtype == jnp.float64
    expected = [reference.losses(x) for x in points]
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-13)


def test_float32_stays_float32():
    losses = zdt2_losses(jnp.asarray(SAMPLES[0], jnp.float32))
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, reference.losses(SAMPLES[0]), atol=1e-5)


def test_sample_is_the_published_start(x64):
    x = zdt2_sample(42)
    np.testing.assert_allclose(x, [-3.53573649, -1.68814502, 0.54014723], atol=1e-8)
    np.testing.assert_allclose(
        zdt2_losses(jnp.asarray(x)), [0.30799109, 0.90514149], atol=1e-8
    )
    on_front = reference.on_front(x)
    np.testing.assert_allclose(on_front.alpha, [0.3811813, 0.6188187], atol=1e-7)
    eigenvalues = np.linalg.eigvalsh(on_front.hessian)
    np.testing.assert_allclose(eigenvalues, [-0.28856, 0, 35.0228], atol=1e-4)


def test_samples_do_not_depend_on_the_global_generator():
    state = np.random.get_state()[1].copy()
    np.testing.assert_array_equal(zdt2_sample(3), SAMPLES[3])
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert ((SAMPLES[:, 0] > -1.5 * np.pi) & (SAMPLES[:, 0] < -np.pi / 2)).all()


def test_closed_forms_on_the_front(x64):
    losses, jacobians, hessians = derivatives()(jnp.asarray(SAMPLES))
    np.testing.assert_allclose(losses[:, 1], 1 - losses[:, 0] ** 2, atol=1e-14)
    for x, jacobian, hessian in zip(SAMPLES, jacobians, hessians, strict=True):
        exact = reference.on_front(x)
        np.testing.assert_allclose(jacobian, exact.gradients, atol=1e-13)
        np.testing.assert_allclose(exact.alpha @ exact.gradients, 0, atol=1e-15)
        combined = np.einsum("t,tij->ij", exact.alpha, hessian)
        np.testing.assert_allclose(combined, exact.hessian, atol=1e-12)
        inertia = np.sign(np.linalg.eigvalsh(exact.hessian).round(9))
        np.testing.assert_array_equal(inertia, [-1, 0, 1])
        null = np.array([0, -x[2], x[1]])
        np.testing.assert_allclose(exact.hessian @ null, 0, atol=1e-13)


@pytest.mark.parametrize("beta", [(1, 0), (0, 1), (0.3, -2)])
def test_tangent_is_the_first_axis_and_stays_on_the_front(x64, beta):
    for x in SAMPLES:
        exact, v = reference.on_front(x), reference.tangent(x, beta)
        rhs = np.asarray(beta) @ exact.gradients
        np.testing.assert_allclose(exact.hessian @ v, rhs, atol=1e-13)
        least = np.linalg.lstsq(exact.hessian, rhs, rcond=1e-12)[0]
        np.testing.assert_allclose(v, least, atol=1e-10 * abs(v[0]))
    along = SAMPLES + np.linspace(-0.1, 0.1, 10)[:, None] * np.eye(3)[0]
    losses, _, _ = derivatives()(jnp.asarray(along))
    np.testing.assert_allclose(losses[:, 1], 1 - losses[:, 0] ** 2, atol=1e-12)


def test_no_point_lies_below_the_front(x64):
    points = np.random.default_rng(1).uniform(-6, 6, (2000, 3))
    losses = jax.jit(jax.vmap(zdt2_losses))(jnp.asarray(points))
    gap = losses[:, 1] - (1 - losses[:, 0] ** 2)
    assert gap.min() > -1e-14
    assert ((losses[:, 0] >= 0) & (losses[:, 0] <= 1)).all()


def test_pareto_points_are_on_the_front(x64):
    front = zdt2_front(11)
    x1 = np.arcsin(2 * front[:, 0] - 1) - np.pi
    points = jax.vmap(zdt2_pareto_point)(jnp.asarray(x1), jnp.linspace(0, 6, 11))
    assert points.dtype == jnp.float64
    np.testing.assert_allclose(jax.vmap(zdt2_losses)(points), front, atol=1e-14)
    radius = jnp.hypot(points[:, 1], points[:, 2])
    np.testing.assert_allclose(radius, np.sqrt(np.pi), rtol=1e-14)
    assert zdt2_pareto_point(jnp.float32(-3), 0).dtype == jnp.float32


@pytest.mark.parametrize("shape", [(2,), (4, 3), ()])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"shape \(3,\), got .*: use jax.vmap"):
        zdt2_losses(jnp.zeros(shape))
