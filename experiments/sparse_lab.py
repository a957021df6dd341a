"""What the parts of the study ``sparse`` share: the two phases, and finished parts."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.explore_store import Store
from experiments.sparse import ARCHITECTURES, SparseConfig
from experiments.sparse_problems import (
    SparseProblem,
    is_kernel,
    network,
    start,
)
from experiments.sparse_steps import Fit, chebyshev_fit
from experiments.sparse_training import Evaluator, Trained, Trainer
from mtl_jax import sparsity

Record = dict[str, Any]
Vector = Sequence[float] | np.ndarray


class Lab:
    """Data, networks and compiled programs of a run.

    Args:
        problem: data.
        config: settings.
        folder: of the run.
    """

    def __init__(
        self, problem: SparseProblem, config: SparseConfig, folder: Path
    ) -> None:
        self.problem, self.config, self.folder = problem, config, folder
        self.store = Store(folder, config.resume)
        self.done: set[str] = set()
        self.trainer = Trainer(problem, config.batch_size, config.steps_per_epoch)
        self.network = functools.cache(lambda name: network(name, problem))
        self.evaluator = functools.cache(
            lambda name: Evaluator(self.network(name), problem)
        )
        self.start = functools.cache(self._start)
        self.fit = functools.cache(self._fit)

    def part(
        self, name: str, make: Callable[[], Record | tuple[Record, Any]]
    ) -> Record:
        """A finished part, of this run too, or else ``make()``, stored."""
        store = self.store._replace(resume=self.has(name))
        entry = store.part(name, make)
        self.done.add(name)
        return entry

    def has(self, name: str) -> bool:
        """Whether a part is finished and may be used."""
        path = self.folder / "parts" / f"{name}.json"
        return name in self.done or (self.config.resume and path.exists())

    def _start(self, name: str, seed: int, lsuv: bool) -> tuple[Any, Any]:
        return start(self.network(name), self.problem, seed, lsuv=lsuv)

    def _fit(
        self, name: str, phase: str, cap: float | None = None, cosines: bool = False
    ) -> Fit:
        """Training in a phase: single, sparsify, retrain, front or conflict."""
        config = self.config
        fit = chebyshev_fit(
            self.network(name),
            self.problem,
            config,
            iterations=getattr(config, f"{phase}_iterations"),
            steps_per_epoch=self.trainer.steps_per_epoch,
            max_sparsity=cap,
            cosines=cosines,
        )
        return fit._replace(name=f"{name}, {phase}")

    def dense(self, name: str, vectors: Sequence[Vector], seed: int) -> list[Trained]:
        """Dense networks: one phase, no sparsity."""
        lsuv = self.config.dense_start == "lsuv"
        params, model_state = self.start(name, seed, lsuv)
        fit = self.fit(name, "single")
        starts = [
            fit.init(params, model_state, tasks_only(vector), seed)
            for vector in vectors
        ]
        return self.trainer.run(fit, starts, self.evaluator(name), seed)

    def sparsify(
        self,
        name: str,
        vectors: Sequence[Vector],
        seed: int,
        *,
        strengths: Sequence[float] | None = None,
        cap: float | None = None,
        floor: float | None = None,
    ) -> list[Trained]:
        """The first phase: GrOWL as an objective of the Chebyshev problem."""
        config, place = self.config, ARCHITECTURES.index(name)
        cap = config.max_sparsity[place] if cap is None else cap
        floor = config.min_sparsity[place] if floor is None else floor
        params, model_state = self.start(name, seed, True)
        fit = self.fit(name, "sparsify", cap)
        factors = strengths or [config.growl_strength] * len(vectors)
        starts = [
            fit.init(params, model_state, vector, seed, strength=factor)
            for vector, factor in zip(vectors, factors, strict=True)
        ]
        evaluate = self.evaluator(name)
        return self.trainer.run(fit, starts, evaluate, seed, min_sparsity=100 * floor)

    def retrain(
        self,
        name: str,
        networks: Sequence[tuple[Any, Any]],
        vectors: Sequence[Vector],
        labels: Sequence[dict[str, np.ndarray]],
        seed: int,
        *,
        phase: str = "retrain",
        cosines: bool = False,
    ) -> list[Trained]:
        """The second phase: tied rows stay tied, zero rows zero; no sparsity objective."""
        fit = self.fit(name, phase, None, cosines)
        starts = [
            fit.init(
                sparsity.tie(params, marks),
                model_state,
                tasks_only(vector),
                seed,
                labels=marks,
            )
            for (params, model_state), vector, marks in zip(
                networks, vectors, labels, strict=True
            )
        ]
        return self.trainer.run(fit, starts, self.evaluator(name), seed)

    def two_phases(
        self, name: str, vectors: Sequence[Vector], seed: int
    ) -> list[tuple[Trained, Trained, dict[str, np.ndarray], float]]:
        """Algorithm 1: both phases, with the clusters between them and their seconds."""
        first = self.sparsify(name, vectors, seed)
        labels, seconds = [], []
        for trained in first:
            begin = time.perf_counter()
            labels.append(
                sparsity.cluster_layers(trained.params, preference=self.config.affinity)
            )
            seconds.append(time.perf_counter() - begin)
        networks = [(trained.params, trained.model_state) for trained in first]
        second = self.retrain(name, networks, vectors, labels, seed)
        return list(zip(first, second, labels, seconds, strict=True))

    def scores(self, name: str, trained: Trained) -> Record:
        """Losses and accuracies on validation and test, and what training took."""
        evaluate = self.evaluator(name)
        found = {
            split: evaluate(
                trained.params, trained.model_state, getattr(self.problem, split)
            )
            for split in ("validation", "test")
        }
        return {
            "train_losses": trained.history[-1]["losses"],
            "validation_losses": found["validation"][0],
            "validation": found["validation"][1],
            "test_losses": found["test"][0],
            "test": found["test"][1],
            "epoch": trained.epoch,
            "history": trained.history,
            "steps": trained.steps,
            "seconds": round(trained.seconds, 2),
            "compile_seconds": round(trained.compile_seconds, 2),
        }


def tasks_only(vector: Vector) -> np.ndarray:
    """The vector without the importance of sparsity, on the simplex again."""
    k = np.array([0.0, *vector[1:]])
    return k / k.sum()


def zero_labels(params: Any) -> dict[str, np.ndarray]:
    """Labels that fix zero rows and tie no others."""
    return {
        path: np.where(np.asarray(zero), -1, np.arange(zero.size).reshape(zero.shape))
        for path, zero in sparsity.zero_rows(params).items()
    }


def measures(params: Any) -> Record:
    """SR, CR and PS by rows, as in the paper's tables, and by parameters."""
    found = {}
    for by in ("rows", "parameters"):
        stats = sparsity.sparsity_stats(params, is_kernel, by=by)
        found[by] = {
            "SR": round(stats.sparsity_rate, 2),
            "CR": round(stats.compression_ratio, 3),
            "PS": round(stats.parameter_sharing, 3),
            **stats._asdict(),
        }
    return found


def cluster_counts(labels: dict[str, np.ndarray]) -> Record:
    """Rows, live rows and clusters of each layer."""
    return {
        path: {
            "rows": int(marks.size),
            "live": int((marks >= 0).sum()),
            "clusters": int(marks.max(initial=-1)) + 1,
        }
        for path, marks in labels.items()
    }


def num_parameters(params: Any) -> int:
    """Entries of all arrays."""
    return sum(np.size(leaf) for leaf in jax.tree.leaves(params))
