"""The study ``sparse``: a tiny run of its parts, records, baselines and errors."""

import contextlib
import dataclasses
import json
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments import (
    cli,
    sparse,
    sparse_fronts,
    sparse_lab,
    sparse_problems,
    sparse_saved,
    sparse_similarity,
    sparse_study,
    sparse_table,
    sparse_tables,
)
from experiments.__main__ import main
from experiments.explore_outputs import Examples
from experiments.problem import is_head
from experiments.sparse import SparseConfig
from experiments.sparse_lab import Lab, tasks_only, zero_labels
from experiments.sparse_problems import Network, SparseProblem
from experiments.sparse_steps import tree_cosine
from experiments.sparse_training import Trainer, zero_share
from mtl_jax import models, sparsity

TINY = ["--pairs", "64", "16", "16", "--batch-size", "16", "--epochs-per-iteration"]
TINY += ["1", "--sparsify-iterations", "2", "--retrain-iterations", "1"]
TINY += ["--single-iterations", "1", "--front-iterations", "1"]
TINY += ["--conflict-iterations", "1", "--architectures", "hps"]
TINY += ["--front-architectures", "hps", "--vectors", "2", "--preferences", "3"]
# So strong that rows vanish within eight steps.
TINY += ["--sparse-importance", "0.5", "0.25", "0.25", "--growl-strength", "400"]
TINY += ["--strengths", "0", "400", "--conflict-vectors", "2"]
TINY += ["--conflict-importance", "0.5", "0.25", "0.25"]
TINY += ["--min-sparsity", "0.02", "0.02"]


def run_tiny(folder, *extra):
    return main(["sparse", *TINY, "--out", str(folder), *map(str, extra)])


def tiny_config(*extra):
    return cli.parse(sparse.run, [*TINY, *map(str, extra)], prog="sparse")


class Small(nn.Module):
    """A perceptron with twelve inputs, of which the tasks need four."""

    def setup(self):
        self.encoder = models.RowDense(64)
        self.heads = models.Heads(2, 2)

    def __call__(self, x, train=False):
        return self.heads(nn.relu(self.encoder(x)), train)


def small_network(name, problem):
    del problem
    return Network(name, Small(), models.as_functional(Small()), is_head)


def small_problem(config):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(config.pairs[0], 12)).astype(np.float32)
    answers = [(inputs[:, k] + inputs[:, k + 1] > 0).astype(np.int32) for k in (0, 2)]
    split = jax.device_put(Examples(inputs, tuple(answers)))
    return SparseProblem(
        name="rule",
        images="multi_mnist",
        task_names=("one", "two"),
        prepare=lambda inputs, key: inputs,
        train=split,
        validation=split,
        test=split,
        source="64 rows of a rule",
    )


@contextlib.contextmanager
def on_rows():
    """Lets the study run on :class:`Small` instead of pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_study, "load", small_problem)
        patch.setattr(sparse_lab, "network", small_network)
        yield


@pytest.fixture
def small():
    with on_rows():
        yield


SOME = ["--parts", "table", "similarity", "--methods", "sparse"]
SOME += ["--similarity-layers", "encoder/kernel", "--learning-rate", "0.02"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and summary of a run with one sparse network."""
    folder = tmp_path_factory.mktemp("sparse") / "run"
    with on_rows():
        assert run_tiny(folder, *SOME) == 0
    return folder, json.loads((folder / "summary.json").read_text())


