"""Run folders: what a kill leaves readable, what a resume accepts; checkpoints."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import pytest

from experiments import checkpoint, records


@dataclasses.dataclass(frozen=True)
class Settings:
    epochs: int = 3
    data_dir: Path | None = None


class State(NamedTuple):
    params: dict
    key: jax.Array
    step: jax.Array


def make_state(step=3, width=4):
    params = {"encoder": {"kernel": jnp.arange(2.0 * width).reshape(2, width)}}
    keys = jax.random.split(jax.random.key(7), 2)
    return State(params, keys, jnp.asarray(step, jnp.int32))


def test_a_line_that_was_cut_off_is_passed_over_and_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records.append_lines(path, [{"step": 1, "x": 0.5}, {"step": 2, "x": 0.25}])
    whole = path.read_bytes()
    with path.open("a") as file:
        file.write('{"step": 3, "x"')  # as a kill leaves it
    assert [line["step"] for line in records.read_lines(path)] == [1, 2]
    records.truncate_lines(path, 2)
    assert path.read_bytes() == whole
    records.truncate_lines(path, 1)
    assert records.read_lines(path) == [{"step": 1, "x": 0.5}]
    assert records.read_lines(tmp_path / "missing.jsonl") == []


def test_files_are_replaced_whole(tmp_path):
    path = tmp_path / "summary.json"
    records.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        records.write_json(path, {"a": float("nan")})
    assert records.read_json(path) == {"a": 1}
    records.write_json(path, {"a": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_damaged_json_is_named(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text('{"a": ')
    with pytest.raises(ValueError, match=r"summary\.json is not readable"):
        records.read_json(path)


def test_config_says_what_ran_where(tmp_path):
    records.start_run(tmp_path / "a" / "b", "train", Settings(), data="digits")
    entry = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert entry["config"] == {"epochs": 3, "data_dir": None}
    assert entry["data"] == "digits"
    assert entry["versions"]["jax"] == jax.__version__
    assert "cpu" in entry["device"]
    assert {"git_commit", "started", "command"} <= set(entry)


def test_a_folder_takes_one_run_only(tmp_path):
    def open_run(config, resume):
        records.open_run(tmp_path, "train", config, resume=resume, data="digits")

    open_run(Settings(), resume=True)
    with pytest.raises(FileExistsError, match="--resume"):
        open_run(Settings(), resume=False)
    open_run(Settings(data_dir=Path("elsewhere")), resume=True)  # data may move
    with pytest.raises(ValueError, match="epochs: 3 there, 4 now"):
        open_run(Settings(epochs=4), resume=True)


def test_slugs_are_file_names():
    assert records.slug("cagrad(c=0.4)") == "cagrad-c=0.4"
    assert records.slug("ls(weights=(0.1, 0.9))") == "ls-weights=-0.1-0.9"
    assert "/" not in records.slug("mgda(normalization='a/b')")


def test_checkpoint_restores_every_bit(tmp_path):
    state = make_state()
    checkpoint.save(tmp_path, make_state(step=1))
    checkpoint.save(tmp_path, state)
    assert [p.name for p in (tmp_path / "checkpoint").iterdir()] == ["00000003"]
    blank = jax.tree.map(lambda leaf: leaf, make_state(step=0))
    restored = checkpoint.restore(tmp_path, blank)
    assert isinstance(restored, State)
    chex.assert_trees_all_equal_dtypes(restored.params, state.params)
    chex.assert_trees_all_equal(restored, state)
    # The keys are typed keys again, and draw what the saved ones would.
    draw = jax.vmap(jax.random.bits)
    chex.assert_trees_all_equal(draw(restored.key), draw(state.key))


def test_a_truncated_checkpoint_gives_one_sentence(tmp_path):
    checkpoint.save(tmp_path, make_state())
    for path in (tmp_path / "checkpoint").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged or foreign") as error:
        checkpoint.restore(tmp_path, make_state())
    assert "\n" not in str(error.value)
    assert "delete" in str(error.value)


def test_an_empty_checkpoint_folder_gives_one_sentence(tmp_path):
    (tmp_path / "checkpoint" / "00000002").mkdir(parents=True)
    with pytest.raises(ValueError, match="damaged or foreign"):
        checkpoint.restore(tmp_path, make_state())


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    checkpoint.save(tmp_path, make_state(width=5))
    with pytest.raises(ValueError, match="other arrays"):
        checkpoint.restore(tmp_path, make_state(width=4))


def test_unfinished_checkpoints_do_not_count(tmp_path):
    assert not checkpoint.exists(tmp_path)
    (tmp_path / "checkpoint" / "00000009.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not checkpoint.exists(tmp_path)
    checkpoint.save(tmp_path, make_state())
    assert int(checkpoint.restore(tmp_path, make_state(step=0)).step) == 3


def test_pictures_and_records_import_no_training_code():
    program = (
        "import sys, experiments.plots, experiments.records\n"
        "bad = {'jax', 'optax', 'mtl_jax', 'orbax', 'experiments.runner'}\n"
        "sys.exit(str(bad & set(sys.modules)) if bad & set(sys.modules) else 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert result.returncode == 0, result.stderr
