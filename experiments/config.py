"""Settings that studies of trained networks share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Data, network and optimiser; the defaults are those of `make run`."""

    data_dir: Path | None = None
    """Folder of the full base sets; without it the embedded 5,000 digits are used."""
    construction: Literal["mgda", "exploration", "mdmtn"] = "mgda"
    """Published recipe by which two images become one."""
    left: Literal["mnist", "fashion_mnist"] = "mnist"
    """Base set of the first task."""
    right: Literal["mnist", "fashion_mnist"] = "mnist"
    """Base set of the second task."""
    pairs: tuple[int, int, int] | None = None
    """Pictures in (train, validation, test); default: one per base image, or 20,000,
    2,000 and 3,000 from the embedded digits."""
    data_seed: int = 0
    """Seed of the split and the pairs."""
    model: Literal["small", "mgda"] = "small"
    """LeNet with one dense layer per head, or MGDA's with two and dropout."""
    epochs: int = 3
    """Passes over the training pictures."""
    batch_size: int = 128
    """Pictures per step."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Optimiser chained after the method."""
    learning_rate: float = 2e-3
    """Its learning rate."""
    momentum: float = 0.9
    """Of sgd, and b1 of adam. 0 for methods that average gradients: moco, db_mtl."""
    decay: float = 1.0
    """Factor on the learning rate every --decay-epochs epochs."""
    decay_epochs: int = 10
    """Epochs between two such factors."""
    checkpoint_every: int = 1
    """Epochs between checkpoints."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "decay_epochs", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("learning_rate", "decay"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