def test_a_sparse_network_and_its_record(finished):
    folder, summary = finished
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("config.json", "summary.json", "parts", "networks", "similarity_hps.png")
    }
    (row,) = summary["table"]
    assert (row["architecture"], row["method"]) == ("hps", "sparse")
    shares = row["measures"]["rows"]
    assert shares["zero"] >= 3 and shares["total"] == 12 + 2 * 64
    assert row["first"]["measures"]["rows"]["zero"] == row["measures"]["rows"]["zero"]
    assert [each["sparsity"] for each in row["history"]] == [
        pytest.approx(row["measures"]["rows"]["SR"], abs=0.01)
    ]
    (clusters,) = row["clusters"].values()
    # Caps of 0.4 and 0.8 in the two outer iterations.
    assert clusters["rows"] == 12 and clusters["live"] == 12 - shares["zero"] >= 3
    assert 1 <= clusters["clusters"] <= clusters["live"]
    saved = row["compressed"]
    assert saved["agreement"] == 1 and saved["largest_difference"] < 1e-5
    assert saved["compressed_bytes"] < saved["bytes"]
    tables_of(summary)
    path = folder / "networks" / "hps_sparse_0_compressed.npz"
    assert path.stat().st_size == saved["compressed_bytes"]


def tables_of(summary):
    found = sparse_tables.tables(summary)
    for table in found:
        assert {len(line) for line in table.body} == {len(table.heads)}
    return found


def test_resume_trains_nothing_again(finished, small, monkeypatch, capsys):
    folder, summary = finished
    monkeypatch.setattr(Trainer, "run", None)
    assert run_tiny(folder, *SOME, "--no-plot", "--resume") == 2  # another config
    assert "plot: True there, False now" in capsys.readouterr().err
    assert run_tiny(folder, *SOME, "--resume") == 0
    again = json.loads((folder / "summary.json").read_text())
    assert again["table"] == summary["table"]
    assert again["similarity"] == summary["similarity"]


@pytest.mark.slow
def test_every_part(tmp_path):
    folder = tmp_path / "run"
    options = ["--vectors-at-once", 2, "--methods", "dense", "sparse", "mgda", "stl"]
    options += ["--mgda-epochs", 1, "--stl-epochs", 1]
    assert run_tiny(folder, *options) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert len(tables_of(summary)) == 6
    (flat,), (space,) = summary["front2d"], summary["front3d"]
    assert [point["vector"][0] for point in flat["points"]] == [0.5, 0.5]
    assert [point["vector"][1] for point in flat["points"]] == [0.1, 0.4]
    rates = {point["measures"]["rows"]["SR"] for point in flat["points"]}
    sparse_row = next(row for row in summary["table"] if row["method"] == "sparse")
    assert rates == {sparse_row["measures"]["rows"]["SR"]}  # zero rows stay, no others
    assert space["points"][0]["vector"][0] == 0 and len(space["points"]) == 3
    points = summary["conflict"]["points"]
    assert points[0]["measures"]["rows"]["SR"] == 0
    assert points[1]["measures"]["rows"]["SR"] > 20
    assert all(-1 <= point["cosine"] <= 1 for point in points)
    assert np.shape(points[0]["losses"]) == (2, 2)
    pictures = {path.name for path in folder.glob("*.png")}
    assert pictures == {
        *("front2d_hps.png", "front3d_hps.png", "similarity_hps.png", "conflict.png")
    }


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kdmtl", "mtan"])
def test_networks_of_their_own(tmp_path, method):
    folder = tmp_path / "run"
    options = ["--parts", "table", "--methods", method, "--kdmtl-epochs", 2]
    options += ["--mtan-epochs", 2, "--stl-epochs", 1]
    assert run_tiny(folder, *options) == 0
    summary = json.loads((folder / "summary.json").read_text())
    (row,) = summary["table"]
    assert row["parameters"] == {"kdmtl": 27_450, "mtan": 270_150}[method]
    assert len(row["test"]) == 2 and len(row["history"]) == 2
    teachers = folder / "parts" / "stl_0.json"
    assert teachers.exists() == (method == "kdmtl")


