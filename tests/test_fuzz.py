"""A few hundred of the fuzz's Gramians, and that its residuals see wrong weights."""

import numpy as np
import pytest

import mtl_jax
from experiments import bench_fuzz, fuzz_gramians, fuzz_residuals, fuzz_rules
from tests.helpers import slow_but
from tests.references import cone as cone_reference
from tests.references import methods as references
from tests.references import nash as nash_reference
from tests.references import simplex as simplex_reference

NUM_TASKS = 5


# Compiling takes most of the time: by default those whose solvers can fail.
SOLVERS = ("mgda", "cagrad", "imtl_g", "nash_mtl", "upgrad", "aligned_mtl", "fairgrad")
SOLVERS += ("config", "pcd")
OTHERS = tuple(name for name in bench_fuzz.METHODS if name not in SOLVERS)


def test_every_gramian_method_is_judged():
    names = {
        name
        for name, spec in mtl_jax.METHODS.items()
        if "gram" in spec.needs and spec.weighting is not None
    }
    assert names == set(bench_fuzz.RESIDUALS) == set(bench_fuzz.TOLERANCES)


@pytest.mark.parametrize("kind", slow_but(("solvers",), ("solvers", "others")))
def test_no_method_fails(kind):
    methods = SOLVERS if kind == "solvers" else OTHERS
    results, total = bench_fuzz.fuzz(300, 30, 1, {3: 1.0}, methods)
    assert total == 300
    assert set(results) == set(methods)
    for name, row in results.items():
        assert set(row["families"]) == set(fuzz_gramians.FAMILIES)
        assert row["non_finite"] == 0, name
        assert row["over_tolerance"] == 0, (name, row)
        assert row["fallbacks"] <= 3, (name, row)
        assert row["unchecked"] <= 210, (name, row)
        well_posed = row["families"]["random"]
        assert well_posed["fallbacks"] == 0, name
        limit = 6e-3 if name in ("auto_lambda", "moml") else 1e-4
        assert well_posed["worst"] < limit, (name, well_posed)


def problem(seed=0):
    jacobian = np.random.default_rng(seed).normal(size=(NUM_TASKS, 12))
    jacobian -= 0.7 * jacobian.mean(0)
    jacobian *= 10.0 ** np.arange(NUM_TASKS)[:, None]
    return jacobian, fuzz_residuals.scaled((jacobian @ jacobian.T)[None])


def weights_of(jacobian, update):
    return np.linalg.lstsq(jacobian.T, update, rcond=None)[0]


EXACT = {
    "mgda": simplex_reference.min_norm_point,
    "nash_mtl": nash_reference.weights,
    "imtl_g": lambda jacobian: weights_of(jacobian, references.imtl_g(jacobian)),
    "aligned_mtl": lambda jacobian: weights_of(
        jacobian, references.aligned_mtl(jacobian)
    ),
    "dualproj": lambda jacobian: cone_reference.weights(
        jacobian, np.full(NUM_TASKS, 1 / NUM_TASKS)
    ),
    "config": lambda jacobian: weights_of(jacobian, config(jacobian)),
    "fairgrad": lambda jacobian: fair(jacobian, 2.0),
}


def config(jacobian):
    """From the gradients themselves, as the released code."""
    units = jacobian / np.linalg.norm(jacobian, axis=1, keepdims=True)
    best = np.linalg.pinv(units) @ np.ones(len(units))
    best = best / np.linalg.norm(best)
    return (jacobian @ best).sum() * best


def fair(jacobian, alpha):
    """Minimises the convex potential of the equation by Newton's method, backtracking."""
    gram, q = jacobian @ jacobian.T, 1 / alpha
    weights = 1 / np.diag(gram) ** (1 / (1 + q))

    def potential(w):
        return w @ gram @ w / 2 - np.sum(w ** (1 - q)) / (1 - q)

    for _ in range(200):
        slope = gram @ weights - weights**-q
        step = -np.linalg.solve(gram + np.diag(q * weights ** (-q - 1)), slope)
        size = min(1, 0.9 / max(np.max(-step / weights), 0.9))
        wanted = potential(weights)
        while size > 1e-6 and potential(weights + size * step) > wanted + 1e-14:
            size /= 2
        weights = weights + size * step
    return weights


@pytest.mark.parametrize("name", EXACT)
def test_residuals_are_small_at_the_reference_only(name):
    jacobian, scaled = problem()
    weights = EXACT[name](jacobian)
    residual = bench_fuzz.RESIDUALS[name]
    # The ridge that the default nash_mtl documents shifts the optimum by 1e-12.
    assert residual(scaled, weights[None])[0] < 1e-7
    wrong = weights * (1 + 0.1 * np.arange(NUM_TASKS))
    tolerance = bench_fuzz.TOLERANCES[name]
    assert residual(scaled, wrong[None])[0] > 2 * tolerance


def test_upgrad_residual_judges_each_projection():
    jacobian, scaled = problem()
    rows = np.stack(
        [cone_reference.weights(jacobian, row) for row in np.eye(NUM_TASKS) / NUM_TASKS]
    )
    assert fuzz_residuals.upgrad(scaled, rows[None])[0] < 1e-7
    least = np.eye(NUM_TASKS) / NUM_TASKS  # on the bounds: some products are negative
    assert fuzz_residuals.upgrad(scaled, least[None])[0] > 0.1
    below = np.where(np.eye(NUM_TASKS), rows * 0.9, rows)
    assert fuzz_residuals.upgrad(scaled, below[None])[0] > 0.01


