"""Accuracy of the Gramian methods: exact float64 references, closed forms, goldens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtl_jax
from tests.helpers import slow_but
from tests.references import methods as references
from tests.references.simplex import well_posed_problems

EXACT = ["mgda", "cagrad", "imtl_g", "nash_mtl", "upgrad", "aligned_mtl"]
PROBLEMS = list(well_posed_problems())


@functools.cache
def jitted(call, num_tasks, dtype):
    """The first update; ``dtype`` keeps 32- and 64-bit compilations apart."""
    tx = mtl_jax.build(call, num_tasks)
    params = jnp.zeros(0, dtype)
    losses = jnp.ones(num_tasks, dtype)
    return jax.jit(lambda g: tx.update(g, tx.init(params), params, losses=losses))


def update_and_weights(call, jacobian, dtype=jnp.float32):
    run = jitted(call, len(jacobian), jnp.dtype(dtype).name)
    update, state = run(jnp.asarray(jacobian, dtype))
    return np.asarray(update, np.float64), np.asarray(optax.tree.get(state, "weights"))


def check_against_reference(name, dtype, tolerance):
    for problem, jacobian in PROBLEMS:
        jacobian = np.asarray(jacobian, dtype).astype(np.float64)
        # Columns of zeros change nothing, and one width for each T saves compilations.
        missing = 4 * len(jacobian) + 3 - jacobian.shape[1]
        jacobian = np.pad(jacobian, ((0, 0), (0, missing)))
        if "zero-row" in problem and name in ("mgda", "cagrad"):
            continue  # see test_a_zero_gradient_is_pareto_stationary
        if "widely" in problem and name == "aligned_mtl":
            continue  # NumPy's singular values are not accurate over 1e12
        expected = getattr(references, name)(jacobian)
        update, _ = update_and_weights(name, jacobian, dtype)
        error = np.linalg.norm(update - expected) / np.linalg.norm(expected)
        assert error <= tolerance, f"{problem}: {error}"


@pytest.mark.parametrize("name", EXACT)
def test_float32_updates_equal_exact_references(name):
    """1e-4: a float32 Gramian of T = 40 rows determines the update to about 1e-6."""
    check_against_reference(name, jnp.float32, 1e-4)


@pytest.mark.parametrize("name", slow_but((), EXACT))
def test_float64_updates_equal_exact_references(name, x64):
    del x64
    check_against_reference(name, jnp.float64, 1e-8)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    slow_but([], [("float32", 1e-4), ("float64", 1e-8)]),
)
def test_pcgrad_replays_the_published_loop(dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        for problem, jacobian in PROBLEMS:
            jacobian = np.asarray(jacobian, dtype).astype(np.float64)
            num_tasks = len(jacobian)
            _, draw = jax.random.split(jax.random.key(0))
            orders = np.stack(
                [
                    jax.random.permutation(key, num_tasks)
                    for key in jax.random.split(draw, num_tasks)
                ]
            )
            expected = references.pcgrad(jacobian, orders)
            update, _ = update_and_weights("pcgrad", jacobian, dtype)
            size = np.linalg.norm(jacobian, axis=1).sum()  # terms may cancel
            assert np.linalg.norm(update - expected) <= tolerance * size, problem


def test_a_zero_gradient_is_pareto_stationary():
    rows = np.random.default_rng(0).normal(size=(3, 6))
    rows[1] = 0
    update, weights = update_and_weights("mgda", rows)
    np.testing.assert_array_equal(update, np.zeros(6))
    np.testing.assert_array_equal(weights, [0, 1, 0])
    # The dual of CAGrad ignores the task, which still counts in the mean gradient.
    update, weights = update_and_weights("cagrad(c=0.4)", rows)
    pull = update - rows.mean(axis=0)
    length = 0.4 * np.linalg.norm(rows.mean(axis=0))
    np.testing.assert_allclose(np.linalg.norm(pull), length, rtol=1e-5)
    np.testing.assert_allclose(weights[1], 1 / 3, rtol=1e-6)
    for name in ("nash_mtl", "imtl_g"):
        update, weights = update_and_weights(name, rows)
        assert weights[1] == 0
        alone, _ = update_and_weights(name, rows[[0, 2]])
        np.testing.assert_allclose(update, alone, rtol=1e-5)


OPPOSED = np.array([[2.0, 0.0], [-1.0, 0.0]])


@pytest.mark.parametrize(
    "call", ["mgda", "nash_mtl", "upgrad", "cagrad(c=1.0)", "imtl_g"]
)
def test_opposed_gradients_stop(call):
    """The documented limit at a Pareto-stationary point: no update."""
    update, _ = update_and_weights(call, OPPOSED)
    # Nash-MTL's weights grow to about 1e3 here; their products cancel to rounding.
    np.testing.assert_allclose(update, 0, atol=2e-4 if call == "nash_mtl" else 1e-6)


def test_imtl_g_at_a_stationary_point_takes_the_vanishing_combination():
    _, weights = update_and_weights("imtl_g", np.array([[1.0, 0.0], [-10.0, 0.0]]))
    np.testing.assert_allclose(weights, [10 / 11, 1 / 11], rtol=1e-5)


def test_imtl_g_of_negative_sum_rises_unless_told_to_descend():
    # The third gradient lies between the others and is short: its weight is negative.
    rows = np.array([[1.0, 0, 0], [0, 1, 0], [0.01, 0.01, 0.01]])
    update, weights = update_and_weights("imtl_g", rows)
    assert weights.sum() == pytest.approx(1, abs=1e-4) and (rows @ update < 0).all()
    down, weights = update_and_weights("imtl_g(descent=True)", rows)
    assert weights.sum() == pytest.approx(-1, abs=1e-4)
    np.testing.assert_allclose(down, -update, rtol=1e-5)
    cosines = rows @ down / np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(cosines, cosines[0], rtol=1e-3)
    call, _ = update_and_weights("imtl_g(descent=True)", THREE)  # of positive sum
    np.testing.assert_allclose(call, update_and_weights("imtl_g", THREE)[0], rtol=1e-6)


# J = [[-4, 1, 1], [6, 1, 1]] and a full-rank 3 x 4 one, from the literature's test suites
# and independent float64 computations.
TWO = np.array([[-4.0, 1, 1], [6, 1, 1]])
THREE = np.array([[1.0, 2, 0, -1], [-2, 1, 0.5, 0], [0.5, -0.5, 3, 1]])
GOLDEN_UPDATES = {
    "nash_mtl": (0.076584, 0.998533, 0.998533),
    "nash_mtl(max_norm=1.0)": (0.054153, 0.706069, 0.706069),
    "imtl_g": (0.076697, 1, 1),
    "mgda": (0, 1, 1),
    "pcgrad": (0.584795, 3.801170, 3.801170),
    "aligned_mtl": (0.213279, 0.967333, 0.967333),
    "aligned_mtl(scale='rmse')": (0.576376, 2.614172, 2.614172),
    "cagrad(c=1.0)": (0, 2, 2),
}
GOLDEN_WEIGHTS = {
    "nash_mtl": (0.453325, 0.436436, 0.342681),
    "imtl_g": (0.381251, 0.330550, 0.288199),
    "mgda": (0.386207, 0.372414, 0.241379),
    # Only the first and third conflict, <g1, g3> = -1.5, |g1|^2 = 6, |g3|^2 = 10.5.
    "upgrad": ((1 + 1.5 / 6) / 3, 1 / 3, (1 + 1.5 / 10.5) / 3),
    "aligned_mtl": (0.342412, 0.333333, 0.264569),
    "cagrad(c=0.5)": (0.559285, 0.539311, 0.349553),
}


@pytest.mark.parametrize("call", GOLDEN_UPDATES)
def test_golden_updates(call):
    update, _ = update_and_weights(call, TWO)
    np.testing.assert_allclose(update, GOLDEN_UPDATES[call], atol=2e-6)


@pytest.mark.parametrize("call", GOLDEN_WEIGHTS)
def test_golden_weights(call):
    _, weights = update_and_weights(call, THREE)
    np.testing.assert_allclose(weights, GOLDEN_WEIGHTS[call], atol=2e-6)


def test_upgrad_golden_without_the_regulariser():
    """TorchJD's (0.292902, 1.900352, ...) contains its 1e-4; exactly it is PCGrad / 2."""
    update, _ = update_and_weights("upgrad", TWO)
    np.testing.assert_allclose(
        update, np.array(GOLDEN_UPDATES["pcgrad"]) / 2, atol=2e-6
    )


