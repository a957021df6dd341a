"""Study ``qm9``: eleven properties of molecules, Nash-MTL's second benchmark."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Literal

import mtl_jax
from experiments import qm9_runs, tables
from experiments.explore_store import open_folder
from mtl_jax import registry

SINGLE = "single-task"
PUBLISHED_METHODS = (
    "ls",
    "si",
    "rlw",
    "dwa",
    "uw",
    "mgda",
    "pcgrad",
    "cagrad(c=0.4)",
    "imtl_g",
    "nash_mtl",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qm9Config:
    """Trains methods and single-task networks on QM9; prints them beside Nash-MTL's."""

    config: str = "qm9_synthetic"
    """Named settings in experiments/configs that the other options override:
    qm9_synthetic, qm9_small, qm9."""
    out: Path | None = None
    """Folder of the records; default: runs/CONFIG."""
    resume: bool = False
    """Keep the finished parts of the run in that folder."""
    plot: bool = True
    """Draw the picture."""
    parts: tuple[Literal["runs", "cost", "edges"], ...] = ("runs",)
    """runs: train and compare. cost: time of a step of every method, in turn. edges: dense
    against sparse edges."""
    methods: tuple[str, ...] = PUBLISHED_METHODS
    """Call strings; "all" stands for every registered method."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of initial weights, batches and all other randomness."""
    baseline: Literal["own", "published"] = "own"
    """Single-task errors that Δm compares with: own ones, trained first, or those in
    Nash-MTL's code."""

    data_dir: Path | None = None
    """Folder with QM9; without it made-up molecules."""
    source: Literal["auto", "synthetic", "npz", "tfds"] = "auto"
    """npz: qm9.npz in --data-dir; tfds: tensorflow-datasets."""
    sizes: tuple[int, int, int] | None = None
    """Molecules in (train, validation, test); default: 10,000 each held out."""
    max_atoms: int | None = None
    """Leave out larger molecules."""
    data_seed: int = 0
    """Of the split."""

    hidden: int = 64
    """Width of the nodes' states."""
    edge_hidden: int = 128
    """Hidden units of the edge network."""
    epochs: int = 300
    """Passes over the training molecules."""
    single_epochs: int | None = None
    """The same for single-task networks; default: --epochs."""
    batch_size: int = 120
    """Molecules per step."""
    learning_rate: float = 1e-3
    """Of Adam, at first."""
    factor: float = 0.7
    """On the learning rate, after --patience epochs without a better validation Δm."""
    patience: int = 5
    """See --factor."""
    min_learning_rate: float = 1e-5
    """Least learning rate."""
    unit_length: bool = False
    """Divide every method's combined gradient of the shared parameters by its norm, before
    Adam. Not for single-task networks."""
    stop_after: int | None = None
    """End a run after so many epochs without a better validation Δm."""

    cost_methods: tuple[str, ...] = (
        *PUBLISHED_METHODS,
        "nash_mtl(every_k=5)",
        "nash_mtl(every_k=50)",
        "nash_mtl(strategy=vmap)",
        "nash_mtl(strategy=map)",
        "nash_mtl(strategy=unroll)",
        "nash_mtl(strategy=layerwise)",
        "nash_mtl(strategy=features)",
    )
    """Call strings whose steps are timed."""
    rounds: int = 9
    """Timed rounds (cost, edges)."""


def run(config: Qm9Config) -> Path:
    """Runs the chosen parts, prints their tables and returns the run's folder.

    Raises:
        ValueError: for numbers out of range, unknown methods, damaged data, or a run to
            resume with other settings.
        FileNotFoundError: if the data are not in ``data_dir``.
        records.NonFiniteError: if a loss leaves the finite numbers.
    """
    begin = time.perf_counter()
    check(config)
    out = Path("runs") / config.config if config.out is None else config.out
    problem = qm9_runs.load(config)
    stored = dataclasses.replace(config, out=out, resume=False)
    folder = open_folder(out, "qm9", stored, resume=config.resume)
    print(f"data: {problem.source}", flush=True)
    for title, heads, body in qm9_runs.run(config, problem, folder):
        tables.show(heads, body, title)
    print(f"{time.perf_counter() - begin:.0f} s; records in {folder}")
    return folder


def method_calls(config: Qm9Config) -> list[str]:
    """The call strings to run, each once, without single-task networks."""
    calls: list[str] = []
    for call in config.methods:
        calls += list(mtl_jax.METHODS) if call == "all" else [call]
    return [call for call in dict.fromkeys(calls) if call != SINGLE]


def check(config: Qm9Config) -> None:
    """Names bad options before anything is read or written.

    Raises:
        ValueError: for numbers out of range or unknown methods.
    """
    for name in ("epochs", "batch_size", "hidden", "edge_hidden", "patience", "rounds"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be >= 1, got {getattr(config, name)}")
    for name in ("single_epochs", "stop_after"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    for name in ("learning_rate", "min_learning_rate"):
        value = getattr(config, name)
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if not 0 < config.factor <= 1:
        raise ValueError(f"factor must lie in (0, 1], got {config.factor}")
    if not config.seeds or min(*config.seeds, config.data_seed) < 0:
        raise ValueError(
            f"seeds must be one or more integers >= 0, got seeds={config.seeds} and "
            f"data_seed={config.data_seed}"
        )
    for call in (*method_calls(config), *config.cost_methods):
        registry.parse(call, also=registry.SOURCE_OPTIONS)
    wanted = SINGLE in config.methods or config.baseline == "own"
    if not config.parts or not (method_calls(config) or wanted):
        raise ValueError("nothing to do: choose --parts and --methods")
