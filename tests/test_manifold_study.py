"""The study ``manifold``: its families on a tiny table, the toy, records and errors."""

import dataclasses
import json
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import (
    cli,
    manifold,
    manifold_families,
    manifold_points,
    manifold_problems,
    manifold_tables,
    manifold_training,
)
from experiments.__main__ import main
from experiments.explore_outputs import Examples
from experiments.manifold import ManifoldConfig
from experiments.manifold_problems import ManifoldProblem
from experiments.manifold_training import Evaluator, Trainer
from mtl_jax import models, pareto
from mtl_jax.data import recipes
from mtl_jax.data.recipes import compose_three
from tests.helpers import slow_but

OPTIONS = ["--config", "manifold_census", "--epochs", "4", "--batch-size", "32"]
OPTIONS += ["--learning-rate", "0.05", "--points", "5", "--seeds", "0", "1"]
# Without regulariser the points of a step compile as one loop.
OPTIONS += ["--regularizer", "0"]
TINY = cli.parse(manifold.run, OPTIONS, prog="manifold")


def conflict(config=TINY):
    """Two opposed questions about 256 rows, and a perceptron of four hidden units."""
    rng = np.random.default_rng(0)
    inputs = np.float32(rng.normal(size=(256, 5)))
    answers = inputs @ np.array([1, 0.5, 0, 0, 0]) > 0
    # One row in five answers both questions alike: no network has both right.
    other = np.where(rng.random(256) < 0.8, ~answers, answers)
    split = Examples(inputs, (np.int32(answers), np.int32(other)))
    split = jax.device_put(split)
    return ManifoldProblem(
        task_names=("one", "two"),
        score_names=("one accuracy", "two accuracy"),
        model=models.as_functional(models.CensusMLP(num_tasks=2, hidden=(4,))),
        prepare=lambda inputs: inputs,
        train=split,
        validation=split,
        test=split,
        source="256 rows of a rule",
    )


@pytest.fixture(scope="module")
def problem():
    return conflict()


def run_tiny(folder, *extra):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifold_problems, "load", lambda config: conflict())
        return main(["manifold", *OPTIONS, "--out", str(folder), *map(str, extra)])


