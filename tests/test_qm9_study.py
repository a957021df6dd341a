"""The study ``qm9``: schedule, records, resuming, published numbers, errors."""

import dataclasses
import json
import tomllib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import cli, qm9, qm9_runs, qm9_tables
from experiments.__main__ import main
from experiments.qm9 import Qm9Config
from experiments.qm9_problem import init_params, load, make_losses, training
from experiments.qm9_tables import PUBLISHED, PUBLISHED_SINGLE
from experiments.qm9_training import Plateau, Trainer
from mtl_jax import metrics, models

OPTIONS = ["--config", "qm9_synthetic", "--sizes", "64", "16", "16", "--epochs", "3"]
OPTIONS += ["--seeds", "0", "1", "--methods", "ls", "si", "--single-epochs", "4"]


def shallow(num_tasks):
    """A linear network on numbers of atoms: it compiles at once."""

    def init(key, batch):
        shared, own = jax.random.split(key)
        params = {
            "encoder": jax.random.normal(shared, (batch.nodes.shape[-1], 4)) / 10,
            "bias": jnp.zeros((1, 4)),
            "heads": {"w": jax.random.normal(own, (num_tasks, 4)) / 10},
        }
        return params, {}

    def apply(params, state, batch, *, train=False, key=None):
        features = batch.nodes.sum(1) @ params["encoder"] / 5 + params["bias"]
        return (params["heads"]["w"] @ features.T)[..., None], state

    return models.FunctionalModel(init, apply)


SHALLOW = {1: shallow(1), 11: shallow(11)}


