"""The same plain step in PyTorch, for ``bench --torch`` (torch is not a requirement)."""

from __future__ import annotations

import statistics
import time
from typing import Any


def plain_step_ms(num_tasks: int, batch_size: int, repeats: int) -> float:
    """Median milliseconds of a summed-loss SGD step of the LeNet with ``T`` heads.

    Raises:
        ValueError: if torch is not installed.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("--torch needs PyTorch: pip install torch") from None
    nn, functional = torch.nn, torch.nn.functional

    encoder = nn.Sequential(
        *(nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(320, 50), nn.ReLU()),
    )
    heads = nn.ModuleList(nn.Linear(50, 10) for _ in range(num_tasks))
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.SGD(parameters, 1e-3)
    images = torch.randn(batch_size, 1, 28, 28)
    labels = torch.randint(0, 10, (batch_size, num_tasks))

    def step() -> Any:
        optimizer.zero_grad()
        features = encoder(images)
        losses = [
            functional.cross_entropy(head(features), labels[:, task])
            for task, head in enumerate(heads)
        ]
        torch.stack(losses).sum().backward()
        optimizer.step()

    times = []
    for round_ in range(repeats + 3):
        begin = time.perf_counter()
        step()
        if round_ >= 3:
            times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)
