"""Study ``manifold``: whole Pareto fronts in one training run, and their baselines.

Each problem is a module with ``run(config, folder) -> list[Table]``, as in the study
``explore``: records and pictures go into the folder, the tables are printed here.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import time
from pathlib import Path
from typing import Literal

from experiments import tables
from experiments.explore_store import open_folder
from mtl_jax.data.census_encoding import TASKS

MODULES = {"toy": "manifold_toy"}
"""Modules of the problems that are no networks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManifoldConfig:
    """Pareto manifold learning (arXiv:2210.09759) and its baselines; see --config."""

    config: str = "manifold_toy"
    """Named settings in experiments/configs that the other options override:
    manifold_toy, manifold_multi_mnist, manifold_multi_mnist3, manifold_census,
    manifold_utkface."""
    problem: Literal["toy", "multi_mnist", "multi_mnist3", "census", "utkface"] = "toy"
    """toy: the functions of Nash-MTL's Figure 1, two parameters.
    multi_mnist, multi_mnist3: two or three digits, LeNet.
    census: age and education, a perceptron.
    utkface: age, gender and race, ResNet-18."""
    out: Path | None = None
    """Folder of the records and pictures; default: runs/CONFIG."""
    resume: bool = False
    """Keep the finished parts of the run in that folder (networks)."""
    plot: bool = True
    """Draw the pictures."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of starting parameters, batches and sampled points."""

    data_dir: Path | None = None
    """Folder of the full data; without it what the package embeds."""
    pairs: tuple[int, int, int] | None = None
    """Examples in (train, validation, test); default: all (MultiMNIST: one per base
    image, or 20,000, 2,000 and 3,000 from the embedded digits)."""
    data_seed: int = 0
    """Seed of the split and the pairs."""
    tasks: tuple[str, ...] = ("age", "education")
    """Which questions about a person: age, education, marital, income (census)."""
    preprocessing: Literal["manifold", "faithful", "fixed"] = "manifold"
    """manifold: as released with Pareto manifold learning; faithful, fixed: as released
    with continuous Pareto exploration, or with its mistakes mended (census)."""
    image_size: int = 64
    """Side of the pictures (utkface)."""

    parts: tuple[Literal["fronts", "cost"], ...] = ("fronts", "cost")
    """What to run of the networks: fronts and baselines over all seeds; time of a step
    and of an evaluation."""
    families: tuple[
        Literal["manifold", "low_rank", "cosmos", "phn_linear", "phn_epo"], ...
    ] = ("manifold", "low_rank", "cosmos", "phn_linear", "phn_epo")
    """Fronts from one training run: the ensemble; a network with low-rank members; a
    network that sees the preference; hypernetworks with linear or EPO weights."""
    baselines: tuple[str, ...] = ("single-task", "ls", "mgda", "nash_mtl")
    """Points: single-task networks, and methods as call strings."""
    epochs: int = 10
    """Passes over the training examples."""
    batch_size: int = 256
    """Examples per step."""
    max_steps: int | None = None
    """Steps of each run at most, for trials."""
    learning_rate: float = 1e-3
    """Of Adam."""
    points: int = 11
    """Points along an edge of the grid on which fronts are evaluated: with 11, 11 points
    for two tasks and 66 for three."""
    validation: bool = False
    """Evaluate the validation split as well; nothing is selected by it."""
    recalibration_batches: int = 20
    """Training batches from which batch statistics are computed anew for every point, to
    compare with shared ones; 0: no comparison (networks with BatchNorm)."""

    samples: int = 1
    """W, points of each step."""
    concentration: float = 1.0
    """p of the Dirichlet distribution that points are drawn from."""
    sampler: Literal["dirichlet", "stratified", "grid"] = "dirichlet"
    """How points are drawn."""
    balance: str = "ls"
    """Task weights at a point: ls, gradnorm, rwa, full, or the call string of a
    weighting, e.g. "nash_mtl(ridge=1.0)"."""
    regularizer: float = 0.0
    """Factor of the multi-forward regulariser, which wants more than one point."""
    gate: bool = False
    """Count the regulariser only while it is less than the losses, as released."""
    rank: int = 8
    """Rank of the members' own terms (low_rank)."""
    cosmos_coefficient: float = 8.0
    """Factor of the cosine between losses and ray (cosmos)."""
    hidden: int = 100
    """Width of the three layers that see the ray (phn)."""

    scales: tuple[float, ...] = (0.1, 1.0)
    """Factors of the first loss (toy)."""
    balances: tuple[str, ...] = ("ls", "gradnorm", "nash_mtl(ridge=1.0)")
    """Balances compared, as for --balance (toy)."""
    methods: tuple[str, ...] = ("ls", "mgda", "cagrad(c=0.4)", "nash_mtl")
    """Methods whose trajectories are drawn beside them (toy)."""
    steps: int = 20_000
    """Steps of every trajectory (toy)."""
    record_every: int = 100
    """Steps between two recorded points (toy)."""


def run(config: ManifoldConfig) -> Path:
    """Runs the problem's module, prints its tables and returns the run's folder.

    Raises:
        ValueError: for numbers out of range, or a run to resume with other settings.
        FileNotFoundError: if the data are not in ``data_dir``.
        records.NonFiniteError: if a loss leaves the finite numbers.
    """
    _check(config)
    begin = time.perf_counter()
    name = MODULES.get(config.problem, "manifold_networks")
    module = importlib.import_module(f"experiments.{name}")
    module.check(config)  # names bad options before anything is written
    out = Path("runs") / config.config if config.out is None else config.out
    stored = dataclasses.replace(config, out=out, resume=False)
    folder = open_folder(out, "manifold", stored, resume=config.resume)
    for title, heads, body in module.run(config, folder):
        tables.show(heads, body, title)
    print(f"{time.perf_counter() - begin:.0f} s; records in {folder}")
    return folder


def _check(config: ManifoldConfig) -> None:
    for name in (
        "epochs",
        "batch_size",
        "samples",
        "rank",
        "hidden",
        "image_size",
        "steps",
        "record_every",
    ):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be >= 1, got {getattr(config, name)}")
    if config.max_steps is not None and config.max_steps < 1:
        raise ValueError(f"max_steps must be >= 1, got {config.max_steps}")
    if config.points < 2:
        raise ValueError(f"points must be >= 2, got {config.points}")
    if config.recalibration_batches < 0:
        raise ValueError(
            f"recalibration_batches must be >= 0, got {config.recalibration_batches}"
        )
    for name in ("learning_rate", "concentration"):
        value = getattr(config, name)
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    for name in ("regularizer", "cosmos_coefficient"):
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be >= 0 and finite, got {value}")
    if not config.seeds or min(*config.seeds, config.data_seed) < 0:
        raise ValueError(
            f"seeds must be one or more integers >= 0, got seeds={config.seeds} and "
            f"data_seed={config.data_seed}"
        )
    known = set(config.tasks) <= set(TASKS)
    if (
        len(set(config.tasks)) != len(config.tasks)
        or len(config.tasks) < 2
        or not known
    ):
        raise ValueError(
            f"tasks must be two or more different names out of {sorted(TASKS)}, got "
            f"{config.tasks}"
        )
