"""Are tangents needed, and how many MINRES iterations do they need? From one start."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from experiments import records
from experiments.explore import ExploreConfig
from experiments.explore_point import Tools, line, unit_vector, units
from experiments.explore_problems import measure
from mtl_jax.metrics import hypervolume, non_dominated

RANDOM = 4
"""Random directions compared with the tangents."""
Record = dict[str, Any]


def necessity(tools: Tools, config: ExploreConfig, params: Any) -> Record:
    """Straight lines from one start: along tangents, down gradients, and at random.

    All directions have length one. All lines have points at the same lengths, from a
    thousandth of ``config.line_reach`` to the whole of it, because what is short along a
    tangent is far down a gradient. Each line is judged by

    * ``best``: for each objective, its largest fall along the line, and what the others
      paid there together;
    * ``kept``: its points that no point of any line dominates;
    * ``hypervolume``: of its points, start included. The reference is the worst of the
      tangents' points in each objective, and a tenth of their range more.
    """
    begin = time.perf_counter()
    problem = tools.problem
    point = tools.point(params, config.seed)
    names, vectors, hvps = [], [], 0
    for i, task in enumerate(problem.task_names):
        found = tools.tangent(point, np.eye(problem.num_tasks)[i])
        names.append(f"tangent, {task} falls")
        vectors.append(found.direction)
        hvps += int(found.hvps)
    for i, task in enumerate(problem.task_names):
        names.append(f"gradient, {task} falls")
        vectors.append(
            unit_vector(jax.tree.map(lambda leaf, i=i: leaf[i], point.grads))
        )
    keys = jax.random.split(jax.random.key(config.seed), RANDOM)
    for i, key in enumerate(keys):
        names.append(f"random {i + 1}")
        vectors.append(unit_vector(_normal_like(key, params)))

    reach, count = config.line_reach, config.line_points
    lengths = np.array([0, *np.geomspace(reach / 1000, reach, count - 1)])
    lines = [line(params, vector, lengths) for vector in vectors]
    probe = np.stack([measure(problem, each, problem.probe())[0] for each in lines])
    tests = [measure(problem, each, problem.test) for each in lines]
    kept = non_dominated(probe.reshape(-1, problem.num_tasks)).reshape(probe.shape[:2])
    kept[1:, 0] = False  # the start is one point, not one per line
    tangents = probe[: problem.num_tasks]
    high, low = tangents.max((0, 1)), tangents.min((0, 1))
    reference = high + 0.1 * (high - low)
    alpha = np.asarray(point.alpha, float)
    unit = units(problem, config)
    rows = [
        {
            "direction": name,
            "probe_losses": records.rounded(probe[k].tolist()),
            "test_losses": records.rounded(tests[k][0].tolist()),
            "test_errors": records.rounded(tests[k][1].tolist()),
            "best": _largest_falls(probe[k] - probe[k, :1]),
            "kept": f"{kept[k, 1:].sum()} of {len(lengths) - 1}",
            "hypervolume": records.rounded(hypervolume(probe[k], reference)),
        }
        for k, name in enumerate(names)
    ]
    solves = problem.num_tasks
    return {
        "alpha": records.rounded(alpha.tolist()),
        "lengths": records.rounded(lengths.tolist()),
        "reference": records.rounded(reference.tolist()),
        "hypervolume_start": records.rounded(hypervolume(probe[0, :1], reference)),
        "lines": rows,
        "spent": {
            "gradients": 1,
            "hvps": hvps,
            "solves": solves,
            "equivalents": round(unit.gradients + (hvps + solves) * unit.hvp, 1),
            "seconds": round(time.perf_counter() - begin, 2),
        },
    }


def ablation(tools: Tools, config: ExploreConfig, params: Any) -> Record:
    """One step from one start after different numbers of MINRES iterations.

    Same point, batches and right-hand side (``e_1``, the first objective falls).
    """
    problem = tools.problem
    point = tools.point(params, config.seed)
    beta = np.eye(problem.num_tasks)[0]
    counts = sorted(set(config.ablation))
    found, seconds = [], []
    for count in counts:
        solve = tools.compiled(count, point, beta)
        begin = time.perf_counter()
        found.append(jax.block_until_ready(solve()))
        seconds.append(time.perf_counter() - begin)
    best = found[-1].direction
    lengths = np.array([0.0, config.step_size])
    alpha = np.asarray(point.alpha, float)
    unit = units(problem, config)
    rows = []
    for count, tangent, time_of in zip(counts, found, seconds, strict=True):
        moved = line(params, tangent.direction, lengths)
        row: Record = {
            "maxiter": count,
            "iterations": int(tangent.info.iterations),
            "residual": records.rounded(float(tangent.residual)),
            "cosine_to_last": records.rounded(_inner(tangent.direction, best)),
            "seconds": round(time_of, 3),
            "equivalents": round((int(tangent.hvps) + 1) * unit.hvp, 1),
        }
        for name, examples in (("probe", problem.probe()), ("test", problem.test)):
            losses, _ = measure(problem, moved, examples)
            change = losses[1] - losses[0]
            paid = change[1:].sum()
            rate = records.rounded(-change[0] / paid) if paid > 0 else None
            row |= {f"{name}_change": records.rounded(change.tolist())}
            row |= {f"{name}_rate": rate}
            if name == "probe":
                row["excess"] = records.rounded(float(alpha @ change))
        rows.append(row)
    history = np.asarray(found[-1].info.residual_norms, float)
    return {
        "alpha": records.rounded(alpha.tolist()),
        "stationarity": records.rounded(float(found[-1].stationarity)),
        "residual_history": records.rounded((history / history[0]).tolist()),
        "rows": rows,
        "spent": {
            "gradients": 1,
            "hvps": int(sum(int(tangent.hvps) for tangent in found)),
            "solves": len(found),
            "equivalents": round(
                unit.gradients + sum(row["equivalents"] for row in rows), 1
            ),
            "seconds": round(sum(seconds), 2),
        },
    }


def _largest_falls(changes: np.ndarray) -> list[Record]:
    """Where each objective is lowest, by changes ``(n, m)`` along a line."""
    rows = []
    for i, place in enumerate(changes.argmin(0)):
        fall = -changes[place, i]
        paid = changes[place].sum() + fall
        values = {"fall": float(fall), "paid": float(paid)}
        rows.append({key: records.rounded(value) for key, value in values.items()})
    return rows


def _normal_like(key: Any, params: Any) -> Any:
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        jax.random.normal(each, np.shape(leaf))
        for each, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def _inner(a: Any, b: Any) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(sum(np.vdot(x, y) for x, y in pairs))
