"""Study ``sparse``: sparse multi-task networks by weighted Chebyshev training and GrOWL.

The parts are modules; records and pictures go into the run's folder, where every trained
network is one part that ``--resume`` does not train again.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Literal

from experiments import tables
from experiments.explore_store import open_folder

ARCHITECTURES = ("hps", "mdmtn")
Architecture = Literal["hps", "mdmtn"]
Triple = tuple[float, float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseConfig:
    """Sparse deep multi-task learning (arXiv:2308.12243); see --config."""

    config: str = "sparse_digits"
    """Named settings in experiments/configs that the other options override:
    sparse_digits, sparse_multi_mnist, sparse_cifar10_mnist."""
    problem: Literal["digits", "multi_mnist", "cifar10_mnist"] = "digits"
    """digits: pictures of two of the embedded digits. multi_mnist: of all of MNIST.
    cifar10_mnist: a digit over a CIFAR-10 picture."""
    out: Path | None = None
    """Folder of the records and pictures; default: runs/CONFIG."""
    resume: bool = False
    """Keep the finished parts of the run in that folder."""
    plot: bool = True
    """Draw the pictures."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the table's networks; fronts and curves take the first."""

    data_dir: Path | None = None
    """Folder of the full data (multi_mnist, cifar10_mnist)."""
    pairs: tuple[int, int, int] | None = None
    """Pictures in (train, validation, test); default: all, or 20,000, 2,000 and 3,000 from
    the embedded digits."""
    data_seed: int = 0
    """Seed of the split and the pairs (digits, multi_mnist)."""

    parts: tuple[
        Literal["table", "front2d", "front3d", "conflict", "similarity"], ...
    ] = ("table", "front2d", "front3d", "conflict", "similarity")
    """table: the paper's Table I. front2d, front3d: fronts over preference vectors.
    conflict: cosines and trade-offs against sparsity. similarity: of a layer's rows."""
    architectures: tuple[Architecture, ...] = ARCHITECTURES
    """hps: hard parameter sharing; mdmtn: with a monitor per task (table, similarity)."""
    methods: tuple[Literal["mgda", "dense", "sparse", "kdmtl", "mtan", "stl"], ...] = (
        "mgda",
        "dense",
        "sparse",
        "kdmtl",
        "mtan",
        "stl",
    )
    """Rows of the table; dense and sparse are ours, by weighted Chebyshev training;
    kdmtl, mtan and stl (single-task networks) have architectures of their own."""

    batch_size: int = 256
    """Examples per step."""
    steps_per_epoch: int | None = None
    """Batches of an epoch at most, for trials."""
    learning_rate: float = 2.5e-3
    """Of Adam, in the first outer iteration."""
    decay: float = 0.5
    """Factor of the learning rate after each outer iteration."""
    epochs_per_iteration: int = 3
    """Epochs of an outer iteration."""
    sparsify_iterations: int = 3
    """Outer iterations of the first phase, which makes rows zero."""
    retrain_iterations: int = 10
    """Outer iterations of the second phase, with the zero and tied rows fixed."""
    single_iterations: int = 12
    """Outer iterations of a dense network."""

    mode: Literal["inequality", "paper"] = "inequality"
    """Augmented Lagrangian of the inequalities, or the released one."""
    penalty: float | None = None
    """First penalty of the augmented Lagrangian; default: 16, or 2.5e-8 (paper)."""
    epsilon: float = 1e-4
    """Bound on the admitted rate of trade-off."""
    dense_importance: Triple = (0.0, 0.5, 0.5)
    """Importance of (sparsity, task 1, task 2) for the dense networks of the table."""
    dense_start: Literal["default", "lsuv"] = "default"
    """Initialisation of dense networks: the layers' own, as published, or that of the
    sparse ones (layer-sequential unit variance)."""
    sparse_importance: Triple = (0.01, 0.495, 0.495)
    """The same for the sparse ones."""

    growl_mode: Literal["prox", "paper"] = "prox"
    """prox: proximal steps by the learning rate and the sparsity objective's weight.
    paper: one of size 1 after every epoch, whatever those are."""
    growl_steps: int = 1
    """Proximal steps in an epoch, about (prox)."""
    growl_strength: float = 300.0
    """Factor of the proximal steps (prox): Adam divides the tasks' gradients by their
    size, and nothing divides GrOWL's."""
    max_sparsity: tuple[float, float] = (0.8, 0.8)
    """Greatest share of zero rows in a layer of hps and of mdmtn."""
    min_sparsity: tuple[float, float] = (0.1, 0.2)
    """Share of zero rows that hps and mdmtn need to be kept after the first phase."""
    affinity: float = 0.7
    """Preference of the affinity propagation that clusters rows."""

    mgda_epochs: int = 100
    """Epochs of MGDA, which is trained by SGD with momentum 0.9."""
    mgda_rate: float = 1e-2
    """Learning rate of MGDA, halved at three tenths of its epochs, and so on."""
    stl_epochs: int = 100
    """Epochs of single-task networks."""
    stl_rate: float = 1e-2
    """Learning rate of single-task networks, halved at three tenths of the epochs."""
    kdmtl_epochs: int = 200
    """Epochs of knowledge distillation."""
    kdmtl_rate: float = 1e-4
    """Its learning rate, times 0.98 at every eighth of the epochs."""
    kdmtl_weights: tuple[float, float] = (0.025, 0.025)
    """Factors of the tasks' distillation losses."""
    mtan_epochs: int = 200
    """Epochs of the attention network."""
    mtan_rate: float = 1e-3
    """Its learning rate, halved at every eighth of the epochs."""

    front_architectures: tuple[Architecture, ...] = ("mdmtn",)
    """Networks of the fronts."""
    front_iterations: int = 12
    """Outer iterations of the networks of the 2-D front."""
    vectors: int | None = None
    """Preference vectors of the 2-D front, evenly chosen; default: all 18."""
    preferences: int | None = None
    """Preference vectors of the 3-D front, evenly chosen; default: all 90."""
    vectors_at_once: int = 1
    """Networks that are trained as one program, for accelerators with room."""
    front_epsilon: float = 0.0
    """Points within this multiple of the least losses from the front count as on it."""

    conflict_architecture: Architecture = "hps"
    """Network of the curves of conflict."""
    conflict_importance: Triple = (0.1, 0.45, 0.45)
    """Importance there: so much of sparsity that the strength alone decides on it."""
    strengths: tuple[float, ...] = (0.0, 50.0, 100.0, 200.0, 400.0, 1000.0)
    """Strengths of GrOWL along the curves, see --growl-strength."""
    conflict_iterations: int = 4
    """Outer iterations of the networks of the small front at each strength."""
    conflict_vectors: int = 5
    """Preference vectors of the small front at each strength."""
    conflict_cap: float = 0.95
    """Greatest share of zero rows in a layer there."""
    similarity_layers: tuple[str, ...] = ("encoder/dense/kernel",)
    """Kernels whose rows are compared, of the architectures that have them."""


