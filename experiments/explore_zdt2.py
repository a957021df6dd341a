"""Problem ``zdt2`` of the study ``explore``: Figures 2 and 3 of arXiv:2006.16434.

Figure 2: two MINRES iterations give the exact tangent of the Pareto set, and a straight
line along it never leaves the front. Figure 3: an expansion along such tangents needs no
correction, one along gradients needs hundreds of function values per point.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mtl_jax
from experiments import explore_zdt2_plot, records, toy_table
from experiments.explore import ExploreConfig, Table
from experiments.explore_zdt2_expand import Expansion, expand_minres, expand_weighted
from mtl_jax.data.zdt2 import zdt2_losses, zdt2_sample
from mtl_jax.metrics import hypervolume
from mtl_jax.pareto import hvp, stationarity, tangent

REFERENCE = (1.1, 1.1)
EXACT_HYPERVOLUME = 0.1 + 1 / 3 + 0.11
"""Of the whole front f2 = 1 - f1^2, f1 in [0, 1], against the reference."""


class Lines(NamedTuple):
    """Straight lines from one point: a tangent to both sides, two gradients to one."""

    alpha: jax.Array
    """Stationarity weights, (2,)."""
    directions: jax.Array
    """The unit tangent, then unit gradients, (3, 3)."""
    losses: jax.Array
    """Along the lines, (3, line_points, 2)."""
    hvps: jax.Array
    """One per MINRES iteration, int32 ()."""


def run(config: ExploreConfig, folder: Path) -> list[Table]:
    """Runs both figures in float64 and writes ``summary.json`` and two archives.

    Raises:
        records.NonFiniteError: if a point leaves the finite numbers.
    """
    with jax.enable_x64(True):
        arrays, facts = figure_2(config)
        expansions = {
            "minres": expand_minres(config),
            "weighted_sum": expand_weighted(config),
        }
        results = {name: measures(each) for name, each in expansions.items()}
    points = {
        f"{name}_{field}": getattr(each, field).astype(np.float32)
        for name, each in expansions.items()
        for field in ("explored", "corrected")
    }
    for name, array in (arrays | points).items():
        if not np.isfinite(array).all():
            raise records.NonFiniteError(f"{name} left the finite numbers")
    records.write_bytes(folder / "figure_2.npz", toy_table.as_npz(**arrays))
    records.write_bytes(folder / "figure_3.npz", toy_table.as_npz(**points))
    environment = records.environment()
    summary = {
        **{key: environment[key] for key in ("device", "versions", "git_commit")},
        "config": records.as_json(config),
        "counts": "one function or gradient: both objectives at one point; one HVP: the "
        "weighted Hessian times one vector",
        "figure_2": facts,
        "figure_3": {
            **results,
            "reference": list(REFERENCE),
            "exact_hypervolume": round(EXACT_HYPERVOLUME, 6),
        },
    }
    records.write_json(folder / "summary.json", summary)
    if config.plot:
        for path in explore_zdt2_plot.draw(folder):
            print(f"picture: {path}")
    return [_table_2(facts, config), _table_3(results)]


def figure_2(config: ExploreConfig) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Lines from one point along several tangents, and from many points along one.

    Random numbers come in the order of the released notebook: the point, then N(0, I)
    right-hand sides.

    Returns:
        Arrays for the picture; for the record, the largest distance of a tangent from
        ±e1 and gap ``|f2 - (1 - f1^2)|`` along the lines, and what was spent.
    """
    program = jax.jit(jax.vmap(functools.partial(lines_from, config=config)))
    point, betas = _draw(config.seed, config.directions)
    drawn = [_draw(seed, 1) for seed in range(config.supplement)]
    points = np.stack([point] * config.directions + [each[0] for each in drawn])
    begin = time.perf_counter()
    lines = jax.device_get(
        program(points, np.concatenate([betas, *(each[1] for each in drawn)]))
    )
    seconds = time.perf_counter() - begin
    one, many = (
        jax.tree.map(lambda leaf, part=part: leaf[part], lines)
        for part in (slice(config.directions), slice(config.directions, None))
    )
    facts = {
        "point": point.tolist(),
        "losses": one.losses[0, -1, 0].tolist(),
        "alpha": one.alpha[0].tolist(),
        "tangents": one.directions[:, 0].tolist(),
        "one_point": _exactness(one),
        "supplement": _exactness(many),
        "spent": {
            "gradients": len(points),
            "hvps": int(lines.hvps.sum()),
            "seconds_with_compilation": round(seconds, 2),
        },
    }
    arrays = {
        "point": point,
        "directions": np.concatenate([one.directions[:, 0], one.directions[0, 1:]]),
        "lines": np.concatenate([one.losses[:, 0], one.losses[0, 1:]]),
        "supplement_lines": many.losses,
    }
    return {k: np.asarray(array, np.float32) for k, array in arrays.items()}, facts


