"""Networks of the study ``explore``: Figure 5 of arXiv:2006.16434, and its ablations.

Weighted-sum starts are trained, traced in every direction, and joined to a continuous
front; one of them is taken for the comparisons. Every finished part lies in ``parts/``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import (
    explore_efficiency,
    explore_networks_plot,
    explore_networks_tables,
    explore_point,
    explore_problems,
    explore_solver,
    explore_studies,
    explore_traces,
    records,
)
from experiments.explore import ExploreConfig, Table
from experiments.explore_point import ACCOUNTING, Tools
from experiments.explore_problems import NetworkProblem
from experiments.explore_starts import Training, start_weights
from experiments.explore_store import Store

Record = dict[str, Any]


def run(config: ExploreConfig, folder: Path) -> list[Table]:
    """Runs the chosen parts, writes ``summary.json`` and pictures, returns tables.

    Args:
        config: of the study.
        folder: of the run.

    Raises:
        ValueError: for sizes or parts that do not fit.
        FileNotFoundError: if the data are not in ``data_dir``.
        records.NonFiniteError: if a loss leaves the finite numbers.
    """
    _check_parts(config)
    problem = explore_problems.load(config)
    print(f"data: {problem.source}", flush=True)
    study = _Study(problem, config, folder)
    summary = study.run()
    records.write_json(folder / "summary.json", summary)
    if config.plot:
        for path in explore_networks_plot.draw(folder):
            print(f"picture: {path}")
    return explore_networks_tables.tables(summary)


def _check_parts(config: ExploreConfig) -> None:
    for part in ("front", "efficiency"):
        if part in config.parts and "trace" not in config.parts:
            raise ValueError(
                f"the part {part!r} needs the part 'trace': add it to --parts"
            )


class _Study:
    def __init__(
        self, problem: NetworkProblem, config: ExploreConfig, folder: Path
    ) -> None:
        self.problem, self.config, self.folder = problem, config, folder
        # Names bad sizes and starts before anything is trained.
        explore_point.sizes(problem, config)
        self.store = Store(folder, config.resume)
        self.training = Training(problem, config)
        self.weights = start_weights(problem.num_tasks, config)
        self.middle = len(self.weights) // 2
        if not set(config.efficiency_starts) <= set(range(len(self.weights))):
            raise ValueError(
                f"efficiency_starts must be numbers of the {len(self.weights)} starts, "
                f"0 to {len(self.weights) - 1}, got {config.efficiency_starts}"
            )
        self.tools = Tools(problem, config)

    def run(self) -> Record:
        config, problem = self.config, self.problem
        if "efficiency" in config.parts and problem.num_tasks != 2:
            raise ValueError(
                "the part 'efficiency' compares two objectives: leave it out"
            )
        initial = jax.device_get(self.training.initial())
        facts = records.environment()
        summary: Record = {
            **{key: facts[key] for key in ("device", "cpu_count", "versions")},
            "git_commit": facts["git_commit"],
            "config": records.as_json(config),
            "data": problem.source,
            "tasks": list(problem.task_names),
            "errors": list(problem.error_names),
            "parameters": sum(np.size(leaf) for leaf in jax.tree.leaves(initial)),
            "accounting": ACCOUNTING,
        }
        starts = [self._start(number, initial) for number in range(len(self.weights))]
        summary["starts"] = [entry for entry, _ in starts]
        params = [trained for _, trained in starts]
        traces: list[Record] = []
        if "trace" in config.parts:
            traces = self._traces(params)
            summary["trace"] = self._trace_summary(traces)
        if "front" in config.parts:
            self._say("continuous front")
            summary["front"] = self.store.part("front", lambda: self._front(initial))
        middle = params[self.middle]
        makers = {
            "necessity": lambda: explore_studies.necessity(self.tools, config, middle),
            "ablation": lambda: explore_studies.ablation(self.tools, config, middle),
            "solver": lambda: explore_solver.compare(self.tools, config, middle),
        }
        for name, make in makers.items():
            if name in config.parts:
                self._say(name)
                made = self.store.part(name, make)
                summary[name] = {"start": self.middle, **made}
        if "efficiency" in config.parts:
            numbers = config.efficiency_starts or (self.middle,)
            summary["efficiency"] = [
                self._efficiency(number, params[number], traces) for number in numbers
            ]
        summary["spent"] = _total(summary)
        return summary

    def _start(self, number: int, initial: Any) -> tuple[Record, Any]:
        """Trains one start, or reads it."""
        name, weights = f"start{number}", self.weights[number]

        def make() -> tuple[Record, Any]:
            self._say(f"training start {number} with weights {_text(weights)}")
            steps = self.config.epochs * self.training.steps_per_epoch
            trained = self.training.run(initial, weights, steps, watch=True)
            last = trained.history[-1]
            entry = {
                "weights": weights.tolist(),
                "test_losses": last["losses"],
                "test_errors": last["errors"],
                "history": trained.history,
                "spent": {
                    "gradients": trained.gradients,
                    "equivalents": trained.gradients,
                    "seconds": round(trained.seconds, 2),
                },
            }
            return entry, trained.params

        entry = self.store.part(name, make)
        return entry, self.store.arrays(name, initial)

    def _traces(self, params: Sequence[Any]) -> list[Record]:
        """Traces every start that is not on disk yet."""
        config = self.config
        betas = explore_traces.directions(self.problem.num_tasks, config.betas)
        trace = explore_traces.tracer(self.problem, config, betas)

        def make(number: int) -> Any:
            self._say(f"tracing from start {number}")
            found, seconds = trace(params[number], number)
            weights = self.weights[number]
            entry, arrays = explore_traces.record(
                self.problem, config, betas, weights, found, seconds
            )
            # Only the continuous front needs the points' parameters again.
            return (entry, arrays) if "front" in config.parts else entry

        return [
            self.store.part(f"trace{number}", lambda number=number: make(number))
            for number in range(len(params))
        ]

    def _trace_summary(self, traces: list[Record]) -> Record:
        steps = self.config.steps
        return {
            "starts": traces,
            "exchange": [
                [
                    explore_traces.exchanges(entry, n)
                    for n in sorted({1, min(2, steps), steps})
                ]
                for entry in traces
            ],
            "coverage": [
                explore_traces.coverage(traces, n)
                for n in sorted({1, steps // 2 or 1, steps})
            ],
        }

    def _efficiency(self, number: int, params: Any, traces: list[Record]) -> Record:
        def make() -> Record:
            self._say(f"efficiency from start {number}")
            return explore_efficiency.efficiency(
                self.training, self.config, self.weights, number, params, traces
            )

        return self.store.part(f"efficiency{number}", make)

    def _front(self, initial: Any) -> Record:
        config, problem = self.config, self.problem
        betas = explore_traces.directions(problem.num_tasks, config.betas)
        lead = (len(betas), config.steps + 1)
        values = np.zeros((*lead, problem.num_tasks))
        like = explore_traces.Traced(
            jax.tree.map(
                lambda leaf: np.broadcast_to(leaf, (*lead, *leaf.shape)), initial
            ),
            values,
            values,
        )
        each = [self.store.arrays(f"trace{n}", like) for n in range(len(self.weights))]
        traced = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
        return explore_traces.continuous(problem, config, traced, self.folder)

    def _say(self, text: str) -> None:
        print(f"  {text} ...", flush=True)


def _text(weights: np.ndarray) -> str:
    return "(" + ", ".join(f"{weight:.3g}" for weight in weights) + ")"


def _total(summary: Record) -> Record:
    """Sums of what the parts spent; the timed comparison is no part of the method."""
    spent = [part["spent"] for part in summary["starts"]]
    spent += [part["spent"] for part in summary.get("trace", {}).get("starts", [])]
    spent += [
        summary[name]["spent"]
        for name in ("front", "necessity", "ablation")
        if name in summary
    ]
    spent += [part["spent"] for part in summary.get("efficiency", [])]
    return {
        name: round(sum(part[name] for part in spent), 1)
        for name in ("equivalents", "seconds")
    }