def run_shallow(folder, *extra):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            qm9_runs, "load", lambda config: load(config)._replace(models=SHALLOW)
        )
        return main(["qm9", *OPTIONS, "--out", str(folder), *map(str, extra)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qm9") / "run"
    assert run_shallow(folder) == 0
    return folder, json.loads((folder / "summary.json").read_text())


def test_records_and_tables(finished):
    folder, summary = finished
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "summary.json", "tables.md", "delta_m.png", "parts"}
    assert "SYNTHETIC" in summary["data"]
    single, runs = summary["single_task"], summary["runs"]
    assert len(single) == 22 and len(runs) == 4
    assert {run["epochs"] for run in single} == {4}
    base = np.mean(
        [[r["test"][0] for r in single if r["seed"] == s] for s in (0, 1)], 0
    )
    np.testing.assert_allclose(summary["base"]["test"], base)
    for run in runs:
        deltas = [line[0] for line in run["history"]]
        assert run["best_epoch"] == 1 + int(np.argmin(deltas)) and run["epochs"] == 3
        found = metrics.delta_m(run["validation"], summary["base"]["validation"], False)
        assert found == pytest.approx(min(deltas), abs=1e-2)
    rows = {row["method"]: row for row in summary["rows"]}
    tests = [run["test"] for run in runs if run["method"] == "ls"]
    np.testing.assert_allclose(rows["ls"]["errors"], np.mean(tests, 0))
    deltas = [metrics.delta_m(test, base, False) for test in tests]
    assert rows["ls"]["delta_m"] == pytest.approx(np.mean(deltas))
    assert rows["ls"]["mean_rank"] + rows["si"]["mean_rank"] == pytest.approx(3)
    text = (folder / "tables.md").read_text()
    assert text.count("| published |") == 3 and "177.6" in text and "77.8" in text


def test_resume_trains_only_what_is_missing(finished, monkeypatch, capsys):
    folder, summary = finished
    monkeypatch.setattr(Trainer, "run", None)
    assert run_shallow(folder, "--epochs", 4, "--resume") == 2
    assert "epochs: 3 there, 4 now" in capsys.readouterr().err
    assert run_shallow(folder, "--resume") == 0
    again = json.loads((folder / "summary.json").read_text())
    assert again["rows"] == summary["rows"]


def test_learning_rate_falls_on_a_plateau():
    plateau, rates = Plateau(1.0, 0.5, 2, 0.2), []
    for value in (5, 4, 4, 3.9999, 4.1, 3, -1, -1.00005, -1, 0, 2, 2, 2, 2, 2, 2):
        plateau.update(value)
        rates.append(plateau.rate)
    # 3.9999 and -1.00005 are no better by a ten-thousandth; three such in a row count.
    expected = [1] * 4 + [0.5] * 5 + [0.25] * 3 + [0.2] * 4
    assert rates == expected


@pytest.mark.parametrize("call", ["ls", "graddrop", "ls(head_weights=weighted)"])
def test_unit_length_divides_the_shared_part_by_its_norm(call):
    problem = load(Qm9Config(sizes=(8, 4, 4), batch_size=8))
    model, key = SHALLOW[11], jax.random.key(0)
    params = init_params(model, key, problem.train.inputs)
    shared, heads = [], []
    for unit_length in (False, True):
        losses_fn = make_losses(model)
        step, init = training(call, 11, losses_fn, 1e-3, unit_length=unit_length)
        state, _ = step(init(params, {}, key), problem.train)
        moments = optax.tree.get(state.opt_state, "mu")
        heads.append(moments.pop("heads"))
        shared.append(moments)
    norm = optax.tree.norm(shared[0])
    assert abs(norm - 0.1) > 1e-3  # Adam's first average: a tenth of the gradient
    expected = jax.tree.map(lambda leaf: leaf / norm / 10, shared[0])
    # optax adds 1e-6 to the norm before it divides.
    chex.assert_trees_all_close(shared[1], expected, rtol=1e-4)
    chex.assert_trees_all_close(*heads, rtol=1e-6)


def test_unit_length_is_for_methods_only(finished, tmp_path):
    _, summary = finished
    assert run_shallow(tmp_path, "--unit-length", "--methods", "ls") == 0
    unit = json.loads((tmp_path / "summary.json").read_text())
    for run, other in zip(summary["single_task"], unit["single_task"], strict=True):
        assert run["test"] == other["test"]
    assert unit["runs"][0]["method"] == summary["runs"][0]["method"] == "ls"
    assert unit["runs"][0]["test"] != summary["runs"][0]["test"]
    assert "--unit-length" in (tmp_path / "tables.md").read_text()


def test_stops_after_epochs_without_improvement(tmp_path):
    # So small a rate leaves every prediction as it is, and the first epoch the best.
    rate = ["--learning-rate", "1e-30", "--min-learning-rate", "1e-30"]
    extra = ["--methods", "ls", "--seeds", "0", "--epochs", "9", "--stop-after", "2"]
    assert run_shallow(tmp_path, *rate, *extra, "--baseline", "published") == 0
    (run,) = json.loads((tmp_path / "summary.json").read_text())["runs"]
    assert (run["best_epoch"], run["epochs"]) == (1, 3)


def test_published_numbers_fit_together():
    """The table's Δm and mean ranks follow from its errors, to its rounding."""
    ranks = metrics.mean_rank([row[:11] for row in PUBLISHED.values()], False)
    for row, rank in zip(PUBLISHED.values(), ranks, strict=True):
        assert len(row) == 13
        delta = metrics.delta_m(row[:11], PUBLISHED_SINGLE, False)
        assert delta == pytest.approx(row[12], abs=0.6)
        assert rank == pytest.approx(row[11], abs=0.15)
    name = qm9_tables.published_name
    assert name("cagrad(c=0.4)", PUBLISHED) == "cagrad"
    assert name("nash_mtl(every_k=5)", PUBLISHED) is None


@pytest.mark.parametrize("name", ["qm9_synthetic", "qm9_small", "qm9"])
def test_named_configurations(name):
    values = tomllib.loads((cli.CONFIGS / f"{name}.toml").read_text())
    assert set(values) <= {field.name for field in dataclasses.fields(Qm9Config)}
    assert {"seeds", "epochs", "batch_size", "hidden", "learning_rate"} <= set(values)
    config = cli.load_named(Qm9Config, name)
    qm9.check(config)
    calls = qm9.method_calls(config)
    found = {call: qm9_tables.published_name(call, PUBLISHED) for call in calls}
    assert set(found.values()) - {None} == set(PUBLISHED)
    # What has no published row is a published method with other gradients, or cheaper.
    extra = [call for call, row in found.items() if row is None]
    assert all("strategy" in call or "every_k" in call for call in extra)
    assert {call.split("(")[0] for call in extra} <= set(PUBLISHED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "mgd"], "unknown method 'mgd'; did you mean 'mgda'"),
        (["--epochs", "0"], "epochs must be >= 1, got 0"),
        (["--single-epochs", "0"], "single_epochs must be >= 1, got 0"),
        (["--factor", "1.5"], "factor must lie in (0, 1], got 1.5"),
        (
            ["--batch-size", "400"],
            "batch_size must be at most the 64 training molecules",
        ),
        (["--data-dir", "/nowhere"], "QM9 was not found in /nowhere/qm9"),
        (["--methods", "--baseline", "published"], "nothing to do"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(options, message, capsys, tmp_path):
    folder = tmp_path / "run"
    assert main(["qm9", *OPTIONS, *options, "--out", str(folder)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
    assert not folder.exists()


@pytest.mark.slow
def test_network_learns_and_costs_are_measured(tmp_path):
    folder = tmp_path / "run"
    options = ["--config", "qm9_synthetic", "--methods", "ls", "--epochs", "12"]
    options += ["--baseline", "published", "--parts", "runs", "cost", "edges"]
    options += ["--cost-methods", "mgda", "nash_mtl(every_k=5)", "--rounds", "3"]
    assert main(["qm9", *options, "--out", str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    losses = [line[2] for line in summary["runs"][0]["history"]]
    assert losses[-1] < 0.5 * losses[0]
    rows = {row["name"]: row["ratio"] for row in summary["cost"]["rows"]}
    assert set(rows) == {"plain", "ls", "mgda", "nash_mtl(every_k=5)"}
    assert rows["ls"] == 1 and rows["mgda"] > rows["nash_mtl(every_k=5)"] > 0.5
    assert len(summary["edges"]["rows"]) == 4  # which were compared with each other
    assert jnp.isfinite(
        jnp.array([row["ms"] for row in summary["edges"]["rows"]])
    ).all()
