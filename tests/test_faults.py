"""Damaged checkpoints, full disks, read-only folders: one message, nothing lost."""

import contextlib
import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import __main__, checkpoint, network, plots, records
from experiments.config import Protocol
from experiments.problem import Problem, make_mesh
from experiments.runner import Trainer
from experiments.stop import Stop
from tests.test_cli import Command
from tests.test_records import make_state

SMALL = Protocol(pairs=(96, 20, 24), batch_size=16, epochs=3)  # 6 steps an epoch
ARGUMENTS = ["train", "--no-progress", "--method", "ls", "--epochs", "2"]
ARGUMENTS += ["--pairs", "96", "20", "24", "--batch-size", "16"]
NOT_TIMED = ("metrics.jsonl", "summary.json")


@pytest.fixture(scope="module")
def trainer():
    return Trainer(Problem(SMALL, make_mesh(jax.devices()[:1])), "pcgrad")


@pytest.fixture(scope="module")
def whole(trainer, tmp_path_factory):
    """Folder of a run without interruption."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    trainer.run(folder, seed=3)
    return folder


@pytest.fixture(scope="module")
def stopped(trainer, tmp_path_factory):
    """Folder of the same run, stopped after 12 of 18 steps."""
    folder, stop = tmp_path_factory.mktemp("stopped") / "run", Stop()
    steps = []

    def on_steps(count):
        steps.append(count)
        stop.requested = sum(steps) == 12

    with pytest.raises(records.Interrupted):
        trainer.run(folder, seed=3, stop=stop, on_steps=on_steps)
    return folder


@pytest.fixture
def cut(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


@contextlib.contextmanager
def disk_of(size):
    """No file can grow beyond ``size`` bytes: writes fail halfway, as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def content(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def untimed_summary(folder):
    return records.read_json(folder / "summary.json") | {"ms_per_step": None}


def assert_same_run(folder, other):
    """The same lines byte by byte, the same summary, the same state bit by bit."""
    pair = [f / "metrics.jsonl" for f in (folder, other)]
    assert pair[0].read_bytes() == pair[1].read_bytes()
    assert untimed_summary(folder) == untimed_summary(other)
    chex.assert_trees_all_equal(*(checkpoint.read(f)[1] for f in (folder, other)))


def assert_one_sentence(text, *parts):
    lines = [line for line in text.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: "), text
    for part in parts:
        assert part in lines[0], text


# -- checkpoints that cannot be read -------------------------------------------------


@pytest.mark.slow
def test_every_file_of_a_checkpoint_may_be_damaged(cut, trainer, tmp_path, capfd):
    """Harmless (orbax keeps some files for itself), or one error that names the path."""
    intact = checkpoint.read(cut)[1]
    files = [path for path in (cut / "checkpoint").rglob("*") if path.is_file()]
    refused = set()
    for path in files:
        whole = path.read_bytes()
        noise = np.random.default_rng(len(whole)).bytes(len(whole))
        for damage in (whole[: len(whole) // 2], b"", noise, None):
            if damage is None:
                path.unlink()
            else:
                path.write_bytes(damage)
            try:
                chex.assert_trees_all_equal(checkpoint.read(cut)[1], intact)
            except ValueError:
                refused.add(path.name)
                before = content(cut)
                with pytest.raises(ValueError, match="damaged or foreign") as error:
                    trainer.run(cut, seed=3, resume=True)
                assert "\n" not in str(error.value)
                assert str(cut / "checkpoint" / "00000012") in str(error.value)
                assert f"delete {cut / 'checkpoint'} and resume" in str(error.value)
                assert content(cut) == before
            path.write_bytes(whole)
    assert {"manifest.ocdbt", "_METADATA"} < refused
    assert capfd.readouterr().err == ""  # orbax's tracebacks stay inside
    chex.assert_trees_all_equal(checkpoint.read(cut)[1], intact)


def test_what_the_message_advises_helps(cut, whole, trainer):
    manifest = cut / "checkpoint" / "00000012" / "manifest.ocdbt"
    manifest.write_bytes(manifest.read_bytes()[:50])
    with pytest.raises(ValueError, match="damaged or foreign"):
        trainer.run(cut, seed=3, resume=True)
    shutil.rmtree(cut / "checkpoint")
    trainer.run(cut, seed=3, resume=True)
    assert_same_run(cut, whole)


@pytest.mark.parametrize("kind", ["method", "arrays", "orbax", "bytes", "empty"])
def test_a_foreign_checkpoint_is_refused(kind, cut, trainer):
    target = cut / "checkpoint" / "00000012"
    shutil.rmtree(target)
    if kind == "method":
        other = Trainer(trainer.problem, "uw")
        images = trainer.problem.split("train").images[:1]
        key = jax.random.key(0)
        state = other._init(*network.init_model(other._model, key, images), key)
        checkpoint.save(cut, state._replace(step=jnp.asarray(12, jnp.int32)))
    elif kind == "arrays":
        checkpoint.save(cut, make_state(step=12))
    elif kind == "orbax":
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(target, {"a": {"b": np.ones(3)}, "c": 1})
    elif kind == "bytes":
        target.write_bytes(np.random.default_rng(0).bytes(999))
    else:
        target.mkdir()
    before = content(cut)
    with pytest.raises(ValueError, match=r"damaged or foreign|other arrays") as error:
        trainer.run(cut, seed=3, resume=True)
    assert str(target) in str(error.value) and "delete" in str(error.value)
    assert content(cut) == before


def test_unfinished_checkpoints_are_harmless_and_go(cut, whole, trainer, capfd):
    """What kills leave: of the next step, of an older one, and the last but one."""
    for name in ("00000018", "00000003"):
        stale = cut / "checkpoint" / f"{name}.orbax-checkpoint-tmp"
        shutil.copytree(cut / "checkpoint" / "00000012", stale)
        (stale / "manifest.ocdbt").write_bytes(b"half")
    (cut / "checkpoint" / "00000006").mkdir()  # removal cut off
    trainer.run(cut, seed=3, resume=True)
    assert_same_run(cut, whole)
    assert [path.name for path in (cut / "checkpoint").iterdir()] == ["00000018"]
    assert capfd.readouterr().err == ""


def test_a_checkpoint_without_config_belongs_to_nobody(cut, trainer):
    (cut / "config.json").unlink()
    before = content(cut)
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"no config\.json"):
            trainer.run(cut, seed=3, resume=resume)
    assert content(cut) == before


def test_a_damaged_line_is_named(cut, trainer):
    path = cut / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"\x00\xff\n", *lines[1:]]))
    before = content(cut)
    with pytest.raises(ValueError, match=r"line 2 of .*metrics\.jsonl is not readable"):
        trainer.run(cut, seed=3, resume=True)
    assert content(cut) == before


