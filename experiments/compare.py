"""Study ``compare``: methods against single-task networks, over several seeds."""

from __future__ import annotations

import dataclasses
import datetime
import statistics
import time
from pathlib import Path
from typing import Any

import mtl_jax
from experiments import cli, plots, progress, records, runner, tables
from experiments.config import Protocol
from experiments.problem import SINGLE, Problem
from experiments.stop import stop_on_signal
from experiments.timing import PlainStep

NOTE = (
    "test accuracy after the epoch with the best mean validation accuracy; "
    "± standard deviation over seeds"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Trains methods and single-task networks; prints a table, draws pictures."""

    config: str = "embedded"
    """Named settings in experiments/configs that the other options override."""
    methods: tuple[str, ...] = ("ls", "mgda", "cagrad(c=0.4)", "nash_mtl", "uw")
    """Call strings; "all" stands for every registered method."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs."""
    grid: int = 0
    """Adds so many fixed pairs of weights: ls(weights=(w, 1-w))."""
    out: Path | None = None
    """Folder of the comparison; default: runs/compare-DATE-TIME."""
    resume: bool = False
    """Go on in --out, or in the newest runs/compare-*: finished runs are kept."""
    progress: bool = dataclasses.field(default_factory=cli.is_terminal)
    """Show a progress bar (default: on a terminal)."""
    protocol: Protocol = dataclasses.field(default_factory=Protocol)


def run(config: CompareConfig) -> Path:
    """Runs the comparison and returns its folder.

    Raises:
        ValueError: for unknown methods, bad sizes, or a folder with other runs.
        FileNotFoundError: if the data are not in ``data_dir``.
    """
    begin = time.perf_counter()
    problem = Problem(config.protocol)
    calls = method_calls(config, problem.num_tasks)
    # Built before anything is trained: a bad call string costs no time.
    trainers = {call: runner.Trainer(problem, call) for call in (SINGLE, *calls)}
    folder = choose_folder(config)
    records.start_run(folder, "compare", config, data=problem.source)
    print(f"data: {problem.source}")
    print(f"records: {folder}", flush=True)

    plan = [
        (call, seed, task)
        for call in trainers
        for seed in config.seeds
        for task in (range(problem.num_tasks) if call == SINGLE else [None])
    ]
    total = len(plan) * problem.total_steps
    plain = None
    summaries = []
    with stop_on_signal() as stop, progress.show(total, enabled=config.progress) as bar:
        for call, seed, task in plan:
            name = call if task is None else f"{call} {problem.task_names[task]}"
            bar.describe(f"{name} seed {seed}")
            where = Path(records.slug(name)) / f"seed{seed}"
            if not (folder / where / "summary.json").exists():
                # Next to the run it is compared with: machines change their pace.
                plain = PlainStep(problem) if plain is None else plain
                line = {"run": str(where), "ms_per_step": plain.milliseconds()}
                records.append_lines(folder / "plain.jsonl", [line])
            summary = trainers[call].run(
                folder / where,
                seed,
                task=task,
                resume=config.resume,
                stop=stop,
                on_steps=bar.advance,
            )
            summaries.append({"run": str(where), **summary})
            scores = " ".join(f"{100 * score:.2f} %" for score in summary["test"])
            bar.line(f"  {name} seed {seed}: {scores}")
    report(folder, problem, summaries)
    seconds = time.perf_counter() - begin
    print(f"{seconds:.0f} s in all; data: {problem.source}")
    return folder


def method_calls(config: CompareConfig, num_tasks: int) -> list[str]:
    """The call strings to run, each once.

    Raises:
        ValueError: if there is none, or the grid does not fit.
    """
    calls: list[str] = []
    for call in config.methods:
        calls += list(mtl_jax.METHODS) if call == "all" else [call]
    if config.grid and (config.grid < 0 or num_tasks != 2):
        raise ValueError(
            f"grid needs two tasks and a count >= 0, got {num_tasks} and {config.grid}"
        )
    for i in range(config.grid):
        first = round((i + 0.5) / config.grid, 2)
        calls.append(f"ls(weights=({first:g}, {1 - first:.2g}))")
    calls = list(dict.fromkeys(calls))
    if not calls or not config.seeds:
        raise ValueError("methods and seeds must name at least one each")
    return [call for call in calls if call != SINGLE]


def choose_folder(config: CompareConfig) -> Path:
    """The folder of ``--out`` or a new one; for ``--resume`` the newest.

    Raises:
        FileExistsError: if it holds a comparison and ``--resume`` is not given.
        FileNotFoundError: if there is nothing to resume.
    """
    if config.out is None and config.resume:
        known = sorted(Path("runs").glob("compare-*"))
        if not known:
            raise FileNotFoundError("nothing to resume: runs/compare-* does not exist")
        return known[-1]
    if config.out is None:
        return Path("runs") / f"compare-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    if (config.out / "config.json").exists() and not config.resume:
        raise FileExistsError(
            f"{config.out} already holds a comparison: pass --resume to go on, or "
            "another --out"
        )
    return config.out


def report(folder: Path, problem: Problem, summaries: list[dict[str, Any]]) -> None:
    """Writes summary, tables and pictures, and prints the table."""
    lines = records.read_lines(folder / "plain.jsonl")
    plain = {line["run"]: line["ms_per_step"] for line in lines}
    runs = [{**run, "plain_ms_per_step": plain[run["run"]]} for run in summaries]
    rows = tables.rows_of(runs)
    records.write_json(
        folder / "summary.json",
        {
            "data": problem.source,
            "tasks": list(problem.task_names),
            "note": NOTE,
            "rows": rows,
            "runs": runs,
        },
    )
    heads, body = tables.cells(rows, problem.task_names)
    csv_text = tables.csv_text(rows, problem.task_names)
    records.write_bytes(folder / "table.csv", csv_text.encode())
    markdown = tables.markdown(heads, body)
    records.write_bytes(folder / "table.md", markdown.encode())
    tables.show(heads, body, title=NOTE)
    print(
        "x plain: against a step on the sum of the losses with one backward pass "
        f"({statistics.median(plain.values()):.1f} ms), which is how equal weights "
        "cost least; here every method, ls too, computes and records all task gradients "
        "(but for those with strategy= or every_k=)"
    )
    for path in plots.draw_all(folder):
        print(f"picture: {path}")