def run(config: SparseConfig) -> Path:
    """Runs the chosen parts, prints their tables and returns the run's folder.

    Raises:
        ValueError: for numbers out of range, or a run to resume with other settings.
        FileNotFoundError: if the data are not in ``data_dir``.
        records.NonFiniteError: if a loss leaves the finite numbers.
    """
    from experiments import sparse_study  # which imports this module

    check(config)
    begin = time.perf_counter()
    out = Path("runs") / config.config if config.out is None else config.out
    problem = sparse_study.load(config)  # names missing data before anything is written
    stored = dataclasses.replace(config, out=out, resume=False)
    folder = open_folder(out, "sparse", stored, resume=config.resume)
    for title, heads, body in sparse_study.run(config, problem, folder):
        tables.show(heads, body, title)
    print(f"{time.perf_counter() - begin:.0f} s; records in {folder}")
    return folder


def check(config: SparseConfig) -> None:
    """Names bad settings before anything is loaded.

    Raises:
        ValueError: for numbers out of range, or nothing to do.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name.endswith("_rate") and not 0 < value < math.inf:
            raise ValueError(f"{field.name} must be positive and finite, got {value}")
        counted = field.type in ("int", "int | None") and field.name != "data_seed"
        if counted and value is not None and value < 1:
            raise ValueError(f"{field.name} must be >= 1, got {value}")
    if not 0 < config.decay <= 1:
        raise ValueError(f"decay must lie in (0, 1], got {config.decay}")
    for name in ("epsilon", "growl_strength", "front_epsilon"):
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be >= 0 and finite, got {value}")
    if config.penalty is not None and not 0 < config.penalty < math.inf:
        raise ValueError(f"penalty must be positive and finite, got {config.penalty}")
    for name in ("max_sparsity", "min_sparsity"):
        if not all(0 <= share <= 1 for share in getattr(config, name)):
            raise ValueError(
                f"{name} must hold two shares in [0, 1], got {getattr(config, name)}"
            )
    if not 0 <= config.conflict_cap <= 1:
        raise ValueError(f"conflict_cap must lie in [0, 1], got {config.conflict_cap}")
    for name in ("dense_importance", "sparse_importance", "conflict_importance"):
        check_importance(name, getattr(config, name))
    if config.dense_importance[0]:
        raise ValueError(
            "dense_importance must begin with 0 (no sparsity), got "
            f"{config.dense_importance}"
        )
    if not config.sparse_importance[0]:
        raise ValueError(
            "sparse_importance must begin with a positive importance of sparsity, got "
            f"{config.sparse_importance}"
        )
    if not config.seeds or min(*config.seeds, config.data_seed) < 0:
        raise ValueError(
            f"seeds must be one or more integers >= 0, got seeds={config.seeds} and "
            f"data_seed={config.data_seed}"
        )
    if not config.strengths or min(config.strengths) < 0:
        raise ValueError(
            f"strengths must be one or more numbers >= 0, got {config.strengths}"
        )
    if not config.parts or ("table" in config.parts and not config.methods):
        raise ValueError("nothing to do: choose --parts, and --methods of the table")
    if not config.front_architectures:
        raise ValueError("front_architectures is empty: choose hps, mdmtn or both")


def check_importance(name: str, values: tuple[float, ...]) -> None:
    """Raises ``ValueError`` unless the vector lies on the simplex, tasks inside."""
    tasks_count = min(values[1:]) > 0 and min(values) >= 0
    if not tasks_count or abs(sum(values) - 1) > 1e-3:
        raise ValueError(
            f"{name} must be (sparsity, task 1, task 2) with sum 1, positive for the "
            f"tasks, got {tuple(values)} with sum {sum(values):.6g}"
        )
