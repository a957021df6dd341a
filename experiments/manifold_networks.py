"""Networks of the study ``manifold``: fronts of one training run, and their baselines.

Every family and every baseline of every seed is one part in ``parts/``. All are trained on
the same batches and evaluated after the last epoch, so that nothing is selected on the
test split.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import (
    manifold_cost,
    manifold_plot,
    manifold_problems,
    manifold_tables,
    records,
)
from experiments.explore import Table
from experiments.explore_store import Store
from experiments.manifold import ManifoldConfig
from experiments.manifold_families import balance_of, make
from experiments.manifold_points import SINGLE, Family, single_tasks
from experiments.manifold_problems import ManifoldProblem
from experiments.manifold_training import Evaluator, Trained, Trainer, order
from mtl_jax import metrics, pareto, registry

Record = dict[str, Any]
NOTES = {
    "hypervolume_scores": "volume between the origin and the scores; one is perfect",
    "hypervolume_losses": "volume between the losses and the point (1, 1, ...)",
    "ends": "score of each task at that task's vertex; of points, the score itself",
    "monotonicity": "share of the pairs of points in which more weight is less loss; "
    "COSMOS' cosine asks for the opposite: losses in proportion to the ray",
    "own_statistics": "batch statistics computed anew at every point, not shared",
    "pull_backs": "backward passes of one network, all steps together",
    "selection": "none: the networks after the last step, on the test split",
}


def check(config: ManifoldConfig) -> None:
    """Names bad calls before anything is written.

    Raises:
        ValueError: for an unknown method, option or balance, or nothing to do.
    """
    for call in config.baselines:
        if call != SINGLE:
            registry.parse(call, also=registry.SOURCE_OPTIONS)
    balance_of(config.balance, 2)
    if not config.parts or not (config.families or config.baselines):
        raise ValueError("nothing to do: choose --parts, and --families or --baselines")


def run(config: ManifoldConfig, folder: Path) -> list[Table]:
    """Runs the chosen parts, writes ``summary.json`` and pictures, returns tables.

    Args:
        config: of the study.
        folder: of the run.

    Raises:
        ValueError: for sizes or methods that do not fit.
        FileNotFoundError: if the data are not in ``data_dir``.
        records.NonFiniteError: if a loss leaves the finite numbers.
    """
    problem = manifold_problems.load(config)
    print(f"data: {problem.source}", flush=True)
    summary = _Study(problem, config, folder).run()
    records.write_json(folder / "summary.json", summary)
    if config.plot:
        for path in manifold_plot.draw(folder):
            print(f"picture: {path}")
    return manifold_tables.tables(summary)


class _Study:
    def __init__(
        self, problem: ManifoldProblem, config: ManifoldConfig, folder: Path
    ) -> None:
        self.problem, self.config = problem, config
        self.store = Store(folder, config.resume)
        self.trainer = Trainer(problem, config)
        self.grid = pareto.simplex_grid(problem.num_tasks, config.points)
        self.families: dict[str, Family] = {}
        self.evaluators: dict[str, Evaluator] = {}

    def run(self) -> Record:
        config, problem = self.config, self.problem
        facts = records.environment()
        summary: Record = {
            **{key: facts[key] for key in ("device", "cpu_count", "versions")},
            "git_commit": facts["git_commit"],
            "config": records.as_json(config),
            "data": problem.source,
            "tasks": list(problem.task_names),
            "scores": list(problem.score_names),
            "examples": [
                split.count
                for split in (problem.train, problem.validation, problem.test)
            ],
            "parameters": problem.num_parameters(),
            "grid": self.grid.tolist(),
            "notes": NOTES,
        }
        if "fronts" in config.parts:
            names = [*config.baselines, *config.families]
            runs = [self._part(name, seed) for seed in config.seeds for name in names]
            summary["runs"] = runs
            summary["rows"] = manifold_tables.rows_of(runs, problem.num_tasks)
        if "cost" in config.parts:
            print("  cost of a step and of an evaluation ...", flush=True)
            summary["cost"] = self.store.part(
                "cost", lambda: manifold_cost.measure(problem, config)
            )
        return summary

    def _part(self, name: str, seed: int) -> Record:
        text = f"{name}, seed {seed}"

        def make_part() -> Record:
            print(f"  {text} ...", flush=True)
            entry = self._single(seed) if name == SINGLE else self._run(name, seed)
            ends = ", ".join(f"{end:.4f}" for end in entry["ends"])
            print(
                f"  {text}: ends {ends}; {entry['spent']['seconds']:.0f} s", flush=True
            )
            return entry

        return self.store.part(f"{records.slug(name)}_{seed}", make_part)

    def _family(self, name: str) -> Family:
        if name not in self.families:
            self.families[name] = make(name, self.problem, self.config)
        return self.families[name]

    def _run(self, name: str, seed: int) -> Record:
        family = self._family(name)
        trained = self.trainer.run(family, seed)
        grid = self.grid if family.whole_front else self.grid[:1]
        evaluate = functools.partial(self._evaluate, family, trained.solution, grid)
        entry = self._entry(name, seed, evaluate("test"), [trained], family)
        if self.config.validation and self.problem.validation.count:
            found = evaluate("validation")
            entry["validation_losses"], entry["validation_scores"] = map(
                _rounded, found
            )
        count = self.config.recalibration_batches
        if family.whole_front and count and jax.tree.leaves(trained.solution[1]):
            batches = self._batches(seed, count)
            entry["own_statistics"] = self._measures(evaluate("test", batches))
        if name == "manifold":
            cosines = pareto.member_similarity(trained.solution[0])
            entry["similarity"] = _rounded(np.asarray(cosines))
        return entry

    def _batches(self, seed: int, count: int) -> Any:
        """Training inputs ``(K, B, ...)`` for batch statistics."""
        train = self.problem.train
        rows = order(train.count, self.config.batch_size, seed, self.config.epochs)
        return train.inputs[rows[:count]]

    def _single(self, seed: int) -> Record:
        """One network per task; each is judged by its own task."""
        base = self._family("ls")
        runs, rows = [], []
        for task, family in enumerate(single_tasks(base, self.problem.num_tasks)):
            trained = self.trainer.run(family, seed)
            found = self._evaluate(base, trained.solution, self.grid[:1], "test")
            rows.append([each[0, task] for each in found])
            runs.append(trained)
        found = np.array(rows).T[:, None]
        return self._entry(SINGLE, seed, (found[0], found[1]), runs, base)

    def _evaluate(
        self,
        family: Family,
        solution: Any,
        grid: np.ndarray,
        split: str,
        batches: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        if family.name not in self.evaluators:
            self.evaluators[family.name] = Evaluator(self.problem, family)
        evaluate = self.evaluators[family.name]
        return evaluate(solution, grid, getattr(self.problem, split), batches)

    def _entry(
        self,
        name: str,
        seed: int,
        found: tuple[np.ndarray, np.ndarray],
        runs: list[Trained],
        family: Family,
    ) -> Record:
        steps = sum(each.steps for each in runs)
        size = sum(np.size(leaf) for leaf in jax.tree.leaves(runs[0].solution[0]))
        return {
            "name": name,
            "seed": seed,
            "whole_front": family.whole_front,
            **self._measures(found),
            "parameters": len(runs) * size,
            "history": [each.history for each in runs],
            "spent": {
                "steps": steps,
                "pull_backs": steps * family.pull_backs,
                "seconds": round(sum(each.seconds for each in runs), 2),
                "compile_seconds": round(sum(each.compile_seconds for each in runs), 2),
            },
        }

    def _measures(self, found: tuple[np.ndarray, np.ndarray]) -> Record:
        """What is told of losses and scores ``(N, T)`` on the grid, or at one point."""
        losses, scores = found
        tasks = np.arange(self.problem.num_tasks)
        whole = len(scores) == len(self.grid)
        vertices = np.argmax(self.grid == 1, axis=0) if whole else 0 * tasks
        entry = {
            "losses": _rounded(losses),
            "scores": _rounded(scores),
            "ends": _rounded(scores[vertices, tasks]),
            "hypervolume_scores": metrics.hypervolume(-scores, np.zeros(len(tasks))),
            "hypervolume_losses": metrics.hypervolume(losses, np.ones(len(tasks))),
        }
        if whole:
            weights = np.float32(self.grid)
            for name, falling in (("", losses), ("_scores", -scores)):
                ordered = pareto.monotonicity(np.float32(falling), weights)
                entry[f"monotonicity{name}"] = _rounded(np.asarray(ordered))
        return entry


def _rounded(values: np.ndarray) -> Any:
    return records.rounded(np.asarray(values, float).tolist())