def test_cagrad_residual_judges_the_gap_and_the_ball():
    from tests.references import cagrad as cagrad_reference

    jacobian, scaled = problem()
    dual = cagrad_reference.weights_by_bisection(jacobian, 0.4)
    mean, combined = jacobian.mean(0), dual @ jacobian
    pull = 0.4 * np.linalg.norm(mean) / np.linalg.norm(combined) * dual

    def residual(pull, dual):
        weights = 1 / NUM_TASKS + pull
        return fuzz_residuals.cagrad(scaled, weights[None], dual[None])[0]

    assert residual(pull, dual) < 1e-7
    assert residual(0.9 * pull, dual) > 0.05  # inside the ball
    assert residual(1.1 * pull, dual) > 0.05  # outside
    other = np.full(NUM_TASKS, 1 / NUM_TASKS)
    assert residual(pull, other) > 0.05  # no certificate


def test_pcd_residual_judges_the_conditions_and_the_length():
    """Two tasks in closed form: the primary gradient, lifted to the share asked for."""
    jacobian = np.array([[3.0, 4.0], [-4.0, -2.0]])
    scaled = fuzz_residuals.scaled((jacobian @ jacobian.T)[None])
    cosine = scaled.cosines[0, 0, 1]
    z = np.array([1, 0.02 - cosine])
    size = (z @ scaled.cosines[0] @ z) ** 0.5
    weights = z / scaled.norms[0] * scaled.norms[0, 0] / size

    def residual(*weights):
        return fuzz_residuals.pcd(scaled, np.array([weights]))[0]

    assert residual(*weights) < 1e-12
    assert residual(1, 0) > 0.1  # the constraint is violated
    assert residual(*(weights * [1, 1.5])) > 0.1  # more than asked for
    assert residual(*(1.1 * weights)) > 0.05
    assert residual(0, 0) == np.inf
    alone = fuzz_residuals.scaled(np.zeros((1, 1, 1)))
    assert fuzz_residuals.pcd(alone, np.ones((1, 1)))[0] == 0


def test_residuals_of_rules_judge_them():
    jacobian, scaled = problem()
    gram, ones = jacobian @ jacobian.T, np.ones(NUM_TASKS)
    rates = gram.sum(1) / np.linalg.norm(gram.sum(1))
    direction = (rates - rates.mean()) / NUM_TASKS
    logits = np.exp(direction / (np.abs(direction) + 1e-3))
    exact = {
        "auto_lambda": logits / logits.sum(),
        "gradnorm": ones,
        "krum": np.eye(NUM_TASKS)[0],  # the shortest: norms are 1 to 1e4
        "modo": np.eye(NUM_TASKS)[np.argmin(gram.sum(1))],
        "sdmgrad": (np.eye(NUM_TASKS)[0] + 0.3 / NUM_TASKS) / 1.3,
    }
    for name, weights in exact.items():
        judge, tolerance = bench_fuzz.RESIDUALS[name], bench_fuzz.TOLERANCES[name]
        assert judge(scaled, weights[None])[0] < tolerance / 10, name
        wrong = 0.9 * weights + 0.1 * np.eye(NUM_TASKS)[-1] * (name != "sdmgrad")
        assert judge(scaled, wrong[None])[0] > 2 * tolerance or name == "gradnorm"
    assert fuzz_rules.gradnorm(scaled, 1.01 * ones[None])[0] > 5e-3
    pair = fuzz_residuals.scaled(np.array([[[1.0, -0.5], [-0.5, 1.0]]]))
    assert fuzz_rules.pcgrad(pair, np.array([[1.5, 1.5]]))[0] < 1e-12
    assert fuzz_rules.pcgrad(pair, np.array([[1.0, 1.0]]))[0] > 0.1
    # Of opposed tasks float32 does not tell in which direction their sum is.
    opposed = fuzz_residuals.scaled(1e12 * np.array([[[1.0, -1.0], [-1.0, 1.0]]]))
    assert fuzz_rules.modo(opposed, np.array([[1.0, 0.0]]))[0] < 1e-9
    # Orthogonal tasks of one length: all rows are alike but for the task's own place,
    # and their hull holds zero.
    even = fuzz_residuals.scaled(np.eye(3)[None])
    assert fuzz_rules.moml(even, np.full((1, 3), 1 / 3))[0] < 1e-9
    assert fuzz_rules.moml(even, np.array([[0.5, 0.3, 0.2]]))[0] > 1e-4


def test_gramians_cover_the_scales():
    rng = np.random.default_rng(0)
    for family in fuzz_gramians.FAMILIES:
        grams = fuzz_gramians.gramians(rng, family, 200, 3)
        assert grams.shape == (200, 3, 3) and grams.dtype == np.float32
        norms = np.sqrt(np.einsum("bii->bi", grams.astype(float)))
        assert np.isfinite(norms).all()
        present = norms[norms > 0]
        assert present.min() < 1e-10 and present.max() > 1e10
