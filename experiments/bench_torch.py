"""The same network and plain step in PyTorch (torch is no requirement, see ``bench``)."""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple


class TorchProblem(NamedTuple):
    """LeNet with ``T`` heads (22,350 parameters at ``T = 2``) and one random batch."""

    encoder: Any
    heads: Any
    images: Any
    labels: Any
    optimizer: Any

    def losses(self, features: Any) -> list[Any]:
        """Cross-entropy of every task, ``T`` scalars."""
        from torch.nn import functional  # pyright: ignore[reportMissingImports]

        return [
            functional.cross_entropy(head(features), self.labels[:, task])
            for task, head in enumerate(self.heads)
        ]


def problem(num_tasks: int, batch_size: int) -> TorchProblem:
    """Builds the network, its batch and an SGD optimiser.

    Raises:
        ValueError: if torch is not installed.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "this benchmark needs PyTorch: pip install -e .[bench] (or pip install torch)"
        ) from None
    nn = torch.nn
    encoder = nn.Sequential(
        *(nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(320, 50), nn.ReLU()),
    )
    heads = nn.ModuleList(nn.Linear(50, 10) for _ in range(num_tasks))
    optimizer = torch.optim.SGD([*encoder.parameters(), *heads.parameters()], 1e-3)
    images = torch.randn(batch_size, 1, 28, 28)
    labels = torch.randint(0, 10, (batch_size, num_tasks))
    return TorchProblem(encoder, heads, images, labels, optimizer)


def plain_step(given: TorchProblem) -> None:
    """One SGD step on the sum of the losses."""
    given.optimizer.zero_grad()
    losses = given.losses(given.encoder(given.images))
    total: Any = sum(losses)
    total.backward()
    given.optimizer.step()


def plain_step_ms(num_tasks: int, batch_size: int, repeats: int) -> float:
    """Median milliseconds of :func:`plain_step`."""
    given = problem(num_tasks, batch_size)
    times = []
    for round_ in range(repeats + 3):
        begin = time.perf_counter()
        plain_step(given)
        if round_ >= 3:
            times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)
