"""MultiMNIST: two base images in one picture, one classification task for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtl_jax._types import check_choice
from mtl_jax.data import tfds_builders
from mtl_jax.data.digits import Digits, load_digits
from mtl_jax.data.recipes import CONSTRUCTIONS, compose, compose_three

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
    _check_pairs(pairs)
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
    _check_pairs(pairs)
    base = load_digits("mnist", data_dir=data_dir, source=source)
    parts = (*_carve(base.train, validation, seed), base.test)
    sizes = tuple(len(part.labels) for part in parts)
    embedded = data_dir is None or source == "embedded"
    counts = _default_counts(sizes, embedded) if pairs is None else pairs
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
    _check_bases(count, (size,), split)
    rows = (_go_round(size, count, rng), *rng.integers(max(size, 1), size=(2, count)))
    first, second, third = (base.images[each] for each in rows)
    labels = np.stack([base.labels[each] for each in rows], axis=1)
    return Split(compose_three((first, second, third))[..., None], labels)


def _default_counts(bases: tuple[int, ...], embedded: bool) -> tuple[int, int, int]:
    """One picture per base image, or the standard numbers of the embedded digits."""
    train, held_out, test = EMBEDDED_PAIRS if embedded else bases
    return train, held_out if bases[1] else 0, test


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
        name: (*_carve(base.train, validation, seed), base.test)
        for name, base in bases.items()
    }
    base_counts = tuple(len(part.labels) for part in parts[left])
    embedded = data_dir is None or source == "embedded"
    counts = _default_counts(base_counts, embedded) if pairs is None else pairs
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


def _check_pairs(pairs: Any) -> None:
    if pairs is None:
        return
    if len(pairs) != 3 or not all(isinstance(n, int) and n >= 0 for n in pairs):
        raise ValueError(
            f"pairs must be three counts >= 0 (train, validation, test), got {pairs!r}"
        )


def _carve(train: Digits, validation: int | None, seed: int) -> tuple[Digits, Digits]:
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
    _check_bases(count, bases, split)
    left_index = _go_round(bases[0], count, rng)
    if construction.startswith("exploration"):
        right_index = _go_round(bases[1], count, rng)
    else:
        right_index = rng.integers(max(bases[1], 1), size=count)
    images = compose(
        construction, left.images[left_index], right.images[right_index], rng
    )
    labels = np.stack([left.labels[left_index], right.labels[right_index]], axis=1)
    return Split(images[..., None], labels)


def _check_bases(count: int, bases: tuple[int, ...], split: str) -> None:
    if count and not all(bases):
        raise ValueError(
            f"pairs asks for {count} pictures in the {split} split, which has no base "
            "images: pass 0, or validation > 0"
        )


def _go_round(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` indices below ``size``, one random permutation after the other."""
    rounds = -(-count // size) if count else 0
    passes = [rng.permutation(size) for _ in range(rounds)]
    return np.concatenate([np.zeros(0, np.int64), *passes])[:count]
