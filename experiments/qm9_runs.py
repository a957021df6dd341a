"""Parts of the study ``qm9``: every method and seed is one, and each single task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import qm9_cost, qm9_edges, qm9_plot, qm9_tables, records
from experiments.explore import Table
from experiments.explore_store import Store
from experiments.qm9_problem import Qm9Problem
from experiments.qm9_problem import load as load
from experiments.qm9_tables import PUBLISHED_SINGLE, SINGLE
from experiments.qm9_training import Trainer

if TYPE_CHECKING:
    from experiments.qm9 import Qm9Config

Record = dict[str, Any]
NOTES = {
    "test": "mean absolute errors in the units named, after the epoch with the best Δm on "
    "the validation split",
    "delta_m": "percent, against the errors under base",
    "base": "mean errors of the single-task networks, or with baseline=published those in "
    "Nash-MTL's code",
    "published": "Table 2 of arXiv:2202.01017: 110,831 molecules, 300 epochs, 64 units",
}


def run(config: Qm9Config, problem: Qm9Problem, folder: Path) -> list[Table]:
    """Runs the chosen parts, writes ``summary.json`` and returns tables.

    Args:
        config: of the study.
        problem: data and networks.
        folder: of the run.

    Raises:
        ValueError: for methods that do not fit.
        records.NonFiniteError: if a loss leaves the finite numbers.
    """
    facts = records.environment()
    summary: Record = {
        **{key: facts[key] for key in ("device", "cpu_count", "versions")},
        "git_commit": facts["git_commit"],
        "config": records.as_json(config),
        "data": problem.source,
        "tasks": list(problem.task_names),
        "units": list(problem.units),
        "notes": NOTES,
    }
    store = Store(folder, config.resume)
    if "runs" in config.parts:
        summary |= _compare(config, problem, store)
    if "cost" in config.parts:
        print("  cost of a step ...", flush=True)
        summary["cost"] = store.part("cost", lambda: qm9_cost.measure(problem, config))
    if "edges" in config.parts:
        print("  dense and sparse edges ...", flush=True)
        summary["edges"] = store.part(
            "edges", lambda: qm9_edges.measure(problem, config)
        )
    records.write_json(folder / "summary.json", summary)
    found = qm9_tables.tables(summary)
    text = "\n".join(qm9_tables.markdown(table) for table in found)
    records.write_bytes(folder / "tables.md", text.encode())
    if config.plot:
        for path in qm9_plot.draw(folder):
            print(f"picture: {path}")
    return found


def _compare(config: Qm9Config, problem: Qm9Problem, store: Store) -> Record:
    """Single-task networks first, since Δm against them steers all other runs."""
    from experiments.qm9 import method_calls

    singles: list[Record] = []
    published = np.array(PUBLISHED_SINGLE)
    if config.baseline == "own" or SINGLE in config.methods:
        trainer = Trainer(problem, config, None)
        # One task's Δm falls and rises with its error, whatever it is compared with.
        for seed in config.seeds:
            for task, name in enumerate(problem.task_names):
                singles.append(
                    _part(store, trainer, f"{SINGLE} {name}", seed, published, task)
                )
    own = config.baseline == "own"
    bases = {
        name: _mean_by_task(singles, name, problem.num_tasks) if own else published
        for name in ("validation", "test")
    }
    runs: list[Record] = []
    for call in method_calls(config):
        trainer = Trainer(problem, config, call)
        for seed in config.seeds:
            runs.append(_part(store, trainer, call, seed, bases["validation"]))
    return {
        "base": {name: base.tolist() for name, base in bases.items()},
        "single_task": singles,
        "runs": runs,
        "rows": qm9_tables.rows_of(runs, bases["test"].tolist()),
    }


def _part(
    store: Store,
    trainer: Trainer,
    name: str,
    seed: int,
    base: np.ndarray,
    task: int | None = None,
) -> Record:
    def make() -> Record:
        print(f"  {name}, seed {seed} ...", flush=True)
        record = trainer.run(seed, base, task)
        delta = min(line[0] for line in record["history"])
        of = "" if task is None else " (of the published error)"
        print(
            f"  {name}, seed {seed}: validation Δm {delta:.1f} %{of} in epoch "
            f"{record['best_epoch']} of {record['epochs']}; "
            f"{record['seconds_per_epoch']:.2f} s an epoch",
            flush=True,
        )
        return {"method": name, "seed": seed, "task": task, **record}

    return store.part(f"{records.slug(name)}_{seed}", make)


def _mean_by_task(singles: list[Record], name: str, num_tasks: int) -> np.ndarray:
    """Mean error over the seeds, by task."""
    found = [
        [run[name][0] for run in singles if run["task"] == task]
        for task in range(num_tasks)
    ]
    return np.array(found).mean(1)
