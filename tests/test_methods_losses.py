"""Replays of the loss-driven rules in plain NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtl_jax
from mtl_jax import Statistics

LOSSES = np.abs(np.random.default_rng(0).normal(1, 0.5, size=(12, 3))) + 0.1
GRAM = np.diag([1.0, 6.0, 9.0])  # no norm equals their mean: no ties in |.|


def run(call, losses=LOSSES, gram=GRAM):
    weighting = mtl_jax.build_weighting(call, 3)
    gram = jnp.asarray(gram)

    def step(state, row):
        weights, state = weighting.update(Statistics(gram, row), state)
        return state, weights

    state, weights = jax.lax.scan(step, weighting.init(), jnp.asarray(losses))
    return np.asarray(weights), state


def adam(gradients, rate):
    """Positions after Adam steps from zero; ``gradients(x, step)``."""
    x = m = v = np.zeros(3)
    positions = [x]
    for step in range(1, len(LOSSES)):
        g = gradients(x, step - 1)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        move = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        x = x - rate * move
        positions.append(x)
    return np.stack(positions)


def test_si_is_the_inverse_loss(x64):
    del x64
    weights, _ = run("si(weights=(1, 2, 3))")
    np.testing.assert_allclose(weights, np.array([1, 2, 3]) / LOSSES, rtol=1e-12)


def test_si_falls_back_on_losses_that_have_no_logarithm():
    weights, state = run("si", np.array([[1.0, -1.0, 2.0], [1.0, 2.0, 4.0]]))
    np.testing.assert_allclose(weights, [[1, 1, 1], [1, 0.5, 0.25]])
    assert int(state.fallbacks) == 1


def test_uw_follows_adam_on_the_log_variances(x64):
    del x64
    weights, _ = run("uw(learning_rate=0.1)")
    s = adam(lambda s, i: 0.5 * (1 - np.exp(-s) * LOSSES[i]), 0.1)
    np.testing.assert_allclose(weights, 0.5 * np.exp(-s), rtol=1e-9)


def test_uw_settles_at_the_loss():
    """The minimiser over s is exp(s) = L: weights 1 / (2 L)."""
    constant = np.tile([0.5, 1.0, 2.0], (2000, 1))
    weights, _ = run("uw", constant[:1500])
    np.testing.assert_allclose(weights[-1], 0.5 / constant[0], rtol=1e-3)


@pytest.mark.parametrize("name", ["uw", "imtl_l"])
def test_learned_scales_do_not_overflow_at_zero_losses(name):
    """exp(s) with s moving by one in every step would be infinite after 89 steps."""
    losses = np.tile([0.0, 1.0, -1.0], (100, 1))
    weights, state = run(f"{name}(learning_rate=1)", losses)
    assert np.isfinite(weights).all() and 1e12 < weights[-1].max() < 1e13
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("average", ["block", "sliding"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_dwa_replays_the_rule(average, reduction, x64):
    del x64
    window = 2
    weights, _ = run(f"dwa(window=2, average={average!r}, reduction={reduction!r})")
    for step in range(len(LOSSES)):
        seen = step if average == "sliding" else step - step % window
        expected = np.ones(3)
        if seen >= 2 * window:
            newer = LOSSES[seen - window : seen].mean(axis=0)
            older = LOSSES[seen - 2 * window : seen - window].mean(axis=0)
            scores = np.exp(newer / older / 2.0)
            expected = 3 * scores / scores.sum()
        factor = 1 if reduction == "sum" else 1 / 3
        np.testing.assert_allclose(weights[step], factor * expected, rtol=1e-10)


def test_dwa_constant_losses_give_ones():
    weights, _ = run("dwa(window=1)", np.tile([0.5, 2.0, 7.0], (6, 1)))
    np.testing.assert_allclose(weights, 1, rtol=1e-6)


def test_gradnorm_replays_the_rule(x64):
    del x64
    norms = np.sqrt(np.diag(GRAM))
    weights, _ = run("gradnorm(learning_rate=0.05, parametrization='softmax')")

    def gradient(s, i):
        soft = np.exp(s) / np.exp(s).sum()
        w = 3 * soft
        progress = LOSSES[i] / LOSSES[0]
        target = (w * norms).mean() * (progress / progress.mean()) ** 1.5
        outer = np.sign(w * norms - target) * norms
        return 3 * (soft * outer - soft * (soft @ outer))

    logits = adam(gradient, 0.05)
    expected = 3 * np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weights, expected, rtol=1e-8)


def test_gradnorm_balances_norms_at_equal_rates():
    """Equal training rates: the weighted norms become equal."""
    for kind in ("direct", "softmax"):
        weights, _ = run(
            f"gradnorm(learning_rate=0.01, parametrization={kind!r})",
            np.ones((1200, 3)),
        )
        products = weights[-1] * np.sqrt(np.diag(GRAM))
        np.testing.assert_allclose(products / products.mean(), 1, atol=0.03)
        np.testing.assert_allclose(weights.sum(axis=1), 3, rtol=1e-5)


def test_rlw_stays_on_the_simplex_and_is_fair():
    for distribution in ("normal", "dirichlet"):
        weights, _ = run(f"rlw(distribution={distribution!r})", np.ones((600, 3)))
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
        assert weights.min() >= 0
        np.testing.assert_allclose(weights.mean(axis=0), 1 / 3, atol=0.05)