def lines_from(point: jax.Array, beta: jax.Array, *, config: ExploreConfig) -> Lines:
    """The tangent at a point for ``beta`` (2,), and lines along it and the gradients."""
    _, grads = mtl_jax.value_and_task_grads(zdt2_losses)(point)
    alpha = stationarity(grads).value
    found = tangent(
        hvp(zdt2_losses, point, alpha),
        grads,
        beta,
        alpha=alpha,
        correction=config.correction,
        solver=config.solver,
        damping=config.damping,
        maxiter=config.maxiter,
        tol=config.tol,
    )
    norms = jnp.linalg.norm(grads, axis=1, keepdims=True)
    directions = jnp.concatenate([found.direction[None], grads / norms])
    reach, count = config.line_reach, config.line_points
    both, ahead = jnp.linspace(-reach, reach, count), jnp.linspace(0, reach, count)
    steps = jnp.stack([both, ahead, ahead])
    points = point[None, None] + steps[..., None] * directions[:, None]
    losses = jax.vmap(jax.vmap(zdt2_losses))(points)
    return Lines(alpha, directions, losses, found.hvps)


def measures(expansion: Expansion) -> dict[str, Any]:
    """Counts, gaps and hypervolumes of an expansion."""
    corrected, explored = expansion.corrected, expansion.explored
    return {
        "expand": expansion.expand,
        "optimise": expansion.optimise,
        "seconds": round(expansion.seconds, 2),
        "archive_points": len(corrected),
        "explored_points": len(explored),
        "unconverged_corrections": expansion.unconverged,
        "gap_explored": _spread(front_excess(explored)),
        "gap_archive": _spread(front_excess(corrected)),
        "hypervolume_explored": round(hypervolume(explored, REFERENCE), 6),
        "hypervolume_archive": round(hypervolume(corrected, REFERENCE), 6),
    }


def front_excess(losses: np.ndarray) -> np.ndarray:
    """How far loss 2 lies above the front at the same loss 1: (..., 2) to (...)."""
    return losses[..., 1] - (1 - losses[..., 0] ** 2)


def _draw(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.RandomState(seed)
    rng.uniform(size=2)  # the point's, which zdt2_sample draws from the same stream
    return np.asarray(zdt2_sample(seed)), rng.normal(size=(count, 2))


def _exactness(lines: Lines) -> dict[str, Any]:
    """Of tangents and gradients (L, ...); the axis e1 is the exact tangent everywhere."""
    tangents = np.asarray(lines.directions[:, 0])
    axis = np.sign(tangents[:, :1]) * np.eye(3)[:1]
    gaps = np.abs(front_excess(np.asarray(lines.losses))).max(axis=(0, 2))
    return {
        "tangent_error_max": float(np.abs(tangents - axis).max()),
        "iterations": np.unique(lines.hvps).tolist(),
        "gap_tangents_max": float(gaps[0]),
        "gap_gradient_1_max": float(gaps[1]),
        "gap_gradient_2_max": float(gaps[2]),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(f"{values.mean():.4g}"),
        "max": float(f"{values.max():.4g}"),
    }


def _table_2(facts: dict[str, Any], config: ExploreConfig) -> Table:
    rows = [
        [
            name,
            f"{part['tangent_error_max']:.1e}",
            f"{part['gap_tangents_max']:.1e}",
            f"{part['gap_gradient_1_max']:.3f}",
            f"{part['gap_gradient_2_max']:.3f}",
        ]
        for name, part in (
            (f"{config.directions} tangents at one point", facts["one_point"]),
            (f"one tangent at {config.supplement} points", facts["supplement"]),
        )
    ]
    heads = ["lines", "|v ∓ e1| max", "gap along tangents", "along ∇f1", "along ∇f2"]
    title = f"Figure 2: tangents from {config.maxiter} {config.solver} iterations"
    return Table(title, heads, rows)


def _table_3(results: dict[str, dict[str, Any]]) -> Table:
    heads = ["method", "functions", "gradients", "HVPs", "gap explored: mean, max"]
    heads += ["hypervolume: explored", "archive"]
    rows = []
    for name, result in results.items():
        gap = result["gap_explored"]
        total = {
            key: result["expand"][key] + result["optimise"][key]
            for key in ("functions", "gradients", "hvps")
        }
        rows.append(
            [
                name,
                *(f"{count:,}" for count in total.values()),
                f"{gap['mean']:.3g}, {gap['max']:.3g}",
                f"{result['hypervolume_explored']:.5f}",
                f"{result['hypervolume_archive']:.5f}",
            ]
        )
    title = f"Figure 3: expansion and correction (exact: {EXACT_HYPERVOLUME:.5f})"
    return Table(title, heads, rows)