def two_tasks(a, b, c):
    """Gradients of norms a, b at cosine c."""
    return np.array([[a, 0.0], [b * c, b * np.sqrt(1 - c**2)]])


@pytest.mark.parametrize("c", [-0.9, -0.3, 0.0, 0.5, 0.95])
@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (1e-3, 1.0), (3.0, 0.2)])
def test_two_task_closed_forms(a, b, c):
    jacobian = two_tasks(a, b, c)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4)
    _, nash = update_and_weights("nash_mtl", jacobian)
    close(nash, np.array([1 / a, 1 / b]) / np.sqrt(1 + c))
    _, imtl = update_and_weights("imtl_g", jacobian)
    close(imtl, np.array([b, a]) / (a + b))
    _, mgda = update_and_weights("mgda", jacobian)
    first = np.clip((b**2 - a * b * c) / (a**2 + b**2 - 2 * a * b * c), 0, 1)
    close(mgda, [first, 1 - first], atol=1e-6)
    _, pcgrad = update_and_weights("pcgrad", jacobian)
    surgery = (1 - b * c / a, 1 - a * c / b) if c < 0 else (1, 1)
    close(pcgrad, surgery)
    _, upgrad = update_and_weights("upgrad", jacobian)
    close(2 * upgrad, surgery)


