"""Values of the memoryless Gramian methods: goldens, closed forms, exact references.

All of them run in one program on one batch of Gramians, in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtl_jax
from mtl_jax import Statistics, solvers
from tests.helpers import adversarial_jacobians, slow_but
from tests.references import cone as cone_reference
from tests.references import nash as nash_reference
from tests.references import rules

TWO = np.array([[-4.0, 1, 1], [6, 1, 1]])
THREE = np.array([[1.0, 2, 0, -1], [-2, 1, 0.5, 0], [0.5, -0.5, 3, 1]])
RNG = np.random.default_rng(1)
RANDOM = [
    RNG.normal(size=(3, 4)) * 10 ** RNG.uniform(-2, 2, size=(3, 1)) for _ in range(20)
]
STATIONARY = np.array([[1.0, 0, 0, 0], [-2, 0, 0, 0], [0, 0, 0, 0]])
# Two tasks are three of which one has no gradient.
PADDED = np.pad(TWO, ((0, 1), (0, 1)))
JACOBIANS = np.array([PADDED, THREE, STATIONARY, *RANDOM])
ADVERSARIAL = np.array([j for _, j in adversarial_jacobians(4) if len(j) == 3])
ALPHAS = (0.5, 1, 2, 5)
CALLS = (
    "dualproj",
    "dualproj(preference=(0.5, 0, 1))",
    "config",
    "krum",
    "krum(num_selected=2)",
    *(f"fairgrad(alpha={alpha})" for alpha in ALPHAS),
)


@functools.cache
def weights_of_all():
    """Weights ``(B, 3)`` by call."""
    weightings = {call: mtl_jax.build_weighting(call, 3) for call in CALLS}

    def all_of(gram):
        return {
            call: w.update(Statistics(gram), w.init())[0]
            for call, w in weightings.items()
        }

    with jax.enable_x64(True):
        rows = np.concatenate([JACOBIANS, ADVERSARIAL])
        grams = jnp.asarray(rows @ rows.transpose(0, 2, 1))
        return jax.tree.map(np.asarray, jax.jit(jax.vmap(all_of))(grams))


def updates(call):
    return np.einsum("bt,btp->bp", weights_of_all()[call][: len(JACOBIANS)], JACOBIANS)


@pytest.mark.parametrize("call", CALLS)
def test_nothing_breaks_on_adversarial_gradients(call):
    weights = weights_of_all()[call][len(JACOBIANS) :]
    assert len(weights) >= 9 and np.isfinite(weights).all()
    assert np.isfinite(np.einsum("bt,btp->bp", weights, ADVERSARIAL)).all()


GOLDEN_UPDATES = {
    # TorchJD's (0.5563, 1.1109, ...) contains its 1e-4; a third per task here, not a half.
    "dualproj": np.array([5, 10, 10]) / 9 * 2 / 3,
    "config": (0.158809, 2.070607, 2.070607),
    "fairgrad(alpha=1)": (0.076584, 0.998533, 0.998533),
    "fairgrad(alpha=2)": np.array([0.471363, 0.319454]) @ TWO,
}
GOLDEN_WEIGHTS = {
    "config": (1.159114, 1.004969, 0.876208),
    "fairgrad(alpha=0.5)": (0.594023, 0.575370, 0.486782),
    "fairgrad(alpha=1)": (0.453325, 0.436436, 0.342681),
    "fairgrad(alpha=5)": (0.261164, 0.251112, 0.172636),
}


@pytest.mark.parametrize("call", GOLDEN_UPDATES)
def test_golden_updates_and_a_zero_gradient(call):
    np.testing.assert_allclose(updates(call)[0, :3], GOLDEN_UPDATES[call], atol=2e-6)
    assert call == "dualproj" or weights_of_all()[call][0, 2] == 0


@pytest.mark.parametrize("call", GOLDEN_WEIGHTS)
def test_golden_weights(call):
    np.testing.assert_allclose(
        weights_of_all()[call][1], GOLDEN_WEIGHTS[call], atol=2e-6
    )


def test_the_update_vanishes_where_the_gradients_cancel():
    for call in ("dualproj", "config", "fairgrad(alpha=1)", "fairgrad(alpha=2)"):
        # FairGrad's weights grow to 1e5; its ridge leaves about their inverse.
        np.testing.assert_allclose(updates(call)[2], 0, atol=1e-3, err_msg=call)


def test_dualproj_and_config_equal_exact_references():
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    for i, jacobian in enumerate(JACOBIANS[3:], 3):
        scale = np.linalg.norm(jacobian, axis=1).max()
        expected = cone_reference.weights(jacobian, np.full(3, 1 / 3)) @ jacobian
        close(updates("dualproj")[i], expected, atol=1e-9 * scale)
        lower = np.array([0.5, 0, 1])
        expected = cone_reference.weights(jacobian, lower) @ jacobian
        close(updates(CALLS[1])[i], expected, atol=1e-9 * scale)
        close(updates("config")[i], rules.config(jacobian), atol=1e-9 * scale)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_fairgrad_solves_its_equation(alpha):
    for i in (1, *range(3, len(JACOBIANS))):
        jacobian = JACOBIANS[i]
        weights = weights_of_all()[f"fairgrad(alpha={alpha})"][i]
        products = jacobian @ (jacobian.T @ weights)
        np.testing.assert_allclose(products * weights ** (1 / alpha), 1, rtol=1e-7)
        if alpha == 1:
            np.testing.assert_allclose(
                weights, nash_reference.weights(jacobian), rtol=1e-6
            )


def test_krum_equals_the_distances_themselves():
    """With three tasks each has one neighbour, so the closest two share the score."""
    for i, jacobian in enumerate(JACOBIANS[3:], 3):
        pair = rules.krum(jacobian, 0, 2)
        found = weights_of_all()
        np.testing.assert_allclose(found["krum"][i], pair, atol=1e-12)
        np.testing.assert_allclose(found["krum(num_selected=2)"][i], pair, atol=1e-12)


@pytest.mark.parametrize(("faulty", "selected"), [(0, 1), (1, 2), (2, 3)])
def test_krum_leaves_out_the_faulty(faulty, selected):
    jacobian = np.random.default_rng(faulty).normal(size=(7, 4))
    jacobian[:faulty] *= 1e6
    weighting = mtl_jax.weighting.krum(7, num_faulty=faulty, num_selected=selected)
    gram = jnp.asarray(jacobian @ jacobian.T, jnp.float32)
    weights, _ = weighting.update(Statistics(gram), weighting.init())
    np.testing.assert_allclose(
        weights, rules.krum(jacobian, faulty, selected), atol=1e-6
    )
    assert not np.asarray(weights[:faulty]).any()


def test_krum_with_norms_near_the_end_of_float32():
    rows = np.random.default_rng(3).normal(size=(7, 4))
    weighting = mtl_jax.weighting.krum(7, num_faulty=2, num_selected=3)
    weights_of = jax.jit(lambda gram: weighting.update(Statistics(gram), ())[0])
    for scale in (1.0, 1.3e38):
        gram = jnp.asarray(scale * (rows @ rows.T) / np.square(rows).sum(1).max(), "f4")
        expected = rules.krum(rows, 2, 3)
        np.testing.assert_allclose(weights_of(gram), expected, atol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        "fairgrad(alpha=0)",
        "dualproj(preference=(1, 2))",
        "dualproj(preference=(0, 0, 0))",
        "config(preference=(1, 1e400, 1))",
        "krum(num_faulty=1)",
        "krum(num_selected=4)",
        "krum(num_selected=0)",
        "trimmed_mean(trim=2)",
        "trimmed_mean(trim=0.5)",
        "gradvac(beta=2)",
        "pcd(tau=(0.1, 0.1, 0.1))",
        "pcd(tau=2)",
        "pcd(primary=3)",
        "stch(mu=0)",
        "stch(form='soft')",
        "stch(preference=(1, 1, 1))",
        "stch(form='plain', preference=(1, -1, 1))",
        "stch(window=9, warmup=3)",
        "imtl_l(learning_rate=-1)",
        "famo(weight_decay=-1)",
        "pbi(theta=-1)",
        "pbi(preference=(0, 0, 0))",
        "pbi(preference=(1, -1, 1))",
        "modo(gamma=-1)",
        "sdmgrad(momentum=1)",
        "sdmgrad(steps=0)",
        "moco(beta=2)",
        "db_mtl(beta=-0.1)",
        "db_mtl(beta=1)",
        "excess_mtl(eta=-1)",
        "auto_lambda(primary=(1, 2))",
        "auto_lambda(primary=(0, 0, 0))",
        "moml(learning_rate=-1)",
    ],
)
def test_bad_hyper_parameters_are_refused_at_construction(call):
    with pytest.raises(ValueError) as error:
        mtl_jax.build(call, 3)
    assert "\n" not in str(error.value)


def test_pcd_meets_its_constraints_with_more_tasks_than_dimensions():
    """Gradients of a half-space: there is always a step with the share asked of all."""
    rng = np.random.default_rng(0)
    weighting = mtl_jax.weighting.pcd(8, tau=0.5)
    units = rng.standard_normal((100, 8, 3))
    units[..., 0] = np.abs(units[..., 0]) + 0.1
    units /= np.linalg.norm(units, axis=2, keepdims=True)

    @jax.jit
    @jax.vmap
    def first_weights(gram):
        return weighting.update(Statistics(gram), weighting.init())[0]

    grams = jnp.asarray(units @ units.swapaxes(1, 2), jnp.float32)
    weights = np.asarray(first_weights(grams), float)
    shares = weights / weights[:, :1]
    nearest = np.einsum("bt,btp->bp", shares, units)
    slack = np.einsum("btp,bp->bt", units, nearest)[:, 1:] - 0.5
    slack /= 1 + np.linalg.norm(nearest, axis=1, keepdims=True)
    # Float32 tells no gradient from the span of others it is nearer to than this.
    assert slack.min() > -2e-3
    # Only tasks whose constraint binds add to the primary gradient.
    assert shares.min() >= 0 and np.abs(slack * shares[:, 1:]).max() < 1e-3
    assert (shares[:, 1:] > 0.01).sum(1).max() == 3


def test_projection_on_the_simplex():
    rng = np.random.default_rng(0)
    project = jax.jit(jax.vmap(solvers.project_on_simplex))
    points = np.vstack([rng.normal(size=(20, 4)), 1e20 * rng.normal(size=(3, 4))])
    found = np.asarray(project(jnp.asarray(points, jnp.float32)))
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
    for point, projected in zip(points[:20], found, strict=False):
        np.testing.assert_allclose(
            projected, rules.project_on_simplex(point), atol=2e-6
        )


# -- the solver of FairGrad ------------------------------------------------------------


@functools.cache
def fair_solver(num_tasks, dtype):
    """``(grams (B, T, T), alphas (B,))`` -> solutions; compiled once per size and dtype."""
    del num_tasks, dtype
    return jax.jit(jax.vmap(lambda gram, alpha: solvers.fair_weights(gram, alpha)))


@pytest.mark.parametrize(
    ("num_tasks", "dtype"),
    slow_but(
        [(4, "float32")],
        [(t, d) for t in (2, 4, 12, 40) for d in ("float32", "float64")],
    ),
)
def test_fair_weights_on_families(num_tasks, dtype):
    """Random, conflicting and badly scaled gradients, alpha from 0.2 to 5."""
    rng = np.random.default_rng(num_tasks)
    cases, alphas = [], []
    for alpha in (0.2, 0.5, 0.999, 1, 2, 3, 5):
        for spread, shared in ((0, 0), (2, 0), (1, -0.9), (1, 2), (4, 0.3)):
            rows = rng.normal(size=(num_tasks, 2 * num_tasks))
            rows = rows + shared * rows.mean(0)
            cases.append(rows * 10 ** rng.uniform(-spread, spread, (num_tasks, 1)))
            alphas.append(alpha)
    with jax.enable_x64(dtype == "float64"):
        jacobians = np.asarray(cases, dtype).astype(np.float64)
        grams = jnp.asarray(jacobians @ jacobians.transpose(0, 2, 1), dtype)
        solution = fair_solver(num_tasks, dtype)(grams, jnp.asarray(alphas, dtype))
        weights = np.asarray(solution.value, np.float64)
    assert solution.ok.all(), np.array(alphas)[~np.asarray(solution.ok)]
    assert solution.iterations.max() <= 60
    # Backward errors: where products cancel, a Gramian determines no weights more closely.
    wanted = weights ** (-1 / np.array(alphas))[:, None]
    grams = jacobians @ jacobians.transpose(0, 2, 1)
    residual = np.einsum("bts,bs->bt", grams, weights) - wanted
    terms = np.einsum("bts,bs->bt", np.abs(grams), weights) + wanted
    error = np.abs(residual / terms).max()
    assert error < (1e-6 if dtype == "float32" else 1e-14) * num_tasks, error


def test_fair_weights_too_small_for_the_dtype_do_not_stop_the_others():
    """With alpha 20 a weight falls to 500^-20; the others are those without that task."""
    jacobian = np.eye(4)
    jacobian[1, :2] = 1e3 * np.array([0.5, 0.75**0.5])
    jacobian[2] *= 2
    jacobian[3, [0, 3]] = 1e3 * np.array([0.5, 0.75**0.5])
    gram = jnp.asarray(jacobian @ jacobian.T, jnp.float32)
    solution = fair_solver(4, "float32")(
        jnp.tile(gram, (35, 1, 1)), jnp.full(35, 20, jnp.float32)
    )
    assert solution.ok.all()
    weights = np.asarray(solution.value)[0]
    np.testing.assert_allclose(weights[[0, 2]], [1, 2 ** (-40 / 21)], rtol=1e-5)
    assert (weights[[1, 3]] < 1e-25).all()


def test_fair_weights_are_finite_where_there_is_no_solution():
    a, b = np.random.default_rng(0).normal(size=(2, 9))
    rows = [
        np.array([a, -a, b, 0 * a]),
        np.array([a, a, a, a]),
        np.array([a, b, -0.3 * a - 0.6 * b, 2 * a]),
        1e15 * np.array([a, -a, b, b]),
        np.zeros((4, 9)),
        np.full((4, 9), np.nan),
    ]
    jacobians = np.array([r for r in rows for _ in ALPHAS], np.float32)
    grams = jnp.asarray(jacobians @ jacobians.transpose(0, 2, 1))
    padded = jnp.pad(grams, ((0, 35 - len(grams)), (0, 0), (0, 0)))
    alphas = jnp.tile(jnp.asarray(ALPHAS, jnp.float32), 9)[:35]
    solution = fair_solver(4, "float32")(padded, alphas)
    weights = np.asarray(solution.value)[: len(grams)]
    assert np.isfinite(weights).all() and (weights >= 0).all()
    np.testing.assert_array_equal(weights[-4:], 1)  # not a number
    assert not solution.ok[len(grams) - 4 : len(grams)].any()
