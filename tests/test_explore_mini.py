"""Study explore, problem mini_mnist: front, lines, residuals, records, messages."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import explore_mini, explore_mini_plot
from experiments.__main__ import main
from experiments.explore import ExploreConfig
from experiments.explore_mini_front import (
    MiniProblem,
    empirical_front,
    kept_points,
    make_problem,
)
from experiments.explore_mini_lines import Lines, chain, quality
from experiments.explore_mini_solver import iterations_until

STEPS, RATE, MAXITER = 30, 0.1, 20


class Bowls(NamedTuple):
    """Two quadratic losses in place of the network: curvatures and centres (2, P)."""

    curvatures: jax.Array
    centres: jax.Array


def bowl_losses(x, bowls):
    return 0.5 * (bowls.curvatures * jnp.square(x[None] - bowls.centres)).sum(1)


def bowl_problem(size=12):
    rng = np.random.default_rng(0)
    # Alike and not round, so that gradients point away from the straight Pareto set.
    steep = np.geomspace(0.2, 5, size)
    bowls = Bowls(
        jnp.asarray(np.stack([steep, 1.5 * steep]), jnp.float32),
        jnp.asarray(rng.normal(size=(2, size)), jnp.float32),
    )
    return MiniProblem(bowl_losses, bowls, np.zeros(size, np.float32), "bowls")


def bowl_front(problem, first):
    """Pareto points ``(Σ α_i A_i)^-1 Σ α_i A_i c_i`` and their losses."""
    curvatures, centres = (np.asarray(part, np.float64) for part in problem.data)
    first = np.asarray(first)[:, None]
    weighted = np.stack([first * curvatures[:1], (1 - first) * curvatures[1:]])
    points = (weighted * centres[:, None]).sum(0) / weighted.sum(0)
    losses = 0.5 * (curvatures * (points[:, None] - centres[None]) ** 2).sum(-1)
    return points, losses


def explore(*options):
    return main(["explore", "--config", "explore_mini_mnist", *map(str, options)])


def bowl_study(path, *more):
    """The study on quadratics; returns the problem and the exit code."""
    problem = bowl_problem()
    options = ["--front-weights", 5, "--front-limits", 0, 99, 0, 99, "--steps", STEPS]
    options += ["--learning-rate", RATE, "--maxiter", MAXITER, "--tol", 1e-6]
    options += ["--line-points", 21, "--line-reach", 0.2]
    options += ["--residual-points", 2, "--residual-maxiter", 25]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explore_mini, "make_problem", lambda config: problem)
        return problem, explore("--out", path, *options, *more)


@pytest.fixture(scope="module")
def bowls(tmp_path_factory):
    """The problem, and the folder of its records."""
    path = tmp_path_factory.mktemp("explore") / "run"
    problem, code = bowl_study(path)
    assert code == 0
    return problem, path


def load(path, name):
    with np.load(path / f"{name}.npz") as saved:
        return dict(saved)


def test_records_and_pictures(bowls):
    _, path = bowls
    assert {each.name for each in path.iterdir()} == {
        *("config.json", "summary.json", "front.npz", "minima.npz", "lines.npz"),
        *("residuals.npz", "figure_4.png", "residuals.png"),
    }
    before = (path / "figure_4.png").read_bytes()
    assert before.startswith(b"\x89PNG")
    assert explore_mini_plot.draw(path)[0].read_bytes() == before


def test_empirical_front_is_the_known_one(bowls):
    problem, path = bowls
    front, params = load(path, "front"), load(path, "minima")["params"]
    points, losses = bowl_front(problem, front["weights"])
    np.testing.assert_allclose(params, points, atol=3e-3)
    np.testing.assert_allclose(front["losses"], losses, atol=1e-2)
    np.testing.assert_array_equal(front["kept"], [4, 3, 2, 1, 0])  # by loss 1
    facts = json.loads((path / "summary.json").read_text())["front"]
    assert facts["weights"] == facts["kept"] == 5
    assert facts["weights_in_the_paper"] == 101
    spent = facts["spent"]
    assert spent["gradients"] == sum(spent["evaluations_per_weight"]) > 20


def test_minima_of_an_earlier_run_are_kept(bowls, tmp_path, capsys):
    problem, path = bowls
    config = ExploreConfig(front_weights=5, front_limits=(0, 99, 0, 99), resume=True)
    with np.load(path / "minima.npz") as saved:
        first = {name: array[:3] for name, array in saved.items()}
    first["params"] += 1  # what was found before is not sought again
    np.savez(tmp_path / "minima.npz", **first)
    front = empirical_front(problem, config, tmp_path)
    np.testing.assert_array_equal(front.params[:3], first["params"])
    after = load(path, "minima")["params"][3:]
    np.testing.assert_array_equal(front.params[3:], after)
    (tmp_path / "minima.npz").write_bytes(b"PK cut off")
    with pytest.raises(ValueError, match=r"minima\.npz is damaged: delete it"):
        empirical_front(problem, config, tmp_path)
    # other settings than those of the run there
    assert bowl_study(path, "--front-weights", 6, "--resume")[1] == 2
    assert "front_weights: 5 there, 6 now" in capsys.readouterr().err


def test_tangent_lines_follow_the_front_and_others_leave_it(bowls):
    problem, path = bowls
    _, front = bowl_front(problem, np.linspace(1, 0, 41))
    summary = json.loads((path / "summary.json").read_text())["lines"]
    lines = {name: Lines(each, 0, {}) for name, each in load(path, "lines").items()}
    assert list(lines) == list(summary) == list(explore_mini_plot.LOOKS)
    # without the ends, beyond which there is no front to follow
    inner = {
        name: Lines(each.losses[1:4], 0 if "descent" in name else 10, {})
        for name, each in lines.items()
    }
    ratios = {
        name: quality(each, front)["distance_per_reach"] for name, each in inner.items()
    }
    tangents = ratios.pop("MINRES")
    assert tangents < 0.01 and min(ratios.values()) > 3 * tangents, (tangents, ratios)
    kept = load(path, "front")["losses"][[4, 3, 2, 1, 0]]
    for name, each in inner.items():
        starts = each.losses[:, each.origin]
        np.testing.assert_allclose(starts, kept[1:4], rtol=1e-5, err_msg=name)


def test_descent_takes_the_published_steps_and_counts_are_exact(bowls):
    problem, path = bowls
    x = load(path, "minima")["params"][3]  # second of the kept ones
    curvatures, centres = (np.asarray(part) for part in problem.data)
    for t in range(1, STEPS + 1):
        x = x - RATE / np.sqrt(t) * curvatures[1] * (x - centres[1])
    expected = bowl_losses(jnp.asarray(x), problem.data)
    descent = load(path, "lines")["descent on loss 2"]
    assert descent.shape == (5, STEPS + 1, 2)
    np.testing.assert_allclose(descent[1, -1], expected, rtol=1e-4)
    lines = json.loads((path / "summary.json").read_text())["lines"]
    spent = lines["descent on loss 2"]["spent"]
    assert spent["gradients"] == 5 * STEPS and spent["functions"] == 5 * (STEPS + 1)
    spent = lines["MINRES"]["spent"]
    assert spent["gradients"] == 5 and spent["functions"] == 5 * 21
    assert 5 <= spent["hvps"] <= 5 * MAXITER


def test_residuals_fall_and_scipy_agrees(bowls):
    curves = load(bowls[1], "residuals")["residuals"]
    assert curves.shape == (2, 26)
    np.testing.assert_allclose(curves[:, 0], 1)
    assert (np.diff(curves) <= 1e-6).all() and (curves[:, -1] < 1e-4).all()
    summary = json.loads((bowls[1] / "summary.json").read_text())
    assert summary["residuals"]["negative_curvature"] == [False, False]
    for way in summary["solver"]["ways"].values():
        assert way["hvps"] == MAXITER and way["relative_difference"] < 1e-3


def test_iterations_until():
    curves = np.array([[1.0, 0.6, 0.4, 0.1], [1.0, 0.9, 0.8, 0.7]])
    assert iterations_until(curves, 0.5) == [2, None]


def test_kept_points_are_inside_not_dominated_and_in_order():
    losses = np.array([[1.5, 0.6], [0.2, 2.0], [1.6, 0.7], [0.1, 3.0], [0.5, 1.0]])
    np.testing.assert_array_equal(kept_points(losses, (0, 2, 0.5, 2.5)), [1, 4, 0])
    with pytest.raises(ValueError, match="0 points of the empirical front lie within"):
        kept_points(losses, (5, 6, 5, 6))


def test_quality_of_known_lines():
    front = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert chain(front).shape == (65, 2)
    along = np.array([[[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]])
    found = quality(Lines(along, 1, {}), front)
    assert found["front_distance"] == 0 and found["dominated"] == 0
    away = np.array([[[1.0, 0.0], [1.5, 0.5], [2.0, 1.0]]])
    found = quality(Lines(away, 0, {}), front)
    assert found["dominated"] == pytest.approx(2 / 3, abs=1e-3)
    assert found["distance_per_reach"] == pytest.approx(1)
    better = quality(Lines(front[None] - 0.25, 0, {}), front)
    assert better["dominating"] == 1 and better["dominated"] == 0


@pytest.mark.slow
def test_network_runs_from_the_command_line(tmp_path):
    options = ["--pairs", 128, 0, 0, "--front-weights", 3, "--front-iterations", 15]
    options += ["--front-limits", 0, 9, 0, 9, "--steps", 2, "--maxiter", 3]
    options += ["--line-points", 5, "--residual-points", 2, "--residual-maxiter", 4]
    assert explore("--out", tmp_path, *options) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    kept = summary["front"]["kept"]
    assert summary["parameters"] == 1500 and 2 <= kept <= 3
    assert summary["data"].startswith("128 + 0 + 0 pictures")
    assert "'exploration_14' construction" in summary["data"]
    assert summary["lines"]["MINRES"]["spent"]["hvps"] == 3 * kept
    assert load(tmp_path, "lines")["MINRES"].shape == (kept, 5, 2)
    assert load(tmp_path, "minima")["params"].shape == (3, 1500)
    ways = summary["solver"]["ways"]
    assert [way["hvps"] for way in ways.values()] == [3, 3, 3]


def test_problem_is_the_published_one():
    problem = make_problem(ExploreConfig(problem="mini_mnist", pairs=(40, 0, 0)))
    assert problem.start.shape == (1500,)
    assert problem.data.images.shape == (40, 14, 14, 1)
    assert problem.data.images.min() < -0.42 and problem.data.images.max() > 2.8


@pytest.mark.parametrize(
    "options, message",
    [
        (("--pairs", "0", "0", "0"), "mini_mnist needs training pictures"),
        (("--front-limits", "1", "0", "0", "1"), "front_limits must be least and"),
        (("--solver", "cg"), "solver must be 'minres'"),
        (("--front-weights", "1"), "front_weights must be >= 2"),
        (("--data-dir", "/does/not/exist"), "not found in /does/not/exist"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, options, message):
    assert explore("--out", tmp_path / "run", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
