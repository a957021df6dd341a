"""MultiMNIST: two base images in one picture, one classification task for each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mtl_jax._types import check_choice
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
from mtl_jax.data.recipes import CONSTRUCTIONS, compose


def load_multi_mnist(
    *,
    construction: str = "mgda",
    left: str = "mnist",
    right: str | None = None,
    data_dir: str | Path | None = None,
    source: str = "auto",
    pairs: tuple[int, int, int] | None = None,
    validation: int | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> MultiTaskData:
    """Makes a two-task set from pairs of base images; by default from embedded ones.

    Base images are first split into train, validation (carved from the training half,
    stratified by class) and test, and only then paired, so that no base image is in two
    splits. Left images go round in random order, each used equally often up to one.
    Right images are drawn with repetition, as published for ``mgda``, ``mdmtn`` and
    ``manifold``, or go round as well (``exploration``: a permutation).

    Differs from the released codes in that the pairs are a function of ``seed`` alone,
    and that ``mgda`` has a validation split of its own (there: the test images).

    Args:
        construction: recipe, see :func:`mtl_jax.data.compose`.
        left: base set of task 0, ``"mnist"`` or ``"fashion_mnist"``.
        right: base set of task 1; ``None`` for the same as ``left``.
        data_dir: folder of the full base sets, see :func:`load_digits`; ``None`` for
            the 5,000 embedded digits.
        source: kind of base files, see :func:`load_digits`.
        pairs: pictures in (train, validation, test). ``None`` for one per base image
            (60,000 + 10,000 base images: 50,000, 10,000 and 10,000), or 20,000, 2,000
            and 3,000 from the embedded digits.
        validation: base training images set aside for validation; ``None`` for a sixth.
        seed: of the split, the pairs and the shifts. Each split has a random stream of
            its own: changing the size of one leaves the others as they are.
        cache_dir: prepare the set here by tensorflow-datasets if it is missing, and
            read it from here; for full sets only. It gives the set as files that other
            pipelines read; making the arrays anew is faster (1 s against 5 s).

    Returns:
        Images uint8 (N, S, S, 1), S = 28 (14 for ``"exploration_14"``), and labels
        int32 (N, 2), for each split.

    Raises:
        FileNotFoundError: a base set is not in ``data_dir``.
        ValueError: a damaged base file, or arguments that do not fit.

    >>> data = load_multi_mnist(pairs=(100, 10, 10))
    >>> data.train.images.shape, data.train.labels.shape
    ((100, 28, 28, 1), (100, 2))
    """
    check_choice("construction", construction, CONSTRUCTIONS)
    right = left if right is None else right
    check_pairs(pairs)
    recipe = {
        "construction": construction,
        "left": left,
        "right": right,
        "source": source,
        "pairs": pairs,
        "validation": validation,
        "seed": seed,
    }
    if cache_dir is None:
        return _build(data_dir=data_dir, **recipe)
    if data_dir is None or source == "embedded":
        raise ValueError(
            "cache_dir is for full base sets and needs data_dir=, found None or the "
            "embedded source: drop cache_dir, the embedded set is made in a second"
        )
    splits, note = tfds_builders.read_multi_mnist(
        Path(cache_dir).expanduser(), Path(data_dir).expanduser(), recipe
    )
    return _result(*(Split(*arrays) for arrays in splits.values()), source=note)


def _build(
    *,
    construction: str,
    left: str,
    right: str,
    data_dir: str | Path | None,
    source: str,
    pairs: tuple[int, int, int] | None,
    validation: int | None,
    seed: int,
) -> MultiTaskData:
    bases = {
        name: load_digits(name, data_dir=data_dir, source=source)
        for name in dict.fromkeys((left, right))
    }
    parts = {
        name: (*carve(base.train, validation, seed), base.test)
        for name, base in bases.items()
    }
    base_counts = tuple(len(part.labels) for part in parts[left])
    embedded = data_dir is None or source == "embedded"
    counts = default_counts(base_counts, embedded) if pairs is None else pairs
    splits = [
        _pair(
            construction,
            parts[left][k],
            parts[right][k],
            counts[k],
            # the integer after the seed names the stream; 0 is the split of the bases
            np.random.default_rng([seed, k + 1]),
            split=tfds_builders.SPLITS[k],
        )
        for k in range(3)
    ]
    made, bases_used = (
        " + ".join(f"{n:,}" for n in sizes) for sizes in (counts, base_counts)
    )
    notes = " and ".join(base.train.source for base in bases.values())
    return _result(
        *splits,
        source=(
            f"{made} pictures (train + validation + test) by the {construction!r} "
            f"construction with seed {seed}, from {bases_used} base images: {notes}."
        ),
    )


def _result(train: Split, validation: Split, test: Split, source: str) -> MultiTaskData:
    return MultiTaskData(
        train,
        validation,
        test,
        source,
        task_names=("left", "right"),
        num_classes=(10, 10),
    )


def _pair(
    construction: str,
    left: Digits,
    right: Digits,
    count: int,
    rng: np.random.Generator,
    *,
    split: str,
) -> Split:
    bases = (len(left.labels), len(right.labels))
    check_bases(count, bases, split)
    left_index = go_round(bases[0], count, rng)
    if construction.startswith("exploration"):
        right_index = go_round(bases[1], count, rng)
    else:
        right_index = rng.integers(max(bases[1], 1), size=count)
    images = compose(
        construction, left.images[left_index], right.images[right_index], rng
    )
    labels = np.stack([left.labels[left_index], right.labels[right_index]], axis=1)
    return Split(images[..., None], labels)
