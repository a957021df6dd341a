"""Sets of pictures made of several base images: their type, splits and choices."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data.digits import Digits

MEAN, STD = 0.1307, 0.3081
"""Of the MNIST training pixels, as all published MultiMNIST pipelines use them."""

EMBEDDED_PAIRS = (20_000, 2_000, 3_000)


class Split(NamedTuple):
    """Images and labels, ready to lie on a device as they are."""

    images: np.ndarray
    """uint8 (N, S, S, 1); :func:`standardize` makes them float32."""
    labels: np.ndarray
    """int32 (N, T), one column a task."""


class MultiTaskData(NamedTuple):
    """A multi-task classification set."""

    train: Split
    validation: Split
    test: Split
    source: str
    """What the images are made of and how, in one sentence."""
    task_names: tuple[str, ...]
    num_classes: tuple[int, ...]
    """Classes of each task."""


def standardize(images: Any, mean: float = MEAN, std: float = STD) -> Any:
    """Bytes to float32 by ``(images / 255 - mean) / std``, in NumPy or inside ``jit``.

    Args:
        images: uint8 array of any shape, NumPy or JAX.
        mean: of the pixels in [0, 1]; the default is MNIST's.
        std: of the pixels in [0, 1]; the default is MNIST's.

    Returns:
        float32 array of the same kind and shape.

    >>> print(standardize(np.array([0, 255], np.uint8)).round(4))
    [-0.4242  2.8215]
    """
    return (images.astype(np.float32) / 255 - mean) / std


def check_pairs(pairs: Any) -> None:
    """Raises a ``ValueError`` unless there are three counts or ``None``."""
    if pairs is None:
        return
    if len(pairs) != 3 or not all(isinstance(n, int) and n >= 0 for n in pairs):
        raise ValueError(
            f"pairs must be three counts >= 0 (train, validation, test), got {pairs!r}"
        )


def carve(train: Digits, validation: int | None, seed: int) -> tuple[Digits, Digits]:
    """Sets aside ``validation`` images, every class in proportion."""
    total = len(train.labels)
    count = total // 6 if validation is None else validation
    if not 0 <= count < total:
        raise ValueError(
            f"validation must leave training images: expected 0 to {total - 1} of "
            f"{total}, got {count}"
        )
    order = np.random.default_rng([seed, 0]).permutation(total)
    order = order[np.argsort(train.labels[order], kind="stable")]
    # evenly spaced picks from shuffled images in order of class
    picks = order[((np.arange(count) + 0.5) * total / max(count, 1)).astype(np.int64)]
    held_out = np.zeros(total, bool)
    held_out[picks] = True
    rest, kept = (
        Digits(train.images[mask], train.labels[mask], train.source)
        for mask in (~held_out, held_out)
    )
    return rest, kept


def default_counts(bases: tuple[int, ...], embedded: bool) -> tuple[int, int, int]:
    """One picture per base image, or the standard numbers of the embedded digits."""
    train, held_out, test = EMBEDDED_PAIRS if embedded else bases
    return train, held_out if bases[1] else 0, test


def check_bases(count: int, bases: tuple[int, ...], split: str) -> None:
    """Raises a ``ValueError`` where pictures are to be made of no base images."""
    if count and not all(bases):
        raise ValueError(
            f"pairs asks for {count} pictures in the {split} split, which has no base "
            "images: pass 0, or validation > 0"
        )


def go_round(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` indices below ``size``, one random permutation after the other."""
    rounds = -(-count // size) if count else 0
    passes = [rng.permutation(size) for _ in range(rounds)]
    return np.concatenate([np.zeros(0, np.int64), *passes])[:count]
