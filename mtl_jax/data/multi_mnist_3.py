"""Three digits in one picture, one classification task for each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mtl_jax.data import tfds_builders
from mtl_jax.data.digits import Digits, load_digits
from mtl_jax.data.picture_sets import (
    MultiTaskData,
    Split,
    carve,
    check_bases,
    check_pairs,
    default_counts,
    go_round,
)
from mtl_jax.data.recipes import compose_three


def load_multi_mnist_3(
    *,
    data_dir: str | Path | None = None,
    source: str = "auto",
    pairs: tuple[int, int, int] | None = None,
    validation: int | None = None,
    seed: int = 0,
) -> MultiTaskData:
    """Makes a three-task set from triples of digits, as Pareto manifold learning does.

    Three digits on one canvas, top left, bottom centre and top right, see
    :func:`mtl_jax.data.recipes.compose_three`. Base images are split before they are put
    together; those at the top left go round in random order, the others are drawn with
    repetition. (The release splits the pictures instead, so that a base image may be in
    training and validation ones, and draws all three with repetition.)

    Args:
        data_dir: folder of the full MNIST, see :func:`load_digits`; ``None`` for the
            5,000 embedded digits.
        source: kind of base files, see :func:`load_digits`.
        pairs: pictures in (train, validation, test), as for :func:`load_multi_mnist`.
        validation: base training images set aside for validation; ``None`` for a sixth.
        seed: of the split and the triples.

    Returns:
        Images uint8 (N, 28, 28, 1) and labels int32 (N, 3), for each split.

    Raises:
        FileNotFoundError: MNIST is not in ``data_dir``.
        ValueError: a damaged base file, or arguments that do not fit.

    References:
        Dimitriadis, Frossard and Fleuret, *Pareto Manifold Learning*, 2023,
        arXiv:2210.09759

    >>> data = load_multi_mnist_3(pairs=(100, 10, 10))
    >>> data.train.images.shape, data.train.labels.shape
    ((100, 28, 28, 1), (100, 3))
    """
    check_pairs(pairs)
    base = load_digits("mnist", data_dir=data_dir, source=source)
    parts = (*carve(base.train, validation, seed), base.test)
    sizes = tuple(len(part.labels) for part in parts)
    embedded = data_dir is None or source == "embedded"
    counts = default_counts(sizes, embedded) if pairs is None else pairs
    splits = [
        _triples(part, count, np.random.default_rng([seed, k + 1]), split=name)
        for k, (part, count, name) in enumerate(
            zip(parts, counts, tfds_builders.SPLITS, strict=True)
        )
    ]
    made, used = (" + ".join(f"{n:,}" for n in each) for each in (counts, sizes))
    return MultiTaskData(
        *splits,
        source=(
            f"{made} pictures (train + validation + test) of three digits with seed "
            f"{seed}, from {used} base images: {base.train.source}."
        ),
        task_names=("top left", "bottom", "top right"),
        num_classes=(10, 10, 10),
    )


def _triples(
    base: Digits, count: int, rng: np.random.Generator, *, split: str
) -> Split:
    size = len(base.labels)
    check_bases(count, (size,), split)
    rows = (go_round(size, count, rng), *rng.integers(max(size, 1), size=(2, count)))
    first, second, third = (base.images[each] for each in rows)
    labels = np.stack([base.labels[each] for each in rows], axis=1)
    return Split(compose_three((first, second, third))[..., None], labels)
