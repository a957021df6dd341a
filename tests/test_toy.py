"""The two-dimensional problem against an independent float64 reference."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_jax.data import TOY_STARTS, toy_losses, toy_pareto_set

coordinates = st.floats(-10, 10, width=32)


def reference(x, y, scale=0.1):
    """Nash-MTL's released problem, with its sign of h in the second log."""
    h = math.tanh(-y)
    f1 = math.log(max(abs(0.5 * (-x - 7) - h), 5e-6)) + 6
    f2 = math.log(max(abs(0.5 * (-x + 3) + h + 2), 5e-6)) + 6
    q1 = ((-x + 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    q2 = ((-x - 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    c1, c2 = max(math.tanh(0.5 * y), 0), max(math.tanh(-0.5 * y), 0)
    return scale * (f1 * c1 + q1 * c2), f2 * c1 + q2 * c2


@given(x=coordinates, y=coordinates, scale=st.sampled_from([0.1, 1.0]))
def test_losses_equal_the_reference(x, y, scale):
    with jax.enable_x64(True):
        losses = toy_losses(jnp.array([x, y]), scale)
        assert losses.dtype == jnp.float64
        np.testing.assert_allclose(losses, reference(x, y, scale), atol=1e-10)


def test_float32_stays_float32():
    losses = jax.jit(jax.vmap(toy_losses))(TOY_STARTS)
    assert losses.dtype == jnp.float32
    exact = [reference(*map(float, start)) for start in TOY_STARTS]
    np.testing.assert_allclose(losses, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("theta", [(-8.5, 7.5), (9.0, -1.0), (3.0, 0.25), (-2.0, -6.0)])
def test_gradients_equal_central_differences(x64, theta):
    jacobian = jax.jacobian(toy_losses)(jnp.array(theta))
    for axis in range(2):
        step = 1e-6 * np.eye(2)[axis]
        above, below = (reference(*(theta + s)) for s in (step, -step))
        slope = np.subtract(above, below) / 2e-6
        np.testing.assert_allclose(jacobian[:, axis], slope, rtol=1e-6, atol=1e-7)


def test_gradient_at_the_kink_counts_both_branches(x64):
    # tanh(y/2) and tanh(-y/2) have slopes +-1/2 at 0, and torch.clamp passes both
    jacobian = jax.jacobian(toy_losses)(jnp.zeros(2))
    q = (49 + 6.4) / 10 - 20
    f = math.log(3.5) + 6
    np.testing.assert_allclose(
        jacobian, [[0, 0.1 * (f - q) / 2], [0, (f - q) / 2]], atol=1e-12
    )


def test_inside_the_log_clamp_the_losses_are_flat_and_finite(x64):
    y = 5.0
    theta = jnp.array([-7 - 2 * math.tanh(-y), y])  # zero of the first argument
    losses, jacobian = toy_losses(theta), jax.jacobian(toy_losses)(theta)
    expected = 0.1 * math.tanh(2.5) * (math.log(5e-6) + 6)
    assert losses[0] == pytest.approx(expected)
    assert jacobian[0, 0] == 0 and jnp.isfinite(jacobian).all()


def test_pareto_set_ends_and_stationarity(x64):
    points = jnp.asarray(toy_pareto_set(29))
    np.testing.assert_allclose(points[jnp.array([0, -1]), 0], [-7, 7])
    losses = jax.vmap(lambda theta: toy_losses(theta, 1.0))(points)
    np.testing.assert_allclose(losses[0], [-0.398, -19.989], atol=1e-3)
    np.testing.assert_allclose(losses[-1], [-19.989, -0.398], atol=1e-3)
    # at x the weights ((7 + x)/14, (7 - x)/14) balance the gradients
    jacobians = jax.vmap(jax.jacobian(lambda theta: toy_losses(theta, 1.0)))(points)
    first = (7 + points[:, 0]) / 14
    weights = jnp.stack([first, 1 - first], axis=1)
    residual = jnp.einsum("nt,ntp->np", weights, jacobians)
    np.testing.assert_allclose(residual, 0, atol=5e-3)
    assert (jnp.diff(losses[:, 0]) < 0).all() and (jnp.diff(losses[:, 1]) > 0).all()


def test_no_drawn_point_is_far_above_the_exact_set(x64):
    """Newton's method finds the exact set; the figure's straight line is close."""

    @jax.jit
    def newton_step(theta, weights):
        def scalar(theta):
            return weights @ toy_losses(theta, 1.0)

        return theta - jnp.linalg.solve(
            jax.hessian(scalar)(theta), jax.grad(scalar)(theta)
        )

    for first in (0.0, 0.2, 0.5, 0.9, 1.0):
        theta = jnp.array([14 * first - 7, -8.4])
        for _ in range(20):
            theta = newton_step(theta, jnp.array([first, 1 - first]))
        np.testing.assert_allclose(theta[0], 14 * first - 7, atol=1e-9)
        assert -8.4345 <= theta[1] <= -8.3551
        drawn = toy_losses(jnp.array([theta[0], -8.3552]), 1.0)
        assert (drawn - toy_losses(theta, 1.0)).max() < 1e-4
