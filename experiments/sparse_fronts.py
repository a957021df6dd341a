"""Fronts of the study ``sparse``: 18 vectors for a fixed sparse network, 90 for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments import records, sparse_table
from experiments.sparse_lab import Lab, measures, zero_labels
from experiments.sparse_training import Trained
from mtl_jax import metrics, pareto, sparsity

Record = dict[str, Any]


def vectors_2d(k0: float, count: int | None = None) -> np.ndarray:
    """The vectors of the 2-D front: 0.1, ..., 0.9 for task 1, and for task 2.

    Args:
        k0: importance of sparsity, which only the other task pays for.
        count: so many of the 18, evenly chosen.

    Returns:
        float64 ``(N, 3)``, by rising importance of task 1; without those that would
        leave nothing of ``1 - k0``.
    """
    values = [v / 10 for v in range(1, 10) if v / 10 < 1 - k0]
    rows = [(k0, v, 1 - k0 - v) for v in values]
    rows += [(k0, 1 - k0 - v, v) for v in values]
    return chosen(np.array(sorted(rows)), count)


def vectors_3d(count: int | None = None) -> np.ndarray:
    """The paper's 90 vectors, or so many of them, evenly chosen."""
    return chosen(pareto.mdmtn_preferences(), count)


def chosen(rows: np.ndarray, count: int | None) -> np.ndarray:
    """``count`` rows at equal distances, the first and the last among them."""
    if count is None or count >= len(rows):
        return rows
    return rows[np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))]


def front_2d(lab: Lab, name: str) -> Record:
    """Retrains the table's sparse network for every vector, its zero rows fixed."""
    config, seed = lab.config, lab.config.seeds[0]
    _, arrays = sparse_table.sparse_network(lab, name, seed)
    base = arrays["params"], arrays["model_state"]
    labels = zero_labels(base[0])
    vectors = vectors_2d(config.sparse_importance[0], config.vectors)

    def train(group: Sequence[np.ndarray]) -> list[tuple[Trained, Record]]:
        size = len(group)
        found = lab.retrain(
            name, [base] * size, group, [labels] * size, seed, phase="front"
        )
        return [(trained, {}) for trained in found]

    points = _points(lab, f"front2d_{name}", name, vectors, train)
    return _front(lab, points, name, ("train_losses",))


def front_3d(lab: Lab, name: str) -> Record:
    """Trains a network for every vector: in two phases, or one where ``k0 = 0``."""
    seed = lab.config.seeds[0]

    def train(group: Sequence[np.ndarray]) -> list[tuple[Trained, Record]]:
        if group[0][0] == 0:
            return [(trained, {}) for trained in lab.dense(name, group, seed)]
        return [
            (second, {"first_seconds": round(first.seconds, 2)})
            for first, second, _, _ in lab.two_phases(name, group, seed)
        ]

    vectors = vectors_3d(lab.config.preferences)
    points = _points(lab, f"front3d_{name}", name, vectors, train)
    return _front(lab, points, name, ("sparsity_loss", "train_losses"))


def _points(
    lab: Lab,
    prefix: str,
    name: str,
    vectors: np.ndarray,
    train: Callable[[Sequence[np.ndarray]], list[tuple[Trained, Record]]],
) -> list[Record]:
    """One part per vector; those that are not finished are trained in groups."""

    def part_of(vector: np.ndarray) -> str:
        return prefix + "".join(f"_{value:.4f}" for value in vector)

    size = lab.config.vectors_at_once
    for sparse in (False, True):
        waiting = [
            vector
            for vector in vectors
            if (vector[0] > 0) == sparse and not lab.has(part_of(vector))
        ]
        for begin in range(0, len(waiting), size):
            group = waiting[begin : begin + size]
            shown = ", ".join(str(tuple(vector.round(4).tolist())) for vector in group)
            print(f"  {prefix} {shown} ...", flush=True)
            for vector, (trained, extra) in zip(group, train(group), strict=True):
                entry = {
                    "vector": vector.round(6).tolist(),
                    **lab.scores(name, trained),
                    "measures": measures(trained.params),
                    "sparsity_loss": records.rounded(
                        float(sparsity.growl_loss(trained.params))
                    ),
                    **extra,
                }
                lab.part(part_of(vector), lambda entry=entry: entry)
    return [lab.part(part_of(vector), dict) for vector in vectors]


def _front(
    lab: Lab, points: list[Record], name: str, objectives: Sequence[str]
) -> Record:
    """Marks the points on the front, and the one with the best validation accuracy."""
    coordinates = np.array([np.hstack([p[key] for key in objectives]) for p in points])
    margin = lab.config.front_epsilon * coordinates.min(0)
    marks = metrics.epsilon_non_dominated(coordinates, margin)
    best = int(np.argmax([np.mean(p["validation"]) for p in points]))
    keys = ("vector", "train_losses", "sparsity_loss", "validation", "test", "seconds")
    rows = [
        {
            **{key: point[key] for key in (*keys, "test_losses", "measures")},
            "seconds": round(point["seconds"] + point.get("first_seconds", 0), 2),
            "on_front": bool(mark),
        }
        for point, mark in zip(points, marks, strict=True)
    ]
    return {
        "architecture": name,
        "objectives": list(objectives),
        "points": rows,
        "best": best,
        "seconds": round(sum(row["seconds"] for row in rows), 1),
    }
