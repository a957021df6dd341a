"""The parts of the study ``sparse``: runs them, writes ``summary.json`` and pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import (
    records,
    sparse_conflict,
    sparse_fronts,
    sparse_plot,
    sparse_similarity,
    sparse_table,
    sparse_tables,
)
from experiments.explore import Table
from experiments.sparse import SparseConfig
from experiments.sparse_lab import Lab
from experiments.sparse_problems import SparseProblem, load

__all__ = ["load", "run"]

Record = dict[str, Any]
NOTES = {
    "selection": "every network is its epoch with the best mean accuracy on the "
    "validation split; so is the best vector of a front. Nothing is selected on test",
    "SR, CR, PS": "zero rows in per cent; rows over different rows; live rows over "
    "different rows; over all kernels, heads and first convolutions included",
    "seconds": "of the steps of training, without compilation and evaluation; of sparse "
    "networks the second phase alone (as published), total_seconds with the first one",
    "compressed": "file of the network without zero rows, tied rows once, read back: "
    "share of equal predictions on the test split, largest difference of logits, "
    "milliseconds for 256 pictures",
    "minutes": "of this call, compilation and evaluation included; parts that were found "
    "finished take none",
    "fronts": "coordinates are mean training losses of the last epoch",
    "conflict": "cosines between the tasks' gradients of the shared part, all steps of "
    "the small front; width: mean range of a test loss over its points",
}


def run(config: SparseConfig, problem: SparseProblem, folder: Path) -> list[Table]:
    """Runs the chosen parts, writes ``summary.json`` and pictures, returns tables.

    Args:
        config: of the study.
        problem: its data.
        folder: of the run.

    Raises:
        ValueError: for layers that are not there.
        records.NonFiniteError: if a loss leaves the finite numbers.
    """
    print(f"data: {problem.source}", flush=True)
    lab = Lab(problem, config, folder)
    facts = records.environment()
    summary: Record = {
        **{key: facts[key] for key in ("device", "cpu_count", "versions")},
        "git_commit": facts["git_commit"],
        "config": records.as_json(config),
        "data": problem.source,
        "images": problem.images,
        "tasks": list(problem.task_names),
        "examples": [
            split.count for split in (problem.train, problem.validation, problem.test)
        ],
        "steps_per_epoch": lab.trainer.steps_per_epoch,
        "notes": NOTES,
        "minutes": {},
    }
    fronts = config.front_architectures
    parts: dict[str, Callable[[], Any]] = {
        "table": lambda: sparse_table.rows(lab),
        "similarity": lambda: [
            sparse_similarity.maps(lab, name) for name in config.architectures
        ],
        "front2d": lambda: [sparse_fronts.front_2d(lab, name) for name in fronts],
        "conflict": lambda: sparse_conflict.curve(lab),
        "front3d": lambda: [sparse_fronts.front_3d(lab, name) for name in fronts],
    }
    for name, make in parts.items():
        if name in config.parts:
            begin = time.perf_counter()
            summary[name] = make()
            minutes = (time.perf_counter() - begin) / 60
            summary["minutes"][name] = round(minutes, 2)
    records.write_json(folder / "summary.json", summary)
    if config.plot:
        for path in sparse_plot.draw(folder):
            print(f"picture: {path}")
    return sparse_tables.tables(summary)