# -- full disks ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("full_at", "limit_of", "named"),
    [
        (0, lambda folder: 100, "config.json"),
        (6, lambda f: (f / "metrics.jsonl").stat().st_size + 40, "metrics.jsonl"),
        (6, lambda f: (f / "timing.jsonl").stat().st_size + 5, "jsonl"),
        (6, lambda folder: 20_000, "00000012"),
        (18, lambda folder: 50, "summary.json"),
    ],
)
def test_a_full_disk_costs_nothing(
    full_at, limit_of, named, whole, trainer, tmp_path, capfd
):
    """Wherever it strikes, the run goes on with ``--resume`` when there is room again."""
    folder, done = tmp_path / "run", 0
    with contextlib.ExitStack() as stack:

        def on_steps(count):
            nonlocal done
            done += count
            if done == full_at and count:
                stack.enter_context(disk_of(limit_of(folder)))

        if full_at == 0:
            stack.enter_context(disk_of(limit_of(folder)))
        with pytest.raises(records.StorageError, match="File too large") as error:
            trainer.run(folder, seed=3, on_steps=on_steps)
    assert named in str(error.value) and "--resume" in str(error.value)
    assert not [path for path in folder.rglob("*") if "tmp" in path.name]
    assert not (folder / "summary.json").exists()
    if full_at:  # the last checkpoint is still whole, and so is every line
        assert int(checkpoint.read(folder)[1]["step"]) == full_at
        records.read_lines(folder / "metrics.jsonl")
        text = (folder / "metrics.jsonl").read_bytes()
        assert text and (whole / "metrics.jsonl").read_bytes().startswith(text)
    trainer.run(folder, seed=3, resume=True)
    assert_same_run(folder, whole)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_the_command_line_says_so_in_one_sentence(tmp_path):
    """In a process of its own: what C++ and threads write on stderr counts, too."""
    program = (
        "import resource, sys; from experiments.__main__ import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1)); "
        "sys.exit(main(sys.argv[2:]))"
    )
    command = [sys.executable, "-c", program, "20000", *ARGUMENTS]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    result = subprocess.run(
        [*command, "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert result.returncode == 4
    path = tmp_path / "run" / "checkpoint" / "00000012"
    assert_one_sentence(result.stderr, f"cannot write {path} (File too large)")


def test_a_file_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    path = records.write_json(tmp_path / "summary.json", {"a": 1})
    before = content(tmp_path)
    with disk_of(10), pytest.raises(records.StorageError, match=r"summary\.json \("):
        records.write_json(path, {"a": list(range(99))})
    assert content(tmp_path) == before

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(records.StorageError, match="No space left on device"):
        records.write_json(path, {"a": 2})
    assert content(tmp_path) == before


def test_lines_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "plain.jsonl"
    records.append_lines(path, [{"step": 1}])
    before = path.read_bytes()
    many = [{"step": step} for step in range(2, 3000)]
    for room in (0, 5, 10_000):  # at once, inside a line, inside a buffer
        with disk_of(len(before) + room), pytest.raises(records.StorageError):
            records.append_lines(path, many)
        assert path.read_bytes() == before
    path.write_bytes(before + b'{"step": 2, "x')  # as a kill leaves it
    records.append_lines(path, [{"step": 3}])
    assert records.read_lines(path) == [{"step": 1}, {"step": 3}]


def test_a_picture_that_does_not_fit_leaves_the_old_one(tmp_path):
    figure = plt.figure()
    plots._save(figure, tmp_path / "losses.png")
    before = content(tmp_path)
    with disk_of(500), pytest.raises(records.StorageError, match=r"losses\.png"):
        plots._save(plt.figure(), tmp_path / "losses.png")
    assert content(tmp_path) == before


# -- folders that cannot be written --------------------------------------------------


@pytest.mark.parametrize("below", [".", "run", "a/run"])
@pytest.mark.parametrize("study", ["train", "compare"])
def test_a_file_where_a_folder_is_wanted(below, study, tmp_path, capfd):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / below
    arguments = ARGUMENTS if study == "train" else ["compare", *ARGUMENTS[4:]]
    assert __main__.main([*arguments, "--out", str(out)]) == 4
    assert_one_sentence(capfd.readouterr().err, f"cannot write {out}", "--out")
    assert (tmp_path / "file").read_text() == "mine"


def forbid(*_, **__):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize("name", ["mkdir", "write_bytes", "open"])
def test_forbidden_calls_end_in_one_sentence(name, cut, trainer, monkeypatch):
    """Simulated, because no permission binds the superuser."""
    before = content(cut)
    allowed = getattr(Path, name)

    def guarded(path, *args, **options):
        reads = name == "open" and (options.get("mode") or args[0]).startswith("r")
        return allowed(path, *args, **options) if reads else forbid()

    folder, resume = (cut.with_name("new"), False) if name == "mkdir" else (cut, True)
    with monkeypatch.context() as patch:
        patch.setattr(Path, name, guarded)
        with pytest.raises(records.StorageError, match="Permission denied"):
            trainer.run(folder, seed=3, resume=resume)
    assert content(cut) == before


def test_a_read_only_folder(cut, whole, trainer):
    before = content(cut)
    folders = [cut, *(path for path in cut.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    if os.access(cut, os.W_OK):
        pytest.skip("no permission binds the superuser")
    with pytest.raises(records.StorageError, match="Permission denied"):
        trainer.run(cut, seed=3, resume=True)
    assert content(cut) == before
    for folder in folders:
        folder.chmod(0o700)
    trainer.run(cut, seed=3, resume=True)
    assert_same_run(cut, whole)


def test_a_checkpoint_that_may_not_be_written(cut, trainer, monkeypatch):
    old = content(cut / "checkpoint")
    monkeypatch.setattr(ocp.PyTreeCheckpointer, "save", forbid)
    with pytest.raises(records.StorageError, match="Permission denied"):
        trainer.run(cut, seed=3, resume=True)
    assert content(cut / "checkpoint") == old


# -- kills ---------------------------------------------------------------------------


@pytest.mark.slow  # about two minutes: 22 starts of the program
def test_twenty_kills_end_like_a_run_left_alone(tmp_path):
    """At start-up, in an epoch, around a checkpoint; by three signals; seeded."""
    draw = random.Random(0)
    command = Command(tmp_path)
    command.args[command.args.index("--epochs") + 1] = "40"
    command.args += ["--checkpoint-every", "1"]
    alone, folder = tmp_path / "alone", tmp_path / "cut"
    process = command.start(alone)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors

    signals = [signal.SIGKILL] * 14 + [signal.SIGTERM] * 3 + [signal.SIGINT] * 3
    draw.shuffle(signals)
    metrics, codes = folder / "metrics.jsonl", set()
    for number in signals:
        resume = ["--resume"] if (folder / "config.json").exists() else []
        before = len(records.read_lines(metrics))
        process = command.start(folder, *resume)
        where = draw.choice(["start", "epoch", "epoch", "checkpoint", "checkpoint"])
        if where == "start":
            time.sleep(draw.uniform(0.2, 4))
        else:
            wait_for_lines(process, metrics, before, draw.randrange(1, 9), where)
            time.sleep(draw.uniform(0, 0.06))
        assert process.poll() is None, process.communicate()
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
        codes.add(process.returncode)
        # 130: stopped in time; otherwise ended by the signal itself.
        assert process.returncode in (130, -number), errors
        if process.returncode == 130 and where != "start":
            assert "--resume" in errors and "Traceback" not in errors
    assert {130, -signal.SIGKILL} <= codes
    assert not (folder / "summary.json").exists()

    process = command.start(folder, "--resume")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert_same_run(folder, alone)
    assert len(list((folder / "checkpoint").iterdir())) == 1


def wait_for_lines(process, path, before, count, where):
    """Until so many lines were added; for checkpoints, until an epoch's last line."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        lines = records.read_lines(path)
        # Resuming drops the lines after the checkpoint, so there may be fewer at first.
        added = len(lines) - before
        if added >= count and (
            where == "epoch" or (lines and lines[-1]["kind"] == "evaluation")
        ):
            return
        time.sleep(0.005)
    raise AssertionError(process.communicate())
