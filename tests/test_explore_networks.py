"""The networks of the study ``explore``, on quadratics with a known front, on tiny data."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import (
    cli,
    explore,
    explore_networks_plot,
    explore_problems,
    explore_store,
    explore_traces,
)
from experiments.__main__ import main
from experiments.explore import ExploreConfig
from experiments.explore_networks_tables import tables
from experiments.explore_problems import Examples, NetworkProblem
from experiments.explore_starts import Training, cosine_rates, start_weights

SIZE = 6
OPTIONS = ["--config", "explore_multi_mnist", "--no-plot"]
OPTIONS += ["--denominator", 4, "--epochs", 40, "--batch-size", 32]
OPTIONS += ["--learning-rate", 0.1, "--steps", 3, "--step-size", 0.05, "--damping", 0.0]
OPTIONS += ["--correction", "--maxiter", 8, "--hvp-batch", 128, "--gradient-batches", 4]
OPTIONS += ["--line-points", 4, "--line-reach", 0.1, "--ablation", 1, 8]
OPTIONS = [str(option) for option in OPTIONS]
TINY = cli.parse(explore.run, OPTIONS, prog="explore")


def _squares(params, batch):
    """Two regressions with one weight vector: the front is a segment between two optima."""
    errors = (batch.inputs @ params["w"])[None] - batch.targets.T
    return jnp.square(errors), jnp.abs(errors)


def quadratic(config=TINY):
    """Its gradients are exact where every step sees all 128 examples."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(128, SIZE)) * np.linspace(0.3, 2.0, SIZE)
    optima = rng.normal(size=(SIZE, 2))
    split = Examples(np.float32(inputs), np.float32(inputs @ optima))
    return NetworkProblem(
        task_names=("one", "two"),
        error_names=("one error", "two error"),
        init=lambda key: {"w": jax.random.normal(key, (SIZE,))},
        examples=_squares,
        train=jax.device_put(split),
        test=jax.device_put(split),
        source="128 rows of a linear model",
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and summary of all parts on the quadratics, from the command line."""
    folder = tmp_path_factory.mktemp("quadratic") / "run"
    problem = quadratic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explore_problems, "load", lambda config: problem)
        assert main(["explore", *OPTIONS, "--plot", "--out", str(folder)]) == 0
    return folder, json.loads((folder / "summary.json").read_text())


def test_weights_of_the_starts():
    config = ExploreConfig(denominator=6)
    five = start_weights(2, config)
    np.testing.assert_allclose(five[:, 0], np.arange(1, 6) / 6)
    ten = start_weights(3, config)
    assert ten.shape == (10, 3) and ten.min() == pytest.approx(1 / 6)
    np.testing.assert_allclose(ten.sum(1), 1)
    few = start_weights(2, dataclasses.replace(config, starts=3))
    np.testing.assert_allclose(few, five[[0, 2, 4]])
    with pytest.raises(ValueError, match="denominator"):
        start_weights(3, ExploreConfig(denominator=2))


def test_directions():
    np.testing.assert_array_equal(explore_traces.directions(3, "unit"), np.eye(3))
    six = explore_traces.directions(3, "binary")
    assert six.tolist()[:3] == [[0, 0, 1], [0, 1, 0], [0, 1, 1]] and len(six) == 6


def test_training_is_sgd_with_a_cosine():
    problem = quadratic()
    training = Training(problem, TINY)
    initial, weights = training.initial(), np.array([0.25, 0.75])
    steps = 6  # an epoch has four
    trained = training.run(initial, weights, steps)
    schedule = optax.cosine_decay_schedule(TINY.learning_rate, steps)
    np.testing.assert_allclose(
        cosine_rates(TINY.learning_rate, steps),
        [schedule(step) for step in range(steps)],
        atol=1e-7,
    )
    tx = optax.sgd(schedule, momentum=TINY.sgd_momentum)
    params, state = initial, tx.init(initial)
    rows = [row for epoch in range(2) for row in training._order(epoch)][:steps]

    @jax.jit
    def step(params, state, rows):
        batch = jax.tree.map(lambda leaf: leaf[rows], problem.train)

        def loss(p):
            return jnp.float32(weights) @ _squares(p, batch)[0].mean(-1)

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for row in rows:
        params, state = step(params, state, row)
    np.testing.assert_allclose(trained.params["w"], params["w"], rtol=1e-5)
    assert trained.gradients == steps


def test_traces_stay_on_the_front(finished):
    _, summary = finished
    for entry in summary["trace"]["starts"]:
        for i, each in enumerate(entry["directions"]):
            losses = np.array(each["probe_losses"])
            # Both losses have one Hessian: sqrt(f1) + sqrt(f2) is constant on the front.
            roots = np.sqrt(losses).sum(1)
            np.testing.assert_allclose(roots, roots[0], rtol=2e-3)
            assert losses[-1, i] < losses[0, i] and losses[-1, 1 - i] > losses[0, 1 - i]
    rates = summary["trace"]["exchange"][0][0]
    assert [row["objective"] for row in rates] == [1, 2]
    for row in rates:
        assert row["probe_rate"] == pytest.approx(row["expected_rate"], rel=0.3)
    whole = summary["trace"]["coverage"][-1]["probe_losses"]
    assert whole["hypervolume"] > whole["hypervolume_starts"]


def test_only_tangents_keep_to_the_front(finished):
    part = finished[1]["necessity"]
    rises = {}
    for row in part["lines"]:
        roots = np.sqrt(row["probe_losses"]).sum(1)  # constant on the front
        rises[row["direction"]] = abs(roots[-1] - roots[0])
    tangents = [v for name, v in rises.items() if name.startswith("tangent")]
    others = [v for name, v in rises.items() if not name.startswith("tangent")]
    assert len(tangents) == 2 and len(others) == 6
    assert max(tangents) < 0.1 * min(others)
    best = part["lines"][0]["best"][0]
    assert best["fall"] > 0 and best["paid"] > 0


def test_more_iterations_solve_better(finished):
    rows = finished[1]["ablation"]["rows"]
    residuals = [row["residual"] for row in rows]
    assert residuals == sorted(residuals, reverse=True) and residuals[-1] < 1e-4
    assert rows[-1]["cosine_to_last"] == pytest.approx(1, abs=1e-5)


def test_budgets_are_equal(finished):
    parts = finished[1]["efficiency"]
    weights = [finished[1]["starts"][n]["weights"] for n in TINY.efficiency_starts]
    assert [part["start_weights"] for part in parts] == weights
    for part in parts:
        assert [row["steps"] for row in part["rows"]] == [1, 2]
        cost = round(part["equivalents_per_step"])
        assert part["spent"]["gradients"] == 2 * cost * (2 + 1 + 2)
        for row in part["rows"]:
            assert row["equivalents"] == 2 * cost * row["steps"]
            for way in part["ways"]:
                before = part["start"]["hypervolume_test_losses"]
                assert row[way]["test_losses"] >= before


def test_costs_are_counted(finished):
    summary = finished[1]
    entry = summary["trace"]["starts"][0]["spent"]
    assert entry["gradients"] == 2 * (3 + 1) and entry["solves"] == 2 * 3
    # Gradients: 2 objectives x 4 batches; products: 2 x 128 / 32.
    equivalents = 8 * entry["gradients"] + 8 * (entry["hvps"] + entry["solves"])
    assert entry["equivalents"] == equivalents
    spent = summary["starts"][0]["spent"]
    assert spent["gradients"] == TINY.epochs * 4


def test_the_host_finds_the_same_direction(finished):
    rows = finished[1]["solver"]["rows"]
    assert set(rows) == {"device", "host", "host_linearised"}
    for name, row in rows.items():
        assert row["seconds"] > 0 and row["products"] >= 1
        if name != "device":
            assert row["cosine_to_device"] == pytest.approx(1, abs=1e-3)


def test_records_pictures_and_tables(finished):
    folder, summary = finished
    names = {path.name for path in folder.iterdir()}
    pictures = {f"{part}.png" for part in TINY.parts if part != "solver"}
    assert pictures | {"config.json", "summary.json", "parts", "front"} == names
    found = tables(summary)
    assert len(found) == 9
    for table in found:
        assert {len(row) for row in table.body} == {len(table.heads)}
    assert summary["spent"]["equivalents"] > 0
    front = summary["front"]
    assert front["hypervolume_continuous"] >= front["hypervolume_points"]


def test_resume_keeps_what_is_finished(finished, monkeypatch, capsys):
    folder, summary = finished
    monkeypatch.setattr(explore_problems, "load", lambda config: quadratic())
    monkeypatch.setattr(Training, "run", None)  # nothing is trained again
    monkeypatch.setattr(explore_networks_plot, "draw", lambda folder: [])
    again = [*OPTIONS, "--plot", "--out", folder, "--resume"]
    assert explore_main(*again) == 0
    read = json.loads((folder / "summary.json").read_text())
    for name in ("starts", "trace", "front", "necessity", "solver", "spent"):
        assert read[name] == summary[name], name
    assert explore_main(*again, "--steps", 4) == 2
    assert "steps: 3 there, 4 now" in capsys.readouterr().err


def test_store(tmp_path):
    tree = {"a": np.arange(3.0), "b": {"c": np.ones((2, 2), np.float32)}}
    store = explore_store.Store(tmp_path, resume=True)
    assert store.part("x", lambda: ({"n": 1}, tree)) == {"n": 1}
    assert store.part("x", lambda: pytest.fail("made again")) == {"n": 1}
    read = store.arrays("x", tree)
    np.testing.assert_array_equal(read["b"]["c"], tree["b"]["c"])
    with pytest.raises(ValueError, match="other arrays"):
        store.arrays("x", {"a": np.ones(4)})
    (tmp_path / "parts" / "x.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match="damaged or missing"):
        store.arrays("x", tree)
    fresh = explore_store.Store(tmp_path, resume=False)
    assert fresh.part("x", lambda: {"n": 2}) == {"n": 2}


def test_steps_have_the_asked_length(finished):
    with np.load(finished[0] / "parts" / "trace1.npz") as saved:
        moves = np.diff(saved["params.w"], axis=1)
    np.testing.assert_allclose(np.linalg.norm(moves, axis=-1), 0.05, rtol=1e-4)
    assert moves[0, 0] @ moves[1, 0] < -0.9 * 0.05**2  # the directions are opposite


@pytest.mark.parametrize(
    ("options", "parameters", "errors"),
    [
        ({"problem": "multi_mnist"}, 22_350, "left error, %"),
        ({"problem": "census"}, 158_598, "age error, %"),
        ({"problem": "census", "preprocessing": "fixed"}, 158_086, "age error, %"),
        ({"problem": "utkface", "image_size": 32}, 11_180_616, "age error, years"),
    ],
)
def test_networks_and_their_losses(options, parameters, errors):
    config = ExploreConfig(pairs=(8, 0, 4), batch_size=4, **options)
    problem = explore_problems.load(config)
    params = jax.eval_shape(problem.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters
    found = jax.eval_shape(problem.examples, params, problem.test)
    assert [each.shape for each in found] == [(problem.num_tasks, 4)] * 2
    assert problem.error_names[0] == errors
    assert (problem.train_size, problem.test.count) == (8, 4)


SMALL = ["--pairs", 512, 0, 128, "--batch-size", 64, "--epochs", 1, "--starts", 2]
SMALL += ["--steps", 2, "--maxiter", 3, "--hvp-batch", 64, "--gradient-batches", 1]


@pytest.mark.slow  # compiles for a minute; what it runs is also run on the quadratics
@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "multi_mnist",
            ["--ablation", 1, 3, "--line-points", 3, "--efficiency-starts", 0, 1],
        ),
        ("census", ["--preprocessing", "fixed", "--ablation", 1, 3]),
        ("utkface", ["--pairs", 16, 0, 8, "--image-size", 32, "--batch-size", 8]),
    ],
)
def test_problems_from_the_command_line(tmp_path, capsys, name, options):
    out = tmp_path / "run"
    base = ["--config", f"explore_{name}", *SMALL]
    assert explore_main(*base, *options, "--out", out) == 0
    output = capsys.readouterr()
    assert not output.err and "data: " in output.out
    summary = json.loads((out / "summary.json").read_text())
    for entry in summary["trace"]["starts"]:
        for each in entry["directions"]:
            assert np.shape(each["test_errors"]) == (3, len(summary["tasks"]))
    if "front" in summary:
        assert summary["front"]["kept_points"] >= 1


def explore_main(*options):
    return main(["explore", *map(str, options)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", 1024], "at most the 512 training examples"),
        (["--parts", "front"], "'front' needs the part 'trace'"),
        (["--denominator", 1], "denominator must be at least the 2 tasks"),
        (["--gradient-batches", 9], "at most the 8 of an epoch"),
        (["--data-dir", "/does/not/exist"], "not found in /does/not/exist"),
        (["--pairs", 512, 0, 0], "the test split is empty"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, options, message):
    base = ["--config", "explore_multi_mnist", *SMALL, "--out", tmp_path / "run"]
    assert explore_main(*base, *options) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
