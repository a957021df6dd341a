"""Trains one method: compiled once, then run for any seed, with records and resume."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import checkpoint, network, records
from experiments.config import Protocol
from experiments.problem import SINGLE, Problem
from experiments.stop import Stop
from mtl_jax import train
from mtl_jax.data import Split

LOG_STEPS = 10
"""At most so many steps are averaged into one line of ``metrics.jsonl``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Everything that decides what a run computes."""

    protocol: Protocol
    method: str
    """A call string, or ``"single-task"``."""
    seed: int
    task: int | None = None
    """The task of a single-task network."""


class Trainer:
    """Training of one method, or of the single-task networks, on one problem.

    The program is compiled by the first run and shared by all seeds (and by all tasks of
    single-task networks).

    Args:
        problem: data, network and optimiser.
        method: call string or ``"single-task"``.

    Raises:
        ValueError: for an unknown method or option.
    """

    def __init__(self, problem: Problem, method: str) -> None:
        single = method == SINGLE
        num_tasks = 1 if single else problem.num_tasks
        self.problem, self.method = problem, method
        self._model = problem.model(num_tasks)
        losses_fn = network.make_losses(self._model)
        step, init = problem.training("ls" if single else method, num_tasks, losses_fn)

        def chunk(state: train.TrainState, split: Split, rows: jax.Array) -> Any:
            return train.scan_steps(
                step, state, split, rows, batch_sharding=problem.batch_sharding
            )

        replicated = problem.replicated
        self._init = jax.jit(init, out_shardings=replicated)
        self._chunk = jax.jit(chunk, donate_argnums=0, out_shardings=replicated)
        self._program: Callable[..., Any] | None = None
        self.compile_seconds = 0.0

    def run(
        self,
        folder: Path,
        seed: int,
        *,
        task: int | None = None,
        resume: bool = False,
        stop: Stop | None = None,
        on_steps: Callable[[int], None] = lambda count: None,
    ) -> dict[str, Any]:
        """Trains from ``seed`` in ``folder`` and returns the content of ``summary.json``.

        Args:
            folder: of the run.
            seed: of the initial weights, the order of the data and all randomness.
            task: for single-task networks.
            resume: go on from the folder's checkpoint (or do nothing if it is finished).
            stop: looked at after every chunk of steps.
            on_steps: told the number of steps just taken (or found done).

        Raises:
            records.NonFiniteError: naming task and step.
            records.Interrupted: after ``stop``; a checkpoint has been written.
            records.StorageError: naming what cannot be written.
            ValueError: if the folder holds another run, or its checkpoint is damaged.
        """
        problem = self.problem
        spec = RunSpec(
            protocol=problem.protocol, method=self.method, seed=seed, task=task
        )
        if checkpoint.exists(folder) and not (folder / "config.json").exists():
            raise ValueError(
                f"{folder} holds a checkpoint but no config.json that says of which "
                "run: delete the folder, or pass another --out"
            )
        records.open_run(folder, "train", spec, resume=resume, data=problem.source)
        if (folder / "summary.json").exists():
            on_steps(problem.total_steps)
            return records.read_json(folder / "summary.json")
        split = problem.split("train", task)
        init_key, run_key = jax.random.split(jax.random.key(seed))
        initial = network.init_model(self._model, init_key, split.images[:1])
        state = self._init(*initial, run_key)
        if checkpoint.exists(folder):
            state = checkpoint.restore(folder, state)
        done = int(state.step)
        for name in ("metrics.jsonl", "timing.jsonl"):
            records.truncate_lines(folder / name, done)
        on_steps(done)

        size = problem.chunk_steps
        for start in range(done, problem.total_steps, size):
            epoch, offset = divmod(start, problem.steps_per_epoch)
            rows = problem.order(seed, epoch)[offset : offset + size]
            state, record, seconds = self._timed_chunk(state, split, rows)
            self._check_finite(record.losses, start, task)
            self._log(folder, record, start, epoch, seconds)
            end = start + size
            if end % problem.steps_per_epoch == 0:
                self._evaluate(folder, state, epoch, task)
                due = (epoch + 1) % problem.protocol.checkpoint_every == 0
                if due or end == problem.total_steps:
                    checkpoint.save(folder, state)
            on_steps(size)
            if stop is not None and stop.requested:
                checkpoint.save(folder, state)
                raise records.Interrupted(
                    f"{folder} stands at step {end} of {problem.total_steps}; the same "
                    "command with --resume goes on"
                )
        return summarize(folder, spec, problem.task_names)

    def _timed_chunk(
        self, state: train.TrainState, split: Split, rows: np.ndarray
    ) -> tuple[train.TrainState, Any, float]:
        """Takes the steps of one chunk; compiles before the first."""
        placed = jax.device_put(rows, self.problem.replicated)
        begin = time.perf_counter()
        if self._program is None:
            self._program = self._chunk.lower(state, split, placed).compile()
            self.compile_seconds = time.perf_counter() - begin
            begin = time.perf_counter()
        state, record = jax.block_until_ready(self._program(state, split, placed))
        seconds = time.perf_counter() - begin
        return state, jax.device_get(record), seconds

    def _check_finite(self, losses: np.ndarray, start: int, task: int | None) -> None:
        bad = np.argwhere(~np.isfinite(losses))
        if len(bad):
            step, column = map(int, bad[0])
            name = self.problem.task_names[column if task is None else task]
            raise records.NonFiniteError(
                f"the loss of task {name!r} is {losses[step, column]} at step "
                f"{start + step + 1} of {self.method}: lower the learning rate, or "
                "resume from the last checkpoint with another method"
            )

    def _log(
        self,
        folder: Path,
        record: Any,
        start: int,
        epoch: int,
        seconds: float,
    ) -> None:
        """Appends means over blocks of at most ``LOG_STEPS`` steps, and the time."""
        size, num_tasks = record.losses.shape
        pairs = np.triu_indices(num_tasks, 1)
        lines, step = [], start
        for block in np.array_split(np.arange(size), -(-size // LOG_STEPS)):
            step += len(block)
            means = {
                "losses": record.losses[block].mean(0),
                "weights": record.weights[block].mean(0),
                "cosines": record.cosines[block].mean(0)[pairs],
            }
            rounded = {k: records.rounded(v.tolist()) for k, v in means.items()}
            lines.append({"kind": "train", "step": step, "epoch": epoch + 1, **rounded})
        records.append_lines(folder / "metrics.jsonl", lines)
        timing = {"step": step, "ms_per_step": round(1e3 * seconds / size, 4)}
        records.append_lines(folder / "timing.jsonl", [timing])

    def _evaluate(
        self, folder: Path, state: train.TrainState, epoch: int, task: int | None
    ) -> None:
        problem = self.problem
        split = problem.split("held_out", task)
        hits = network.correct(self._model, state.params, state.model_state, split)
        parts = np.split(jax.device_get(hits), [problem.validation_size])
        scores = [records.rounded(part.mean(0).tolist()) for part in parts]
        line = {"kind": "evaluation", "step": int(state.step), "epoch": epoch + 1}
        line |= {"validation": scores[0], "test": scores[1]}
        records.append_lines(folder / "metrics.jsonl", [line])


def summarize(
    folder: Path, spec: RunSpec, task_names: tuple[str, ...]
) -> dict[str, Any]:
    """Writes and returns ``summary.json`` from the run's own records.

    The reported accuracies are those after the epoch whose validation accuracy, averaged
    over the tasks, is the best (the first of them).
    """
    lines = records.read_lines(folder / "metrics.jsonl")
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    best = max(evaluations, key=lambda line: statistics.fmean(line["validation"]))
    times = [
        line["ms_per_step"] for line in records.read_lines(folder / "timing.jsonl")
    ]
    names = task_names if spec.task is None else task_names[spec.task : spec.task + 1]
    summary = {
        "method": spec.method,
        "seed": spec.seed,
        "tasks": list(names),
        "steps": lines[-1]["step"],
        "best_epoch": best["epoch"],
        "validation": best["validation"],
        "test": best["test"],
        "last_test": evaluations[-1]["test"],
        "ms_per_step": statistics.median(times),
    }
    records.write_json(folder / "summary.json", summary)
    return summary
