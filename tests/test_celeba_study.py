"""The study ``celeba``: step times, records, resuming, errors; a small network."""

import json

import jax
import jax.numpy as jnp
import pytest

from experiments import celeba, celeba_training
from experiments.__main__ import main
from mtl_jax import models

OPTIONS = ["--tasks", "3", "--image-size", "4", "--max-images", "40"]
OPTIONS += ["--batch-size", "8", "--epochs", "6", "--learning-rate", "0.01"]


def shallow(num_tasks):
    """A linear encoder to four features, with heads and one running mean."""

    def init(key, x):
        keys = jax.random.split(key)
        size = x[0].size
        params = {
            "encoder": jax.random.normal(keys[0], (size, 4)) / size**0.5,
            "heads": {"w": jax.random.normal(keys[1], (num_tasks, 4, 2)) / 2},
        }
        return params, {"mean": jnp.zeros(4)}

    def apply(params, state, x, *, train=False, key=None):
        z = (x.reshape(x.shape[0], -1) - 0.5) @ params["encoder"]
        moved = {"mean": 0.9 * state["mean"] + 0.1 * z.mean(0)} if train else state
        return jnp.einsum("bi,tio->tbo", z, params["heads"]["w"]), moved

    return models.FunctionalModel(init, apply)


def run_shallow(folder, *extra):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(celeba, "network", shallow)
        return main(["celeba", *OPTIONS, "--out", str(folder), *map(str, extra)])


SOME = ["--methods", "mgda(strategy=features)", "--cost-methods", "mgda"]


def test_records_times_and_resuming(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    assert run_shallow(folder, *SOME) == 0
    shown = capsys.readouterr().out
    assert "SYNTHETIC" in shown and "% of mgda" in shown
    summary = json.loads((folder / "summary.json").read_text())
    rows = {row["name"]: row for row in summary["cost"]["rows"]}
    assert set(rows) == {"ls", "mgda"}
    assert rows["ls"]["ratio"] == 1 and all(row["ms"] > 0 for row in rows.values())
    for run in summary["runs"]:
        assert len(run["by_attribute"]) == 3 and len(run["history"]) == 6
        best = min(line[1] for line in run["history"])
        assert run["validation"] == pytest.approx(best, abs=1e-5)
        assert run["history"][-1][0] < run["history"][0][0]  # the loss falls
    monkeypatch.setattr(celeba_training, "run", dict)  # takes no such arguments
    monkeypatch.setattr(celeba_training, "measure", None)
    assert run_shallow(folder, *SOME, "--resume") == 0


def test_published_share():
    rows = [{"name": n, "ms": ms, "ratio": 1.0} for n, ms in (("mgda", 50), ("ls", 2))]
    rows.append({"name": "mgda(strategy=features)", "ms": 2.5, "ratio": 1.25})
    (table,) = celeba.result_tables({"cost": {"rows": rows}})
    assert [row[3:] for row in table.body][::2] == [["100.0", "100.0"], ["5.0", "3.7"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "41"], "tasks must lie in 1..40, got 41"),
        (["--methods", "mgad"], "unknown method 'mgad'; did you mean 'mgda'"),
        (["--batch-size", "64"], "batch_size must be at most the 32 training pictures"),
        (["--data-dir", "/nowhere"], "CelebA was not found in /nowhere/celeba"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(options, message, capsys, tmp_path):
    assert run_shallow(tmp_path / "run", *options) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
