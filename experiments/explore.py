"""Study ``explore``: continuous Pareto exploration, one configuration per figure.

Each problem is a module with ``run(config, folder) -> list[Table]``. It writes its records
(arrays, ``summary.json`` with what was spent) and pictures into the folder, which exists
and holds ``config.json``; the tables it returns are printed here.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import time
from pathlib import Path
from typing import Literal, NamedTuple

from experiments import tables
from experiments.explore_store import open_folder

MODULES = {
    "zdt2": "explore_zdt2",
    "mini_mnist": "explore_mini",
    "multi_mnist": "explore_networks",
    "census": "explore_networks",
    "utkface": "explore_networks",
}


class Table(NamedTuple):
    """What people read of a run: cells are text already."""

    title: str
    heads: list[str]
    body: list[list[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExploreConfig:
    """Follows Pareto fronts with Krylov solves (arXiv:2006.16434); see --config."""

    config: str = "explore_zdt2"
    """Named settings in experiments/configs that the other options override:
    explore_zdt2, explore_mini_mnist, explore_multi_mnist, explore_census,
    explore_utkface."""
    problem: Literal["zdt2", "mini_mnist", "multi_mnist", "census", "utkface"] = "zdt2"
    """zdt2: the closed-form problem of Figures 2 and 3.
    mini_mnist: descent against MINRES lines on 1,500 parameters, Figure 4.
    multi_mnist, census, utkface: networks, Figure 5."""
    out: Path | None = None
    """Folder of the records and pictures; default: runs/CONFIG."""
    resume: bool = False
    """Keep the finished parts of the run in that folder (all problems but zdt2)."""
    data_dir: Path | None = None
    """Folder of the full data; without it what the package embeds."""
    pairs: tuple[int, int, int] | None = None
    """Examples in (train, validation, test); default: all (MultiMNIST: one per base
    image, or 20,000, 2,000 and 3,000 from the embedded digits)."""
    data_seed: int = 0
    """Seed of the split and the pairs."""
    preprocessing: Literal["faithful", "fixed"] = "faithful"
    """As released, or with its mistakes mended: scaled inputs, all degrees, income left
    out (census)."""
    image_size: int = 64
    """Side of the pictures (utkface)."""
    seed: int = 42
    """Seed of the starting parameters, of batches and of random directions."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    """Seeds of the repeated comparison (zdt2)."""

    parts: tuple[
        Literal["trace", "front", "necessity", "efficiency", "ablation", "solver"], ...
    ] = ("trace", "front", "necessity", "efficiency", "ablation", "solver")
    """What to run of the networks: traces of the front, its continuous form, directions
    against each other, cost against other ways, MINRES iterations, a step timed against
    SciPy on the host. `front` and `efficiency` need `trace`."""
    denominator: int = 6
    """Weighted-sum starts have the weights (i, j, ...) / denominator, all >= 1: five
    starts for 2 objectives, ten for 3 with the default 6."""
    starts: int | None = None
    """Use only so many of the starts, evenly picked."""
    epochs: int = 30
    """Epochs of weighted-sum training of each start."""
    batch_size: int = 256
    """Examples per step of training and per batch of the gradients."""
    learning_rate: float = 0.01
    """Of SGD in training (cosine to 0); of plain descent, over sqrt(t), in mini_mnist."""
    sgd_momentum: float = 0.9
    """Momentum of SGD in training."""

    betas: Literal["unit", "binary"] = "unit"
    """Right-hand sides of the networks' traces: one per objective, or all rows of zeros
    and ones but 0...0 and 1...1 (six for three objectives)."""
    steps: int = 10
    """Predictor steps per start and direction; descent steps per point in mini_mnist."""
    step_size: float = 0.1
    """Euclidean length of a predictor step."""
    solver: Literal["minres", "cg"] = "minres"
    """Krylov solver of the tangents."""
    damping: float = 0.0
    """Added to the Hessian's diagonal."""
    maxiter: int = 50
    """Krylov iterations at most."""
    tol: float = 1e-5
    """Relative residual at which they stop."""
    correction: bool = False
    """Correct the gradients of points that are not quite stationary."""
    momentum: float = 0.0
    """Smoothing of gradients and weights along a trace (the paper's KKT momentum)."""
    hvp_batch: int = 2048
    """Examples of the Hessian-vector products, one batch per step."""
    gradient_batches: int | None = None
    """Batches averaged for the gradients; default: a quarter of an epoch."""
    efficiency_starts: tuple[int, ...] = ()
    """Starts that the part `efficiency` widens; default: the one in the middle."""
    ablation: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)
    """Numbers of MINRES iterations compared."""

    directions: int = 5
    """Random tangents drawn at the point of Figure 2 (zdt2)."""
    supplement: int = 40
    """Points with one random tangent each, as in the supplement (zdt2)."""
    line_points: int = 21
    """Points on every straight line along a tangent (all but the traces)."""
    line_reach: float = 0.1
    """Lines go so far to both sides (the networks': to one)."""
    children: int = 2
    """Tangents followed from each point of the expansion of Figure 3 (zdt2)."""
    archive: int = 10
    """The expansion ends once the archive holds more points than this (zdt2)."""
    front_weights: int = 21
    """Weights, evenly from (0, 1) to (1, 0), of the empirical front (mini_mnist); the
    paper has 101."""
    front_iterations: int = 15_000
    """L-BFGS iterations per weight at most; the default is SciPy's (mini_mnist)."""
    front_limits: tuple[float, float, float, float] = (0.0, 2.0, 0.5, 2.5)
    """Kept points of that front: least and largest loss 1, then loss 2 (mini_mnist)."""
    residual_points: int = 5
    """Points of that front at which Krylov residuals are recorded (mini_mnist)."""
    residual_maxiter: int = 300
    """Krylov iterations of those records (mini_mnist)."""
    samples: int = 11
    """Points evaluated on every edge or patch of the continuous front (networks)."""
    plot: bool = True
    """Draw the pictures."""


