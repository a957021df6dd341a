"""A few hundred of the fuzz's Gramians, and that its residuals see wrong weights."""

import numpy as np
import pytest

from experiments import bench_fuzz, fuzz_gramians, fuzz_residuals
from tests.references import cone as cone_reference
from tests.references import methods as references
from tests.references import nash as nash_reference
from tests.references import simplex as simplex_reference

NUM_TASKS = 5


@pytest.fixture(scope="module")
def found():
    return bench_fuzz.fuzz(300, 30, 1, {3: 1.0})


def test_counts_cover_every_method_and_family(found):
    results, total = found
    assert total == 300
    assert set(results) == set(bench_fuzz.METHODS) == set(bench_fuzz.TOLERANCES)
    for row in results.values():
        assert set(row["families"]) == set(fuzz_gramians.FAMILIES)


def test_no_method_fails(found):
    for name, row in found[0].items():
        assert row["non_finite"] == 0, name
        assert row["over_tolerance"] == 0, (name, row)
        assert row["fallbacks"] <= 3, (name, row)
        well_posed = row["families"]["random"]
        assert well_posed["fallbacks"] == 0, name
        assert well_posed["worst"] < 1e-4, (name, well_posed)


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
}


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


def test_gramians_cover_the_scales():
    rng = np.random.default_rng(0)
    for family in fuzz_gramians.FAMILIES:
        grams = fuzz_gramians.gramians(rng, family, 200, 3)
        assert grams.shape == (200, 3, 3) and grams.dtype == np.float32
        norms = np.sqrt(np.einsum("bii->bi", grams.astype(float)))
        assert np.isfinite(norms).all()
        present = norms[norms > 0]
        assert present.min() < 1e-10 and present.max() > 1e10
