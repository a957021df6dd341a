"""Problem ``mini_mnist`` of the study ``explore``: Figure 4 of arXiv:2006.16434.

On a network of 1,500 parameters an empirical front is affordable: weighted sums minimised
by L-BFGS. From each of its points, descent on either loss, lines along MINRES tangents and
along random directions are compared by their distance to that front; and the Krylov
residual is recorded against the number of iterations, as in the paper's slides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments import explore_mini_plot, records, toy_table
from experiments.explore import ExploreConfig, Table
from experiments.explore_mini_front import EmpiricalFront, empirical_front, make_problem
from experiments.explore_mini_lines import Lines, all_lines, quality
from experiments.explore_mini_solver import (
    iterations_until,
    on_device_against_host,
    residuals,
)

LEVELS = (0.5, 0.1, 0.01)
PAPER_WEIGHTS = 101


def run(config: ExploreConfig, folder: Path) -> list[Table]:
    """Runs the comparison and writes ``summary.json`` and four archives.

    Raises:
        FileNotFoundError: if the base set is not in ``data_dir``.
        ValueError: for limits that leave no front.
        records.NonFiniteError: if descent leaves the finite numbers.
    """
    _check(config)
    problem = make_problem(config)
    print(f"data: {problem.source}", flush=True)
    front = empirical_front(problem, config, folder)
    points, values = front.params[front.kept], front.losses[front.kept]
    lines = all_lines(problem, points, config)
    bad = [name for name, each in lines.items() if not np.isfinite(each.losses).all()]
    if bad:
        raise records.NonFiniteError(
            f"losses left the finite numbers: {', '.join(bad)}"
        )
    picks = np.unique(
        np.linspace(0, len(points) - 1, config.residual_points).astype(int)
    )
    curves, indefinite = residuals(problem, points[picks], config)
    timing = on_device_against_host(problem, points[len(points) // 2], config)

    archives = {
        "front.npz": {
            "weights": front.weights,
            "losses": front.losses,
            "kept": front.kept,
        },
        "lines.npz": {name: each.losses for name, each in lines.items()},
        "residuals.npz": {
            "residuals": curves,
            "weights": front.weights[front.kept[picks]],
        },
    }
    for name, arrays in archives.items():
        small = {
            key: array.astype(np.float32) if array.dtype.kind == "f" else array
            for key, array in arrays.items()
        }
        records.write_bytes(folder / name, toy_table.as_npz(**small))
    environment = records.environment()
    compared = {name: quality(each, values) for name, each in lines.items()}
    summary = {
        **{key: environment[key] for key in ("device", "versions", "git_commit")},
        "config": records.as_json(config),
        "data": problem.source,
        "parameters": points.shape[1],
        "counts": "one function, gradient or HVP: all pictures once; a gradient of the "
        "tangents is that of both losses",
        "front": _front_facts(front, config),
        "lines": {
            name: {**compared[name], "spent": each.spent}
            for name, each in lines.items()
        },
        "residuals": {
            "weights": records.rounded(front.weights[front.kept[picks]].tolist()),
            "after_maxiter": records.rounded(curves[:, config.maxiter].tolist())
            if config.maxiter < curves.shape[1]
            else None,
            "last": records.rounded(curves[:, -1].tolist()),
            "negative_curvature": indefinite,
            "iterations_until": {
                f"{level:g}": iterations_until(curves, level) for level in LEVELS
            },
        },
        "solver": timing,
    }
    records.write_json(folder / "summary.json", summary)
    if config.plot:
        for path in explore_mini_plot.draw(folder):
            print(f"picture: {path}")
    return _tables(summary, lines)


def _check(config: ExploreConfig) -> None:
    first, second = config.front_limits[:2], config.front_limits[2:]
    if not (first[0] < first[1] and second[0] < second[1]):
        raise ValueError(
            "front_limits must be least and largest loss 1, then loss 2, got "
            f"{config.front_limits}"
        )
    if config.solver != "minres":
        raise ValueError(
            "mini_mnist compares MINRES with SciPy's, and its Hessian is indefinite: "
            f"solver must be 'minres', got {config.solver!r}"
        )


def _front_facts(front: EmpiricalFront, config: ExploreConfig) -> dict[str, Any]:
    count = int(front.evaluations.sum())
    return {
        "weights": len(front.weights),
        "weights_in_the_paper": PAPER_WEIGHTS,
        "kept": len(front.kept),
        "limits": list(config.front_limits),
        "kept_weights": records.rounded(front.weights[front.kept].tolist()),
        "kept_losses": records.rounded(front.losses[front.kept].tolist()),
        "spent": {
            "functions": count,
            "gradients": count,
            "hvps": 0,
            "evaluations_per_weight": front.evaluations.tolist(),
            "seconds": round(front.seconds, 1),
            "cpu_seconds": round(front.cpu_seconds, 1),
        },
    }


def _tables(summary: dict[str, Any], lines: dict[str, Lines]) -> list[Table]:
    heads = ["from each point", "distance to front", "reach", "ratio", "dominated"]
    heads += ["dominating", "functions", "gradients", "HVPs", "s"]
    body = []
    for name, each in lines.items():
        row, spent = summary["lines"][name], each.spent
        body.append(
            [
                name,
                *(f"{row[key]:.3g}" for key in ("front_distance", "reach")),
                f"{row['distance_per_reach']:.3f}",
                *(f"{100 * row[key]:.1f} %" for key in ("dominated", "dominating")),
                *(f"{spent[key]:,}" for key in ("functions", "gradients", "hvps")),
                f"{spent['seconds']:.1f}",
            ]
        )
    front = summary["front"]
    title = (
        f"Figure 4: lines through {front['kept']} points of an empirical front of "
        f"{front['weights']} weights (the paper's has {PAPER_WEIGHTS})"
    )
    timing = summary["solver"]
    rows = [
        [
            way["what"],
            str(way["hvps"]),
            f"{way['ms']:.1f}",
            f"{way['times_device']:.2f}",
            f"{way['megabytes']:.1f}",
        ]
        for way in timing["ways"].values()
    ]
    size = summary["parameters"]
    return [
        Table(title, heads, body),
        Table(
            f"{timing['iterations']} iterations on the {size:,} x {size:,} Hessian",
            ["way", "HVPs", "ms", "x device", "MB"],
            rows,
        ),
    ]
