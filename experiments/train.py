"""Study ``train``: one training run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from experiments import cli, progress, runner
from experiments.config import Protocol
from experiments.problem import SINGLE, Problem
from experiments.stop import stop_on_signal


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Trains one method (or one single-task network) and leaves a run folder."""

    config: str = "embedded"
    """Named settings in experiments/configs that the other options override."""
    method: str = "nash_mtl"
    """Call string such as "cagrad(c=0.4)", or "single-task"; see the study `methods`."""
    task: int = 0
    """Which task a single-task network learns."""
    seed: int = 0
    """Of the initial weights, the order of the data and all randomness."""
    out: Path = Path("runs/train")
    """Folder of the run."""
    resume: bool = False
    """Go on where the run in that folder was stopped."""
    progress: bool = dataclasses.field(default_factory=cli.is_terminal)
    """Show a progress bar (default: on a terminal)."""
    protocol: Protocol = dataclasses.field(default_factory=Protocol)


def run(config: TrainConfig) -> dict[str, Any]:
    """Trains and returns the content of ``summary.json``.

    Raises:
        ValueError: for an unknown method, bad sizes, or a folder with another run.
        FileNotFoundError: if the data are not in ``data_dir``.
    """
    problem = Problem(config.protocol)
    single = config.method == SINGLE
    if single and not 0 <= config.task < problem.num_tasks:
        raise ValueError(
            f"task must lie in 0..{problem.num_tasks - 1}, got {config.task}"
        )
    trainer = runner.Trainer(problem, config.method)
    print(f"data: {problem.source}")
    with (
        stop_on_signal() as stop,
        progress.show(problem.total_steps, enabled=config.progress) as shown,
    ):
        shown.describe(config.method)
        summary = trainer.run(
            config.out,
            config.seed,
            task=config.task if single else None,
            resume=config.resume,
            stop=stop,
            on_steps=shown.advance,
        )
    print(summary_line(summary))
    print(f"records: {config.out}")
    return summary


def summary_line(summary: dict[str, Any]) -> str:
    """One run in one line."""
    scores = ", ".join(
        f"{task} {100 * score:.2f} %"
        for task, score in zip(summary["tasks"], summary["test"], strict=True)
    )
    return (
        f"{summary['method']} seed {summary['seed']}: test accuracy {scores} at the best "
        f"validation epoch {summary['best_epoch']}; {summary['ms_per_step']:.1f} ms/step"
    )