SOME = ["--families", "manifold", "--baselines", "single-task", "ls"]
SOME += ["--parts", "fronts"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and summary of a run of the ensemble and two baselines."""
    folder = tmp_path_factory.mktemp("manifold") / "run"
    assert run_tiny(folder, *SOME) == 0
    return folder, json.loads((folder / "summary.json").read_text())


def test_records_tables_and_pictures(finished):
    folder, summary = finished
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "summary.json", "parts", "scores.png", "losses.png"}
    assert summary["grid"][0] == [1, 0] and len(summary["grid"]) == 5
    runs = {(run["name"], run["seed"]): run for run in summary["runs"]}
    assert set(runs) == {
        (n, s) for n in ("single-task", "ls", "manifold") for s in (0, 1)
    }
    run = runs["manifold", 1]
    assert np.shape(run["losses"]) == np.shape(run["scores"]) == (5, 2)
    assert run["ends"] == [run["scores"][0][0], run["scores"][-1][1]]
    assert run["parameters"] == 2 * summary["parameters"]
    # 8 steps an epoch, W = 2 points of one pull-back each.
    assert run["spent"]["steps"] == 32 and run["spent"]["pull_backs"] == 64
    assert np.shape(run["history"]) == (1, 4, 2)
    np.testing.assert_allclose(np.diagonal(run["similarity"]), 1)
    single = runs["single-task", 0]
    assert single["spent"]["steps"] == 64 and np.shape(single["scores"]) == (1, 2)
    area = np.prod(single["scores"])
    assert single["hypervolume_scores"] == pytest.approx(area, rel=1e-5)
    (table,) = manifold_tables.tables(summary)
    assert [row[0] for row in table.body] == ["single-task", "ls", "manifold"]
    assert {len(row) for row in table.body} == {len(table.heads)}
    row = summary["rows"][2]
    volumes = [runs["manifold", seed]["hypervolume_scores"] for seed in (0, 1)]
    expected = [np.mean(volumes), np.std(volumes, ddof=1)]
    np.testing.assert_allclose(row["hypervolume_scores"], expected)


def test_resume_trains_nothing_again(finished, monkeypatch, capsys):
    folder, summary = finished
    monkeypatch.setattr(Trainer, "run", None)
    assert run_tiny(folder, *SOME, "--no-plot", "--resume") == 2  # another config
    assert "plot: True there, False now" in capsys.readouterr().err
    assert run_tiny(folder, *SOME, "--resume") == 0
    again = json.loads((folder / "summary.json").read_text())
    assert again["runs"] == summary["runs"] and again["rows"] == summary["rows"]


@pytest.mark.slow
def test_single_tasks_train_their_own_loss_with_one_program(problem):
    trainer = Trainer(problem, dataclasses.replace(TINY, epochs=8))
    base = manifold_points.plain(problem, TINY)
    evaluate = Evaluator(problem, base)
    singles = manifold_points.single_tasks(base, 2)
    losses = []
    for family in singles:
        solution = trainer.run(family, 0).solution
        losses.append(evaluate(solution, np.eye(2)[:1], problem.test)[0][0])
    assert len(trainer._programs) == 1
    assert losses[0][0] < losses[0][1] and losses[1][1] < losses[1][0]
    start = base.init(jax.random.key(0)).params["heads"]["out"]["bias"]
    end = trainer.run(singles[0], 0).solution[0]["heads"]["out"]["bias"]
    np.testing.assert_array_equal(end[1], start[1])  # the other head never moved
    assert (end[0] != start[0]).all()


@pytest.mark.slow
def test_evaluation_of_the_grid_is_that_of_each_network(problem):
    family = manifold_families.manifold(problem, TINY)
    solution = family.solution(family.init(jax.random.key(3)))
    grid = pareto.simplex_grid(2, 3)
    losses, scores = Evaluator(problem, family)(solution, grid, problem.test)
    slow = Evaluator(problem._replace(slow_loops=True), family)
    np.testing.assert_allclose(
        slow(solution, grid, problem.test), (losses, scores), rtol=1e-5
    )
    params = pareto.member_mixture(solution[0], grid[1])
    logits, _ = problem.model.apply(params, {}, problem.test.inputs)
    labels = np.stack(problem.test.targets)
    expected = (np.argmax(logits, -1) == labels).mean(1)
    np.testing.assert_allclose(scores[1], expected, rtol=1e-6)
    found = models.cross_entropy(logits, jnp.asarray(labels.T))
    np.testing.assert_allclose(losses[1], found, rtol=1e-5)


def test_scores_of_numbers_are_explained_variances():
    outputs = (jnp.array([[1.0], [3.0]]), jnp.array([[2.0, 0.0], [2.0, 0.0]]))
    targets = (jnp.array([1.0, 1.0]), jnp.array([0, 1]))
    losses, scores = jax.jit(manifold_problems.judge)(outputs, targets)
    np.testing.assert_allclose(scores, [[1, -3], [1, 0]])
    np.testing.assert_allclose(losses[0], [0, 1.5])  # Huber's
    means = manifold_problems.batch_losses(outputs, targets)
    np.testing.assert_allclose(losses.mean(1), means, rtol=1e-6)


@pytest.mark.slow
def test_every_family_and_the_cost(tmp_path):
    # At larger rates all units of a small hypernetwork may die.
    options = ["--samples", 3, "--hidden", 32, "--rank", 1, "--learning-rate", 0.01]
    options += ["--epochs", 60, "--seeds", 0, "--validation"]
    assert (
        run_tiny(tmp_path / "run", *options, "--baselines", "single-task", "mgda") == 0
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    runs = {run["name"]: run for run in summary["runs"]}
    assert set(runs) == {"single-task", "mgda", *TINY.families}
    for name in ("manifold", "low_rank", "phn_linear", "phn_epo"):
        losses = np.array(runs[name]["losses"])
        np.testing.assert_allclose(runs[name]["validation_losses"], losses, rtol=1e-5)
        # Hypernetworks are not done with 256 rows so soon, but see the ray.
        assert np.ptp(losses, axis=0).max() > 1e-3, name
        if not name.startswith("phn"):
            assert losses[0, 0] < losses[-1, 0] and losses[-1, 1] < losses[0, 1], name
            assert min(runs[name]["monotonicity"]) > 0.6, name
    # The cosine wants the losses in proportion to the ray.
    assert max(runs["cosmos"]["monotonicity"]) < 0.5
    sizes = {name: run["parameters"] for name, run in runs.items()}
    assert sizes["manifold"] == 2 * summary["parameters"] == sizes["single-task"]
    assert runs["phn_epo"]["spent"]["pull_backs"] == 2 * 480  # 60 epochs of 8 steps
    rows = {row["name"]: row for row in summary["cost"]["rows"]}
    assert {"plain step", "step, W = 1", "step, W = 3", "5 points, one call"} <= set(
        rows
    )
    assert all(row["ms"] > 0 for row in rows.values())
    assert rows["5 points, 5 calls"]["ratio"] == 1


def _init(key, inputs):
    return {"w": jax.random.normal(key, (2, 5, 2))}, {"mean": jnp.zeros(2)}


def _apply(params, state, x, *, train=False, key=None):
    """A linear network; its mean over a batch moves by a tenth each step."""
    outputs = jnp.einsum("bi,tio->tbo", x, params["w"])
    first = outputs[:, :, 0].mean(1)
    mean = first if train else state["mean"]
    moved = {"mean": 0.9 * state["mean"] + 0.1 * first} if train and state else state
    return outputs - mean[:, None, None], moved


@pytest.mark.slow
def test_statistics_of_each_point(problem):
    normed = problem._replace(model=models.FunctionalModel(_init, _apply))
    config = dataclasses.replace(TINY, balance="gradnorm", epochs=1)
    family = manifold_families.manifold(normed, config)
    solution = Trainer(normed, config).run(family, 0).solution
    assert (np.abs(solution[1]["mean"]) > 0).any()
    grid = pareto.simplex_grid(2, 3)
    batches = problem.train.inputs.reshape(4, 64, 5)
    found = Evaluator(normed, family)(solution, grid, problem.test, batches)
    slow = Evaluator(normed._replace(slow_loops=True), family)
    np.testing.assert_allclose(
        slow(solution, grid, problem.test, batches), found, rtol=1e-4
    )
    params = pareto.member_mixture(solution[0], grid[1])
    # Means of batches of equal size: the mean over all rows.
    outputs, _ = _apply(params, {}, problem.train.inputs, train=True)
    losses = manifold_problems.batch_losses(outputs, problem.test.targets)
    np.testing.assert_allclose(found[0][1], losses, rtol=1e-4)


def test_toy(tmp_path, capsys):
    options = [
        "--steps",
        "20",
        "--record-every",
        "10",
        "--scales",
        "0.1",
        "--seeds",
        "0",
    ]
    options += ["--balances", "gradnorm", "--methods", "ls", "--no-plot"]
    folder = tmp_path / "toy"
    assert main(["manifold", *options, "--out", str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    with np.load(folder / "trajectories.npz") as saved:
        assert saved["members"].shape == (1, 1, 4, 3, 2, 2)
        assert saved["paths"].shape == (1, 1, 5, 3, 2)
        last = saved["members"][0, 0, :, -1]
    ends = np.array([row["members"] for row in summary["rows"]])
    np.testing.assert_allclose(ends, last, rtol=1e-5)
    for row in summary["rows"]:
        (low, high) = sorted(np.array(row["members"])[:, 0])
        covered = np.clip(high, -7, 7) - np.clip(low, -7, 7)
        assert row["coverage"] == pytest.approx(covered / 14, abs=1e-5)
    assert "coverage" in capsys.readouterr().out


@pytest.mark.slow
def test_toy_in_full(tmp_path):
    folder = tmp_path / "toy"
    options = ["--balances", "gradnorm", "ls", "--methods", "mgda"]
    assert main(["manifold", *options, "--out", str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert (folder / "toy.png").exists()
    for row in summary["rows"]:
        whole = row["balance"] == "gradnorm" or row["scale"] == 1
        assert row["coverage"] == pytest.approx(1 if whole else 0.36, abs=0.04)
        assert row["off_front"] < 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--balance", "gradnrom"], "balance must be one of"),
        (["--balances", "mgda", "nash"], "unknown method 'nash'"),
        (["--config", "manifold_census", "--baselines", "mgd"], "did you mean 'mgda'"),
        (
            ["--config", "manifold_census", "--tasks", "age", "wage"],
            "tasks must be two",
        ),
        (["--points", "1"], "points must be >= 2"),
        (["--concentration", "0"], "concentration must be positive"),
        (["--samples", "0"], "samples must be >= 1"),
        (["--steps", "150"], "steps must be a multiple of record_every=100"),
        (["--config", "manifold_census", "--families", "--baselines"], "nothing to do"),
        (["--config", "manifold_census", "--data-dir", "/nowhere"], "not found in"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(options, message, capsys, tmp_path):
    if "--balance" in options:
        options = ["--config", "manifold_census", *options]
    assert main(["manifold", *options, "--out", str(tmp_path / "run")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
    assert not (tmp_path / "run" / "summary.json").exists()


def test_non_finite_losses_are_named(problem):
    family = manifold_points.plain(problem, TINY)

    def step(state, batch):
        return state, jnp.array([1.0, jnp.nan])

    with pytest.raises(Exception, match="task 'two' is not finite in epoch 1 of ls"):
        Trainer(problem, TINY).run(family._replace(step=step), 0)


@pytest.mark.parametrize(
    "path", sorted(cli.CONFIGS.glob("manifold_*.toml")), ids=lambda p: p.stem
)
def test_configurations_hold_the_options_of_the_study_only(path):
    values = tomllib.loads(path.read_text())
    assert set(values) <= {f.name for f in dataclasses.fields(ManifoldConfig)}
    config = cli.load_named(ManifoldConfig, path.stem)
    assert config.problem == path.stem.removeprefix("manifold_")
    assert "gate" not in values or config.gate


@pytest.mark.parametrize(
    ("name", "parameters", "shape"),
    slow_but(
        [("census", 121_092, (8, 468)), ("multi_mnist3", 30_510, (8, 28, 28, 1))],
        [
            ("multi_mnist", 27_450, (8, 28, 28, 1)),
            ("multi_mnist3", 30_510, (8, 28, 28, 1)),
            ("census", 121_092, (8, 468)),
            ("utkface", 11_185_224, (8, 64, 64, 3)),
        ],
    ),
)
def test_published_networks_and_their_inputs(name, parameters, shape):
    config = ManifoldConfig(pairs=(8, 4, 4), batch_size=4, problem=name)
    problem = manifold_problems.load(config)
    assert problem.num_parameters() == parameters
    assert problem.inputs(8).shape == shape
    assert (problem.train.count, problem.test.count) == (8, 4)
    assert len(problem.score_names) == problem.num_tasks == len(problem.train.targets)


def test_order_uses_every_example_at_most_once():
    rows = manifold_training.order(10, 3, 0, 0)
    assert rows.shape == (3, 3) and len(set(rows.ravel())) == 9
    assert (rows != manifold_training.order(10, 3, 0, 1)).any()
    assert (rows == manifold_training.order(10, 3, 0, 0)).all()


# Pictures of the published recipes, against Pillow.


@pytest.mark.parametrize(
    ("side", "kernel", "name"),
    [(36, recipes.bicubic, "BICUBIC"), (42, recipes.triangle, "BILINEAR")],
)
def test_pillow_shrinks_alike(side, kernel, name):
    image = pytest.importorskip("PIL.Image")
    canvas = np.random.default_rng(0).integers(0, 256, (3, side, side)).astype(np.uint8)
    found = recipes.shrink_smoothly(canvas, 28, kernel)
    method = getattr(image.Resampling, name)
    for one, small in zip(canvas, found, strict=True):
        whole = image.fromarray(one.astype(np.float32)).resize((28, 28), method)
        np.testing.assert_allclose(small, np.clip(whole, 0, 255), atol=0.501)


def test_interpolation_without_antialiasing():
    ramp = np.zeros((1, 42, 42), np.uint8) + np.arange(0, 168, 4, dtype=np.uint8)
    found = recipes.shrink_smoothly(ramp, 28, recipes.triangle, antialias=False)
    # Centres lie at 0.25, 1.75, 3.25, ... pixels: 3/4 of one neighbour, 1/4 of the other.
    np.testing.assert_array_equal(found[0, 0], 6 * np.arange(28) + 1)
    spike = np.zeros((1, 42, 42), np.uint8)
    spike[0, 0, 0] = 160
    small = recipes.shrink_smoothly(spike, 28, recipes.triangle, antialias=False)[0]
    assert small[0, 0] == 90 and np.count_nonzero(small) == 1


def test_three_digits_lie_where_they_are_said_to():
    blank = np.zeros((2, 28, 28), np.uint8)
    full = np.full((2, 28, 28), 200, np.uint8)
    # Corners in the shrunk picture: two thirds of (0, 0), (14, 7), (0, 14).
    for place, (row, column) in enumerate(((0, 0), (14, 7), (0, 14))):
        images = [blank] * 3
        images[place] = full
        picture = compose_three((images[0], images[1], images[2]))[0]
        rows, columns = (np.flatnonzero(picture.max(axis) > 100) for axis in (1, 0))
        for found, start in ((rows, row), (columns, column)):
            assert abs(found[0] - 2 / 3 * start) < 1
            assert abs(found[-1] + 1 - 2 / 3 * (start + 28)) < 1
    both = compose_three((full, full // 2, blank))
    assert both.max() == 200  # a maximum, no sum
