"""What other ways make of the same budget: warm-started SGD, and training anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments import records
from experiments.explore import ExploreConfig
from experiments.explore_problems import NetworkProblem, measure
from experiments.explore_starts import Training
from experiments.explore_traces import MARGIN
from mtl_jax.metrics import hypervolume

Record = dict[str, Any]
WAYS = {
    "expansion": "steps along the tangents",
    "warm": "SGD from the start (or the last stage), weights shifted stage by stage",
    "retrained": "new networks from scratch, weights shifted as far",
}


def budgets(steps: int) -> list[int]:
    """Steps of the expansion whose cost the others get: one, two, half of all."""
    return sorted({1, min(2, steps), max(1, steps // 2)})


def efficiency(
    training: Training,
    config: ExploreConfig,
    weights: np.ndarray,
    middle: int,
    params: Any,
    traces: list[Record],
) -> Record:
    """Hypervolume against cost, for three ways to widen the front around one start.

    Every unit direction of the expansion has a counterpart with weights between those of
    the start and those of the outermost start on that side. For every step of the
    expansion, a warm stage takes as many steps of SGD as the expansion's step counts
    gradient-equivalents, its learning rate falling from the start's to 0 by a cosine; and
    a new network is trained with the budget of all steps so far.

    Args:
        training: of the starts.
        config: the study's settings.
        weights: of the starts, ``(S, m)``.
        middle: the start that is widened.
        params: its parameters.
        traces: records of all starts' traces, in unit directions.

    Returns:
        Points, costs in gradient-equivalents and seconds, and hypervolumes on the test
        losses and errors. The reference is the worst of the starts in each objective
        times 1.05.
    """
    problem, entry = training.problem, traces[middle]
    lanes = len(entry["directions"])
    cost = entry["spent"]["equivalents"] / (lanes * config.steps)
    stage = max(1, round(cost))
    ends = [weights[int(weights[:, i].argmax())] for i in range(problem.num_tasks)]

    def shifted(i: int, step: int) -> np.ndarray:
        return weights[middle] + (ends[i] - weights[middle]) * step / config.steps

    ours = _Points()
    last = budgets(config.steps)[-1]
    for each in entry["directions"]:
        for step in range(1, last + 1):
            share = entry["spent"]["seconds"] / (lanes * config.steps)
            ours.add(step, each["test_losses"][step], each["test_errors"][step], share)
    warm = _Points()
    for i in range(problem.num_tasks):
        now = params
        for step in range(1, last + 1):
            trained = training.run(now, shifted(i, step), stage)
            now = trained.params
            warm.add(step, *_test(problem, now), trained.seconds)
    retrained = _Points()
    for i in range(problem.num_tasks):
        for step in budgets(config.steps):
            steps = stage * step
            trained = training.run(training.initial(), shifted(i, step), steps)
            retrained.add(step, *_test(problem, trained.params), trained.seconds)

    found = {"expansion": ours, "warm": warm, "retrained": retrained}
    first = entry["directions"][0]
    start = {name: first[name][0] for name in ("test_losses", "test_errors")}
    nadir = {
        name: MARGIN
        * np.max([each["directions"][0][name][0] for each in traces], axis=0)
        for name in start
    }

    def volume(name: str, points: list[list[float]]) -> float:
        values = np.array([start[name], *points], float)
        return records.rounded(hypervolume(values, nadir[name]))

    rows = []
    for step in budgets(config.steps):
        row: Record = {
            "steps": step,
            "equivalents": round(stage * step * problem.num_tasks, 1),
        }
        for way, points in found.items():
            until = (lambda s, step=step: s == step) if way == "retrained" else None
            until = until or (lambda s, step=step: s <= step)
            row[way] = {
                name: volume(name, points.select(name, until)) for name in start
            } | {"seconds": round(points.seconds(until), 1)}
        rows.append(row)
    gradients = stage * problem.num_tasks * (last + sum(budgets(config.steps)))
    return {
        "start_weights": weights[middle].tolist(),
        "ways": WAYS,
        "equivalents_per_step": round(cost, 1),
        "reference": {k: records.rounded(v.tolist()) for k, v in nadir.items()},
        "start": {**start, **{f"hypervolume_{k}": volume(k, []) for k in start}},
        "rows": rows,
        "points": {way: points.rows for way, points in found.items()},
        "spent": {
            "gradients": gradients,
            "equivalents": gradients,
            "seconds": round(warm.seconds() + retrained.seconds(), 2),
        },
    }


class _Points:
    """Measured networks by the step of the expansion that they cost as much as."""

    def __init__(self) -> None:
        self.rows: list[Record] = []

    def add(self, step: int, losses: Any, errors: Any, seconds: float) -> None:
        measured = {"test_losses": losses, "test_errors": errors}
        self.rows.append({"steps": step, **measured, "seconds": round(seconds, 3)})

    def select(self, name: str, until: Callable[[int], bool]) -> list[list[float]]:
        return [row[name] for row in self.rows if until(row["steps"])]

    def seconds(self, until: Callable[[int], bool] = lambda step: True) -> float:
        return sum(row["seconds"] for row in self.rows if until(row["steps"]))


def _test(problem: NetworkProblem, params: Any) -> tuple[list[float], list[float]]:
    one = jax.tree.map(lambda leaf: leaf[None], params)
    losses, errors = measure(problem, one, problem.test)
    return records.rounded(losses[0].tolist()), records.rounded(errors[0].tolist())
