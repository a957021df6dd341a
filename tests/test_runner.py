"""Runs on tiny data: records, resume, interruption, non-finite losses, devices."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from experiments import checkpoint, network, records
from experiments.config import Protocol
from experiments.problem import SINGLE, Problem, make_mesh
from experiments.runner import Trainer
from experiments.stop import Stop
from mtl_jax import data, models

TINY = Protocol(pairs=(192, 40, 48), batch_size=16, epochs=4)


@pytest.fixture(scope="module")
def problem():
    return Problem(TINY, make_mesh(jax.devices()[:1]))


@pytest.fixture(scope="module")
def trainer(problem):
    return Trainer(problem, "pcgrad")


@pytest.fixture(scope="module")
def whole(trainer, tmp_path_factory):
    """Folder of a run without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    trainer.run(folder / "run", seed=3)
    return folder / "run"


def test_momentum_is_the_b1_of_adam(problem):
    """What averaged methods need: without momentum the last gradient decides alone."""
    protocol = dataclasses.replace(TINY, momentum=0.0)
    tx = Problem(protocol, problem.mesh).optimizer()
    state = tx.init(0.0)
    for gradient in (3.0, -3.0):
        update, state = tx.update(gradient, state)
    assert update == pytest.approx(TINY.learning_rate, rel=1e-4)


def restored(folder, trainer):
    """The state in the run's checkpoint."""
    key, images = jax.random.key(0), trainer.problem.split("train").images[:1]
    fresh = trainer._init(*network.init_model(trainer._model, key, images), key)
    return checkpoint.restore(folder, fresh)


def assert_same_run(folder, other, trainer):
    """Same records, byte by byte, and the same final state, bit by bit."""
    files = [f / "metrics.jsonl" for f in (folder, other)]
    assert files[0].read_bytes() == files[1].read_bytes()
    chex.assert_trees_all_equal(*(restored(f, trainer) for f in (folder, other)))


def test_a_run_leaves_its_records(whole):
    lines = records.read_lines(whole / "metrics.jsonl")
    training = [line for line in lines if line["kind"] == "train"]
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    assert [line["epoch"] for line in evaluations] == [1, 2, 3, 4]
    assert [line["step"] for line in evaluations] == [12, 24, 36, 48]
    assert sum(training[-1]["losses"]) < sum(training[0]["losses"])
    assert all(len(line["cosines"]) == 1 for line in training)
    summary = records.read_json(whole / "summary.json")
    means = [sum(line["validation"]) for line in evaluations]
    best = evaluations[int(np.argmax(means))]
    assert summary["best_epoch"] == best["epoch"]
    assert summary["test"] == best["test"]
    assert summary["tasks"] == ["left", "right"]
    assert records.read_json(whole / "config.json")["data"].startswith("192 + 40 + 48")


def test_accuracies_are_those_of_the_saved_network(whole, trainer):
    state = restored(whole, trainer)  # and scored outside the runner
    loaded = data.load_multi_mnist(pairs=TINY.pairs)
    lenet = models.as_functional(models.LeNet(2))
    logits, _ = lenet.apply(state.params, {}, data.standardize(loaded.test.images))
    hits = np.argmax(logits, -1).T == loaded.test.labels
    summary = records.read_json(whole / "summary.json")
    np.testing.assert_allclose(summary["last_test"], hits.mean(0), rtol=1e-5)


def test_a_finished_run_is_kept(whole, trainer):
    before = (whole / "metrics.jsonl").stat().st_mtime_ns
    counted = []
    summary = trainer.run(whole, seed=3, resume=True, on_steps=counted.append)
    assert counted == [48]
    assert summary == records.read_json(whole / "summary.json")
    assert (whole / "metrics.jsonl").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="--resume"):
        trainer.run(whole, seed=3)
    with pytest.raises(ValueError, match="seed: 3 there, 4 now"):
        trainer.run(whole, seed=4, resume=True)


def test_interruption_and_resume_repeat_the_run(whole, trainer, tmp_path):
    folder, stop = tmp_path / "run", Stop()
    seen = []

    def on_steps(count):
        seen.append(count)
        stop.requested = sum(seen) >= 24

    with pytest.raises(records.Interrupted, match="step 24 of 48"):
        trainer.run(folder, seed=3, stop=stop, on_steps=on_steps)
    assert not (folder / "summary.json").exists()
    # What a kill in the middle of the next epoch would have left behind.
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 36, "epoch": 3, "losses": [1, 1]}\n{"ki')
    trainer.run(folder, seed=3, resume=True)
    assert_same_run(whole, folder, trainer)


def test_seeds_share_the_program_and_differ(whole, trainer, tmp_path):
    program = trainer._program
    trainer.run(tmp_path / "run", seed=4)
    assert trainer._program is program
    metrics = [f / "metrics.jsonl" for f in (whole, tmp_path / "run")]
    assert metrics[0].read_bytes() != metrics[1].read_bytes()


def test_a_corrupt_checkpoint_is_one_sentence(whole, trainer, tmp_path):
    folder, stop = tmp_path / "run", Stop()
    stop.requested = True
    with pytest.raises(records.Interrupted):
        trainer.run(folder, seed=3, stop=stop)
    for path in (folder / "checkpoint").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(ValueError, match="damaged or foreign"):
        trainer.run(folder, seed=3, resume=True)


@pytest.mark.slow  # tests/test_train.py has a smaller one
def test_devices_do_not_matter(whole, tmp_path):
    assert len(jax.devices()) == 8
    Trainer(Problem(TINY), "pcgrad").run(tmp_path / "run", seed=3)
    one, eight = (
        [line for line in records.read_lines(f / "metrics.jsonl") if "losses" in line]
        for f in (whole, tmp_path / "run")
    )
    # Sums over the batch in another order; rounding grows over 48 Adam steps.
    np.testing.assert_allclose(
        [line["losses"] for line in eight],
        [line["losses"] for line in one],
        rtol=2e-2,
    )


def test_single_task_networks_share_a_program_and_a_nan_is_named(problem, tmp_path):
    trainer = Trainer(problem, SINGLE)
    left = trainer.run(tmp_path / "left", seed=0, task=0)
    program = trainer._program
    right = trainer.run(tmp_path / "right", seed=0, task=1)
    assert trainer._program is program
    assert (left["tasks"], right["tasks"]) == (["left"], ["right"])
    assert left["test"] != right["test"]

    wild = dataclasses.replace(TINY, optimizer="sgd", learning_rate=1e30)
    bad = Trainer(Problem(wild, problem.mesh), SINGLE)
    with pytest.raises(records.NonFiniteError, match=r"task 'right' is \S+ at step \d"):
        bad.run(tmp_path / "bad", seed=0, task=1)
    assert not (tmp_path / "bad" / "summary.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 12}, "multiple of the 8 devices"),
        ({"batch_size": 256}, "at most the 192 training pictures"),
        ({"pairs": (192, 0, 48)}, "validation split is empty"),
        ({"right": "fashion_mnist"}, "no embedded images"),
    ],
)
def test_sizes_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        Problem(dataclasses.replace(TINY, **change))
