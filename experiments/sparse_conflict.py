"""At what sparsity do tasks start to conflict? Curves of the study ``sparse``."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments import records
from experiments.sparse_lab import Lab, measures, zero_labels
from experiments.sparse_training import Trained
from mtl_jax import metrics

Record = dict[str, Any]


def curve(lab: Lab) -> Record:
    """For every strength of GrOWL: a sparse network, and a small front with its zero rows.

    Every strength is a part of its own.
    """
    config = lab.config
    points = [_point(lab, strength) for strength in config.strengths]
    return {"architecture": config.conflict_architecture, "points": points}


def _point(lab: Lab, strength: float) -> Record:
    config, seed = lab.config, lab.config.seeds[0]
    name = config.conflict_architecture

    def make() -> Record:
        print(f"  conflict, {name}, strength {strength:g} ...", flush=True)
        (first,) = lab.sparsify(
            name,
            [config.conflict_importance],
            seed,
            strengths=[strength],
            cap=config.conflict_cap,
            floor=0.0,
        )
        params, model_state = first.last  # the sparsest: accuracy does not choose here
        labels = zero_labels(params)
        runs = _small_front(lab, name, (params, model_state), labels, seed)
        entry = {
            "strength": strength,
            "measures": measures(params),
            **trade_off(lab, name, runs),
            "seconds": round(first.seconds + sum(run.seconds for run in runs), 2),
        }
        print(
            f"  SR {entry['measures']['rows']['SR']:.1f} %, cosine "
            f"{entry['cosine']:.3f}, conflicts {100 * entry['conflicts']:.1f} %, width "
            f"{entry['width']:.4f}",
            flush=True,
        )
        return entry

    return lab.part(f"conflict_{name}_{strength:g}", make)


def _small_front(
    lab: Lab, name: str, base: tuple[Any, Any], labels: Any, seed: int
) -> list[Trained]:
    config = lab.config
    shares = np.linspace(0.1, 0.9, config.conflict_vectors)
    if config.conflict_vectors == 1:
        shares = np.array([0.5])
    vectors = [(0.0, share, 1 - share) for share in shares]
    runs: list[Trained] = []
    for begin in range(0, len(vectors), config.vectors_at_once):
        group = vectors[begin : begin + config.vectors_at_once]
        size = len(group)
        runs += lab.retrain(
            name,
            [base] * size,
            group,
            [labels] * size,
            seed,
            phase="conflict",
            cosines=True,
        )
    return runs


def trade_off(lab: Lab, name: str, runs: list[Trained]) -> Record:
    """Cosines over all steps, and the extent of the front on the test split.

    ``width`` is the mean over the tasks of the range of the loss among the points that
    are not dominated, ``conflicts`` the share of steps with a negative cosine.
    """
    scores = [lab.scores(name, run) for run in runs]
    losses = np.array([each["test_losses"] for each in scores])
    accuracies = np.array([each["test"] for each in scores])
    front = losses[metrics.non_dominated(losses)]
    cosines = np.stack([run.cosines for run in runs])
    half = cosines[:, cosines.shape[1] // 2 :]
    return records_of(
        {
            "cosine": cosines.mean(),
            "cosine_late": half.mean(),
            "conflicts": (cosines < 0).mean(),
            "conflicts_late": (half < 0).mean(),
            "width": np.ptp(front, axis=0).mean(),
            "width_accuracy": np.ptp(accuracies, axis=0).mean(),
            "losses": losses,
            "accuracies": accuracies,
            "best_mean_accuracy": accuracies.mean(1).max(),
        }
    )


def records_of(values: dict[str, Any]) -> Record:
    """Arrays and numbers of NumPy as rounded lists and floats."""
    return {
        key: records.rounded(np.asarray(value, float).tolist())
        for key, value in values.items()
    }
