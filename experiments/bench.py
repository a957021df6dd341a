"""Study ``bench``: what task gradients, solvers and whole steps cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from experiments import (
    bench_fuzz,
    bench_methods,
    bench_solvers,
    bench_strategies,
    bench_torchjd,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Measures one part and writes its record, PART.json."""

    part: Literal["methods", "strategies", "solvers", "torchjd", "fuzz"] = "methods"
    """methods: step time of every method on the LeNet, against a plain step.
    strategies: step time and peak memory of every source of gradients, four networks.
    solvers: time of the T x T solvers alone.
    torchjd: ours against torchjd's, on the same Jacobians and the same LeNet step (needs
    the extra `bench`).
    fuzz: 100,000 random Gramians through every Gramian method."""
    out: Path = Path("runs/bench")
    """Folder of the records."""
    tasks: tuple[int, ...] = (2, 10, 40)
    """Numbers of tasks T (methods, strategies)."""
    networks: tuple[Literal["lenet", "mlp", "transformer", "resnet18"], ...] = (
        "lenet",
        "mlp",
        "transformer",
        "resnet18",
    )
    """Networks (strategies)."""
    repeats: int = 10
    """Timed rounds; each times every program once (methods, strategies)."""
    torch: bool = False
    """Also time PyTorch's plain step, if torch is installed (methods)."""
    count: int = 100_000
    """Number of Gramians (fuzz)."""


def run(config: BenchConfig) -> Path:
    """Runs the part and returns the path of its record.

    Raises:
        ValueError: if a package that the part needs is not installed.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    if config.part == "methods":
        return bench_methods.run(
            config.out, tasks=config.tasks, repeats=config.repeats, torch=config.torch
        )
    if config.part == "strategies":
        return bench_strategies.run(
            config.out,
            networks=config.networks,
            tasks=config.tasks,
            repeats=config.repeats,
        )
    if config.part == "solvers":
        return bench_solvers.run(config.out)
    if config.part == "torchjd":
        return bench_torchjd.run(config.out)
    return bench_fuzz.run(config.out, count=config.count)
