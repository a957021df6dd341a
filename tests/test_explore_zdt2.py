"""Study explore, problem zdt2: published counters, exact tangents, records, messages."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtl_jax
from experiments import explore_zdt2_plot
from experiments.__main__ import main
from experiments.explore_zdt2 import front_excess
from experiments.explore_zdt2_expand import SHRINK, STILL, correct
from mtl_jax.data.zdt2 import zdt2_losses, zdt2_sample
from mtl_jax.pareto import stationarity


def explore(*options):
    return main(["explore", "--config", "explore_zdt2", *map(str, options)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The run of the committed configuration."""
    path = tmp_path_factory.mktemp("explore") / "run"
    assert explore("--out", path) == 0
    return path


def test_records_and_pictures(folder):
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "summary.json", "figure_2.npz", "figure_3.npz"),
        *("figure_2.png", "figure_3.png"),
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["problem"] == "zdt2" and config["versions"]["jax"]
    before = (folder / "figure_3.png").read_bytes()
    assert before.startswith(b"\x89PNG")
    assert explore_zdt2_plot.draw(folder) == [
        folder / "figure_2.png",
        folder / "figure_3.png",
    ]
    assert (folder / "figure_3.png").read_bytes() == before


def test_tangents_are_exact_after_two_iterations(folder):
    facts = json.loads((folder / "summary.json").read_text())["figure_2"]
    # Values of the sheet for seed 42.
    np.testing.assert_allclose(
        facts["point"], [-3.53573649, -1.68814502, 0.54014723], atol=1e-8
    )
    np.testing.assert_allclose(facts["losses"], [0.30799109, 0.90514149], atol=1e-8)
    np.testing.assert_allclose(facts["alpha"], [0.3811813, 0.6188187], atol=1e-7)
    for part in ("one_point", "supplement"):
        # the supplement has points where the gradients nearly vanish
        assert facts[part]["tangent_error_max"] < 1e-9
        assert facts[part]["gap_tangents_max"] < 1e-9
        assert facts[part]["iterations"] == [2]
        assert facts[part]["gap_gradient_1_max"] > 0.1
        assert facts[part]["gap_gradient_2_max"] > 0.1
    assert facts["spent"]["gradients"] == 45 and facts["spent"]["hvps"] == 90


def test_expansion_costs_what_was_published(folder):
    results = json.loads((folder / "summary.json").read_text())["figure_3"]
    ours, baseline = results["minres"], results["weighted_sum"]
    assert ours["expand"] == {"functions": 0, "gradients": 50, "hvps": 200}
    assert ours["optimise"] == {"functions": 100, "gradients": 100, "hvps": 0}
    assert baseline["expand"] == {"functions": 0, "gradients": 50, "hvps": 0}
    # Each count of the baseline depends on the last bit of many line searches.
    assert baseline["optimise"]["functions"] == pytest.approx(20_713, rel=0.05)
    assert baseline["optimise"]["gradients"] == pytest.approx(2_084, rel=0.05)
    assert ours["archive_points"] == baseline["archive_points"] == 110
    assert ours["gap_explored"]["max"] < 1e-9
    assert baseline["gap_explored"]["mean"] == pytest.approx(0.239, abs=0.01)
    assert ours["hypervolume_archive"] == pytest.approx(0.50687, abs=1e-4)
    assert baseline["hypervolume_archive"] == pytest.approx(0.49917, abs=2e-3)
    assert results["exact_hypervolume"] == pytest.approx(0.54333, abs=1e-5)
    assert ours["unconverged_corrections"] == baseline["unconverged_corrections"] == 0


def reference_correction(point):
    """The corrector in plain Python, one line search after the other."""
    task_grads = jax.jit(mtl_jax.value_and_task_grads(zdt2_losses))
    functions = gradients = 0
    while True:
        losses, grads = map(np.asarray, task_grads(point))
        functions, gradients = functions + 1, gradients + 1
        direction = -np.asarray(stationarity(jnp.asarray(grads)).value) @ grads
        norm = np.linalg.norm(direction)
        if norm < STILL:
            return point, functions, gradients
        eta = 1.0
        while True:
            functions += 1
            if (np.asarray(zdt2_losses(point + eta * direction)) <= losses).all():
                break
            eta *= SHRINK
        point = point + eta * direction
        if eta * norm < STILL:
            return point, functions, gradients


def test_corrector_is_descent_with_backtracking(x64):
    point = np.asarray(zdt2_sample(3)) + np.array([0.0, 0.1, -0.05])
    result = jax.jit(correct)(point)
    end, functions, gradients = reference_correction(point)
    np.testing.assert_allclose(result.point, end, atol=1e-6)
    assert bool(result.done) and gradients > 3
    assert int(result.functions) == pytest.approx(functions, abs=3)
    assert int(result.gradients) == pytest.approx(gradients, abs=1)
    before, after = zdt2_losses(point), zdt2_losses(result.point)
    assert (after <= before).all()
    assert front_excess(np.asarray(after)) < 1e-3 < front_excess(np.asarray(before))


def test_corrector_stays_on_the_front(x64):
    point = zdt2_sample(0)
    result = jax.jit(correct)(point)
    np.testing.assert_array_equal(result.point, point)
    assert (int(result.functions), int(result.gradients)) == (1, 1)


@pytest.mark.parametrize(
    "options, message",
    [
        (("--maxiter", "0"), "maxiter must be >= 1, got 0"),
        (("--children", "0"), "children must be >= 1"),
        (("--line-points", "1"), "line_points must be >= 2"),
        (("--step-size", "0"), "step_size must be positive"),
        (("--damping", "-1"), "damping must be >= 0"),
        (("--tol", "nan"), "tol must be >= 0 and finite"),
        (("--momentum", "1"), "momentum must lie in [0, 1)"),
        (("--seeds", "0", "-1"), "seeds must be one or more integers >= 0"),
        (("--seeds",), "seeds must be one or more integers >= 0"),
        (("--ablation", "0"), "ablation must hold counts >= 1"),
        (("--starts", "0"), "starts must be >= 1"),
        (("--config", "explore_nothing"), "unknown configuration 'explore_nothing'"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, options, message):
    out = tmp_path / "run"
    assert explore("--out", out, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not out.exists()
