"""What Pareto manifold learning costs: a step against plain steps, a grid in one call."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.explore_problems import example_means
from experiments.manifold import ManifoldConfig
from experiments.manifold_families import manifold
from experiments.manifold_points import Family, plain
from experiments.manifold_problems import ManifoldProblem, judge
from experiments.manifold_training import order, take_step
from experiments.programs import Program, compile_program, interleaved
from mtl_jax import pareto

Array = jax.Array
ROUNDS = 11


def measure(problem: ManifoldProblem, config: ManifoldConfig) -> dict[str, Any]:
    """Times one step at W points against plain steps, and evaluations of the grid.

    Args:
        problem: data and network.
        config: settings of the manifold.

    Returns:
        ``rows``: name, milliseconds, ratio, and to what.
    """
    samples = config.samples
    families = {f"step, W = {samples}": manifold(problem, config)}
    if samples > 1:
        one = manifold(problem, dataclasses.replace(config, samples=1, regularizer=0.0))
        families = {"step, W = 1": one, **families}
    if config.balance == "ls":
        families[f"step, W = {samples}, gradnorm"] = manifold(
            problem, dataclasses.replace(config, balance="gradnorm")
        )
    base = "plain step"
    calls = {
        name: _step_program(problem, config, family).call
        for name, family in {base: plain(problem, config), **families}.items()
    }
    times = interleaved(calls, ROUNDS)
    rows = []
    for name, seconds in times.items():
        count = 1 if name == base or "W = 1" in name.split(",")[1] else samples
        rows.append(_row(name, seconds, count * times[base], f"{count} plain step(s)"))
    if not problem.slow_loops:
        rows += _evaluations(problem, config)
    return {"rows": rows, "rounds": ROUNDS, "batch_size": config.batch_size}


def _step_program(
    problem: ManifoldProblem, config: ManifoldConfig, family: Family
) -> Program:
    rows = order(problem.train.count, config.batch_size, 0, 0)[0]
    step = functools.partial(take_step, family.step)
    return compile_program(step, family.init(jax.random.key(0)), problem.train, rows)


def _evaluations(problem: ManifoldProblem, config: ManifoldConfig) -> list[dict]:
    """The whole grid in one call, against one call a point, on the test split."""
    grid = pareto.simplex_grid(problem.num_tasks, config.points)
    members, model_state = manifold(problem, config).solution(
        manifold(problem, config).init(jax.random.key(0))
    )

    def rule(params: Any, batch: Any) -> Any:
        inputs = problem.prepare(batch.inputs)
        return judge(problem.model.apply(params, model_state, inputs)[0], batch.targets)

    def function(params: Any, examples: Any) -> Any:
        return example_means(rule, params, examples)

    def whole() -> Any:
        return pareto.evaluate_manifold(function, members, grid, problem.test)

    alphas = jnp.asarray(grid, jnp.float32)
    single = jax.jit(
        lambda alpha, members, examples: function(
            pareto.member_mixture(members, alpha), examples
        )
    )

    def one_by_one() -> Any:
        return [single(alpha, members, problem.test) for alpha in alphas]

    together, apart = jax.device_get((whole(), one_by_one()))
    for k, each in enumerate(apart):
        np.testing.assert_allclose([part[k] for part in together], each, rtol=1e-3)
    count = len(grid)
    names = f"{count} points, one call", f"{count} points, {count} calls"
    times = interleaved(dict(zip(names, (whole, one_by_one), strict=True)), 3)
    to = f"{count} single evaluations"
    return [_row(name, seconds, times[names[1]], to) for name, seconds in times.items()]


def _row(name: str, seconds: float, base: float, to: str) -> dict[str, Any]:
    ratio = round(seconds / base, 3)
    return {"name": name, "ms": round(1e3 * seconds, 3), "ratio": ratio, "to": to}