def run(config: ExploreConfig) -> Path:
    """Runs the problem's module, prints its tables and returns the run's folder.

    Raises:
        ValueError: for numbers out of range, or a run to resume with other settings.
        FileNotFoundError: if the data are not in ``data_dir``.
    """
    _check(config)
    begin = time.perf_counter()
    module = importlib.import_module(f"experiments.{MODULES[config.problem]}")
    out = Path("runs") / config.config if config.out is None else config.out
    stored = dataclasses.replace(config, out=out, resume=False)
    folder = open_folder(out, "explore", stored, resume=config.resume)
    for title, heads, body in module.run(config, folder):
        tables.show(heads, body, title)
    print(f"{time.perf_counter() - begin:.0f} s; records in {folder}")
    return folder


def _check(config: ExploreConfig) -> None:
    counts = (
        "denominator",
        "batch_size",
        "steps",
        "maxiter",
        "hvp_batch",
        "directions",
    )
    counts += ("supplement", "children", "archive", "epochs", "image_size")
    counts += ("residual_points", "residual_maxiter", "front_iterations")
    for name in counts:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be >= 1, got {getattr(config, name)}")
    for name in ("line_points", "front_weights", "samples"):
        if getattr(config, name) < 2:
            raise ValueError(f"{name} must be >= 2, got {getattr(config, name)}")
    for name in ("starts", "gradient_batches"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    for name in ("learning_rate", "step_size", "line_reach"):
        value = getattr(config, name)
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    for name in ("damping", "tol"):
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be >= 0 and finite, got {value}")
    for name in ("momentum", "sgd_momentum"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {getattr(config, name)}")
    if not config.seeds or min(*config.seeds, config.seed, config.data_seed) < 0:
        raise ValueError(
            f"seeds must be one or more integers >= 0, got seeds={config.seeds}, "
            f"seed={config.seed} and data_seed={config.data_seed}"
        )
    if config.ablation and min(config.ablation) < 1:
        raise ValueError(f"ablation must hold counts >= 1, got {config.ablation}")