def test_nash_closed_forms_in_many_dimensions():
    rng = np.random.default_rng(0)
    lengths = np.array([0.1, 1.0, 3.0, 10.0])
    _, weights = update_and_weights("nash_mtl", np.diag(lengths))
    np.testing.assert_allclose(weights, 1 / lengths, rtol=1e-5)
    same = np.tile(rng.normal(size=6), (4, 1))
    _, weights = update_and_weights("nash_mtl", same)
    np.testing.assert_allclose(weights, 0.5 / np.linalg.norm(same[0]), rtol=1e-5)
    jacobian = rng.normal(size=(4, 9))
    update, weights = update_and_weights("nash_mtl", jacobian)
    np.testing.assert_allclose(np.linalg.norm(update), 2, rtol=1e-5)  # sqrt(T)
    np.testing.assert_allclose(jacobian @ update, 1 / weights, rtol=1e-4)


def test_cagrad_limits():
    jacobian = np.random.default_rng(1).normal(size=(4, 9))
    mean = jacobian.mean(axis=0)
    plain, weights = update_and_weights("cagrad(c=0.0)", jacobian)
    np.testing.assert_allclose(plain, mean, rtol=1e-5)
    np.testing.assert_allclose(weights, 0.25, rtol=1e-6)
    for c in (0.2, 0.9):
        update, _ = update_and_weights(f"cagrad(c={c})", jacobian)
        distance = np.linalg.norm(update - mean) / np.linalg.norm(mean)
        np.testing.assert_allclose(distance, c, rtol=1e-4)
    one, _ = update_and_weights("cagrad(c=0.4)", jacobian)
    for rescale, factor in (("quadratic", 1.16), ("linear", 1.4)):
        call = f"cagrad(c=0.4, rescale='{rescale}', reduction='sum')"
        other, _ = update_and_weights(call, jacobian)
        np.testing.assert_allclose(other, 4 * one / factor, rtol=1e-5)


def test_aligned_has_equal_singular_values():
    jacobian = np.random.default_rng(2).normal(size=(3, 7))
    smallest = np.linalg.svd(jacobian, compute_uv=False).min()
    rows = []
    for task in np.eye(3).tolist():
        call = f"aligned_mtl(preference={tuple(task)})"
        rows.append(update_and_weights(call, jacobian)[0])
    np.testing.assert_allclose(
        np.linalg.svd(rows, compute_uv=False), smallest, rtol=1e-5
    )
    orthonormal = np.linalg.qr(np.random.default_rng(3).normal(size=(7, 3)))[0].T
    update, _ = update_and_weights("aligned_mtl", orthonormal)
    np.testing.assert_allclose(update, orthonormal.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_graddrop_expectation_and_agreement():
    jacobian = np.array([[1.0, 2.0, -3.0, 0.0], [-1.0, 1.0, -1.0, 0.0]])
    tx = mtl_jax.graddrop(2)
    state, params, updates = tx.init(jnp.zeros(4)), jnp.zeros(4), []
    move = jax.jit(lambda s: tx.update(jnp.asarray(jacobian, jnp.float32), s, params))
    for _ in range(400):
        update, state = move(state)
        updates.append(np.asarray(update))
    updates = np.stack(updates)
    # Agreement passes untouched; +1 against -1 is a fair coin.
    np.testing.assert_array_equal(updates[:, 1:], np.tile([3.0, -4.0, 0.0], (400, 1)))
    assert set(updates[:, 0]) == {-1.0, 1.0}
    assert abs(updates[:, 0].mean()) < 0.15  # three standard deviations


def test_normalised_mgda_weights_are_equal_for_two_tasks():
    """With unit gradients the min-norm point of two tasks is their middle."""
    _, weights = update_and_weights(
        "mgda(normalization='l2')", two_tasks(5.0, 0.1, 0.3)
    )
    np.testing.assert_allclose(weights, 0.5, rtol=1e-6)
