"""torchjd's side of ``bench_torchjd``: the only file that imports it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import bench_torch

MGDA_STEPS = (100, 1000, 10_000)
"""Frank-Wolfe steps of torchjd's MGDA: 100 is its default, the last as good as it gets."""


def check_installed() -> None:
    """Raises ``ValueError`` unless torchjd and the solvers it calls are installed."""
    try:
        import torch  # noqa: F401  # pyright: ignore[reportMissingImports]
        from torchjd import aggregation  # pyright: ignore[reportMissingImports]

        aggregation.NashMTL(2)
        aggregation.CAGrad(0.4)
        aggregation.UPGrad()
    except ImportError as error:
        raise ValueError(
            f"this benchmark needs torchjd with its solvers ({error}): "
            "pip install -e .[bench]"
        ) from None
    # cvxpy says on every solve that torchjd's Nash problem is rebuilt; that is its time.
    warnings.filterwarnings("ignore", message="You are solving a parameterized problem")


def threads() -> int:
    """Threads of torch, left at their default."""
    import torch  # pyright: ignore[reportMissingImports]

    return torch.get_num_threads()


def aggregators(num_tasks: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """Factories of torchjd's aggregators, by our method and by setting."""
    from torchjd import aggregation as a  # pyright: ignore[reportMissingImports]

    def mgda(steps: int) -> Callable[[], Any]:
        return lambda: a.MGDA(epsilon=1e-3 if steps == 100 else 1e-9, max_iters=steps)

    return {
        # max_norm=0: the bargaining weights themselves, as ours; it is also cheaper.
        "nash_mtl": {"default": lambda: a.NashMTL(num_tasks, max_norm=0.0)},
        "mgda": {
            "default" if steps == 100 else f"{steps} steps": mgda(steps)
            for steps in MGDA_STEPS
        },
        "cagrad": {"default": lambda: a.CAGrad(c=0.4)},
        "upgrad": {"default": a.UPGrad},
        "pcgrad": {"default": a.PCGrad},
        "imtl_g": {"default": a.IMTLG},
        "aligned_mtl": {"default": a.AlignedMTL},
    }


def solver(aggregator: Any) -> Callable[[Any], Any]:
    """Weights from a Gramian, or for NashMTL from any matrix with that Gramian."""
    return getattr(aggregator, "gramian_weighting", aggregator.weighting)


def solver_inputs(jacobians: list[np.ndarray], method: str) -> list[Any]:
    """What :func:`solver` takes: Gramians, or their Cholesky factors for NashMTL."""
    grams = [jacobian @ jacobian.T for jacobian in jacobians]
    if method == "nash_mtl":  # it wants a matrix and multiplies it out: spare it that
        grams = [np.linalg.cholesky(g.astype(float)).astype(np.float32) for g in grams]
    return tensors(grams)


def tensors(arrays: list[np.ndarray]) -> list[Any]:
    """NumPy arrays as torch tensors."""
    import torch  # pyright: ignore[reportMissingImports]

    return [torch.as_tensor(array) for array in arrays]


def versions() -> dict[str, str]:
    """Versions of torch, torchjd and the solvers that it calls."""
    from importlib.metadata import version

    packages = ("torch", "torchjd", "cvxpy", "ecos", "clarabel", "quadprog")
    return {package: version(package) for package in packages}


def projections(aggregator: Any, gram: np.ndarray) -> np.ndarray:
    """UPGrad's ``T`` projections as rows of weights ``(T, T)``, whose sum it returns."""
    import torch  # pyright: ignore[reportMissingImports]

    bounds = torch.eye(len(gram)) / len(gram)
    projector = aggregator.gramian_weighting.projector
    return projector(bounds, torch.as_tensor(gram)).numpy()


def steps(num_tasks: int, batch_size: int, method: str) -> dict[str, Callable[[], Any]]:
    """Whole SGD steps of the LeNet, by torchjd's ways to get there."""
    from torchjd import autogram, autojac  # pyright: ignore[reportMissingImports]

    aggregator = next(iter(aggregators(num_tasks)[method].values()))

    def jacobian_step(given: bench_torch.TorchProblem, made: Any, **chunk: Any) -> None:
        given.optimizer.zero_grad()
        features = given.encoder(given.images)
        losses = given.losses(features)
        autojac.mtl_backward(losses, features=features, **chunk)
        autojac.jac_to_grad(given.encoder.parameters(), made)
        given.optimizer.step()

    def gramian_step(given: bench_torch.TorchProblem, engine: Any, made: Any) -> None:
        import torch  # pyright: ignore[reportMissingImports]

        given.optimizer.zero_grad()
        losses = torch.stack(given.losses(given.encoder(given.images)))
        losses.backward(made.gramian_weighting(engine.compute_gramian(losses)))
        given.optimizer.step()

    def new() -> bench_torch.TorchProblem:
        return bench_torch.problem(num_tasks, batch_size)

    programs = {
        "chunks of 1": functools.partial(
            jacobian_step, new(), aggregator(), parallel_chunk_size=1
        ),
        "one chunk": functools.partial(jacobian_step, new(), aggregator()),
    }
    if method != "nash_mtl":  # torchjd's needs the Jacobian
        given = new()
        engine = autogram.Engine(given.encoder, batch_dim=None)
        programs["autogram"] = functools.partial(
            gramian_step, given, engine, aggregator()
        )
    return programs


def plain_step(num_tasks: int, batch_size: int) -> Callable[[], Any]:
    """The plain step in PyTorch."""
    given = bench_torch.problem(num_tasks, batch_size)
    return functools.partial(bench_torch.plain_step, given)