@pytest.mark.slow
def test_vectors_at_once_equal_one_by_one(tmp_path):
    config = tiny_config()
    problem = sparse_problems.load(config)
    lab = Lab(problem, config, tmp_path)
    vectors = [(0.5, 0.3, 0.2), (0.6, 0.2, 0.2)]
    together = lab.sparsify("hps", vectors, 0)
    for vector, one in zip(vectors, together, strict=True):
        (alone,) = lab.sparsify("hps", [vector], 0)
        assert alone.epoch == one.epoch
        np.testing.assert_allclose(
            alone.history[0]["losses"], one.history[0]["losses"], rtol=1e-3
        )
        assert zero_share(alone.params) == pytest.approx(zero_share(one.params), abs=2)


@pytest.mark.slow
def test_the_monitored_network_goes_through_both_phases(tmp_path):
    options = ["--architectures", "mdmtn", "--methods", "sparse", "--parts", "table"]
    assert run_tiny(tmp_path / "run", *options) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (row,) = summary["table"]
    assert row["parameters"] == 311_494 and row["measures"]["rows"]["total"] == 6193
    assert row["measures"]["rows"]["SR"] > 20
    assert row["compressed"]["agreement"] == 1


@pytest.mark.slow
def test_half_the_rows_go_and_the_accuracy_stays(tmp_path):
    """On the embedded digits; the record of the full pictures is in docs/results."""
    options = ["--config", "sparse_digits", "--parts", "table", "--no-plot"]
    options += ["--architectures", "mdmtn", "--methods", "dense", "sparse"]
    assert main(["sparse", *options, "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    dense, small = summary["table"]
    assert small["measures"]["rows"]["SR"] >= 50
    assert np.mean(small["test"]) >= np.mean(dense["test"]) - 0.005
    assert small["compressed"]["ratio"] >= 2
    assert small["compressed"]["agreement"] == 1


# Parts of the study, without training.


def test_vectors():
    grid = sparse_fronts.vectors_2d(1e-3)
    assert grid.shape == (18, 3) and (grid[:, 0] == 1e-3).all() and (grid > 0).all()
    np.testing.assert_allclose(grid.sum(1), 1)
    assert [0.001, 0.2, 0.799] in grid.round(6).tolist()
    assert len(sparse_fronts.vectors_2d(0.15)) == 16
    some = sparse_fronts.vectors_3d(5)
    assert len(some) == 5 and len(sparse_fronts.vectors_3d()) == 90
    np.testing.assert_array_equal(some[[0, -1]], sparse_fronts.vectors_3d()[[0, -1]])
    np.testing.assert_allclose(tasks_only((0.2, 0.2, 0.6)), [0, 0.25, 0.75])


def test_labels_that_fix_zero_rows_only():
    kernel = jnp.eye(5).at[2].set(0)
    labels = zero_labels({"dense": {"kernel": kernel}})
    np.testing.assert_array_equal(labels["dense/kernel"], [0, 1, -1, 3, 4])
    moved = {"dense": {"kernel": kernel + 1}}
    tie = jax.jit(sparsity.tie)  # labels may be traced
    tied = np.asarray(tie(moved, labels)["dense"]["kernel"])
    expected = np.array(kernel + 1)
    expected[2] = 0
    np.testing.assert_array_equal(tied, expected)
    labels["dense/kernel"] = np.array([0, 0, -1, 3, 0])
    one, other = tie(moved, labels), sparsity.tie(moved, labels)
    np.testing.assert_allclose(one["dense"]["kernel"], other["dense"]["kernel"])


def test_cosine_of_trees():
    a, b = [jnp.array([3.0, 0.0]), jnp.array([[4.0]])], [jnp.zeros(2), jnp.ones((1, 1))]
    assert float(tree_cosine(a, b)) == pytest.approx(0.8)
    assert float(tree_cosine(a, [jnp.zeros(2), jnp.zeros((1, 1))])) == 0


def test_similarity_within_and_between_clusters():
    similarity = np.array([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]])
    found = sparse_similarity.within(similarity, np.array([0, 0, 1]))
    assert found == {"within": pytest.approx(0.8), "between": pytest.approx(0.2)}
    alone = sparse_similarity.within(np.ones((1, 1)), np.zeros(1, int))
    assert alone == {"within": None, "between": None}


def test_saved_networks_read_back(tmp_path):
    params = {"a": {"kernel": np.arange(6.0).reshape(3, 2)}, "fusion": np.ones((2, 2))}
    size = sparse_saved.save(
        params, {"batch_stats": {"a": np.zeros(2)}}, tmp_path / "n"
    )
    assert size == (tmp_path / "n").stat().st_size
    again, state = sparse_saved.read(tmp_path / "n")
    jax.tree.map(np.testing.assert_array_equal, again, params)
    np.testing.assert_array_equal(state["batch_stats"]["a"], np.zeros(2))


def test_single_task_view_of_a_problem():
    problem = sparse_problems.load(tiny_config())
    right = problem.of_task(1)
    assert right.num_tasks == 1 and right.task_names == ("right",)
    np.testing.assert_array_equal(right.test.targets[0], problem.test.targets[1])
    net = sparse_problems.network("hps", right)
    assert isinstance(net.module, models.HardSharing) and net.module.num_tasks == 1
    assert net.task_specific("heads/out/kernel")
    assert not net.task_specific("encoder/conv1/kernel")
    assert sparse_table.part_name("stl", "stl", 3) == "stl_3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sparse-importance", "0", "0.5", "0.5"], "must begin with a positive"),
        (["--sparse-importance", "0.5", "0.5", "0.5"], "with sum 1.5"),
        (["--dense-importance", "0.1", "0.4", "0.5"], "must begin with 0"),
        (["--max-sparsity", "0.8", "1.2"], "max_sparsity must hold two shares"),
        (["--decay", "0"], "decay must lie in"),
        (["--vectors-at-once", "0"], "vectors_at_once must be >= 1"),
        (["--penalty", "-1"], "penalty must be positive"),
        (["--strengths", "-3"], "strengths must be one or more"),
        (["--parts", "table", "--methods"], "nothing to do"),
        (["--similarity-layers", "encoder/fc"], "must name clustered kernels of hps"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    options, message, capsys, tmp_path, finished, small
):
    folder = tmp_path / "run"
    if "--similarity-layers" in options:
        _copy_with_layers(finished[0], folder)
        options = [*SOME, "--resume", *options]
    arguments = [*TINY, *options] if "--config" not in options else options
    assert main(["sparse", *arguments, "--out", str(folder)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
    assert not (folder / "summary.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--problem", "multi_mnist"], "multi_mnist needs --data-dir"),
        (["--problem", "cifar10_mnist"], "cifar10_mnist needs --data-dir"),
        (["--batch-size", "65"], "batch_size must be at most the 64"),
        (["--pairs", "64", "0", "16"], "pairs needs three counts > 0"),
    ],
)
def test_bad_data_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        sparse_problems.load(tiny_config(*options))


def _copy_with_layers(source, target):
    """A finished run as if it had been started with other layers."""
    (target / "parts").mkdir(parents=True)
    config = json.loads((source / "config.json").read_text())
    config["config"] |= {"similarity_layers": ["encoder/fc"], "out": str(target)}
    (target / "config.json").write_text(json.dumps(config))
    for name in ("hps_sparse_0.json", "hps_sparse_0.npz"):
        (target / "parts" / name).write_bytes((source / "parts" / name).read_bytes())


@pytest.mark.parametrize(
    "path", sorted(cli.CONFIGS.glob("sparse_*.toml")), ids=lambda p: p.stem
)
def test_configurations_hold_the_options_of_the_study_only(path):
    values = tomllib.loads(path.read_text())
    assert set(values) <= {f.name for f in dataclasses.fields(SparseConfig)}
    config = cli.load_named(SparseConfig, path.stem)
    assert config.problem == path.stem.removeprefix("sparse_")
    sparse.check(config)
