"""CelebA: forty yes-no questions about one picture of a face."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtl_jax._types import check_choice
from mtl_jax.data.celeba_files import NUM_ATTRIBUTES, OFFICIAL, read_files, read_tfds

SOURCES = ("auto", "synthetic", "files", "tfds")
SYNTHETIC_PICTURES = 256


class AttributeSplit(NamedTuple):
    """Pictures and answers, ready to lie on a device as they are."""

    images: np.ndarray
    """uint8 (N, S, S, 3); divide by 255 on the device."""
    labels: np.ndarray
    """int32 (N, 40): 0 no, 1 yes."""


class AttributeData(NamedTuple):
    """A set with forty two-class tasks."""

    train: AttributeSplit
    validation: AttributeSplit
    test: AttributeSplit
    source: str
    """Where the pictures come from, in one sentence."""
    task_names: tuple[str, ...]


def load_celeba(
    data_dir: str | Path | None = None,
    *,
    source: str = "auto",
    size: int = 64,
    max_images: int | None = None,
    add_synthetic: int = 0,
    seed: int = 0,
) -> AttributeData:
    """Loads CelebA; with no ``data_dir``, synthetic pictures of the same shapes.

    Aligned pictures (178x218) are resized to ``size x size`` by Pillow's bilinear filter,
    as in the code released with MGDA, which then also subtracts another set's mean colours.
    That is left out here.

    The split is the official one, by the number in a picture's name (1 to 162,770 for
    training, to 182,637 for validation). Where a part of the set leaves one of the three
    empty, all pictures are split by ``seed``, 80, 10 and 10 %.

    Args:
        data_dir: folder with ``list_attr_celeba.txt`` and the pictures in
            ``img_align_celeba``, or with a zip file that holds both; in itself or in
            ``celeba``. For ``"tfds"`` that of tensorflow-datasets.
        source: ``"files"``, ``"tfds"`` (set ``celeb_a``, prepared as ``array_record``),
            ``"synthetic"``, or ``"auto"``: synthetic without a ``data_dir``, else files.
        size: side of the pictures.
        max_images: read only the first pictures of the list.
        add_synthetic: synthetic pictures to add to the files', for trials of a few.
        seed: of the split, if it is not the official one, and of synthetic pictures.

    Returns:
        Images uint8 (N, S, S, 3) and labels int32 (N, 40) for each split.

    Raises:
        FileNotFoundError: ``data_dir`` has no CelebA.
        ModuleNotFoundError: Pillow or tensorflow-datasets is missing and needed.
        ValueError: a damaged file, or arguments that do not fit.

    References:
        Liu, Luo, Wang and Tang 2015, arXiv:1411.7766; as forty tasks: Sener and Koltun
        2018, arXiv:1810.04650. For non-commercial research only.

    >>> data = load_celeba(size=8)
    >>> data.train.images.shape, data.train.labels.shape
    ((206, 8, 8, 3), (206, 40))
    """
    check_choice("source", source, SOURCES)
    for name, value in (("size", size), ("max_images", max_images or 1)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if add_synthetic < 0:
        raise ValueError(f"add_synthetic must be at least 0, got {add_synthetic}")
    synthetic = source == "synthetic" or (source == "auto" and data_dir is None)
    if synthetic:
        count = min(SYNTHETIC_PICTURES, max_images or SYNTHETIC_PICTURES)
        images, labels = _synthetic(count, size, seed)
        names = tuple(f"stripe_{k}" for k in range(NUM_ATTRIBUTES))
        numbers = np.zeros(count, np.int64)
        note = f"{count} SYNTHETIC pictures drawn by formula: no faces, pass data_dir="
    else:
        folder = None if data_dir is None else Path(data_dir).expanduser()
        read = read_tfds if source == "tfds" else read_files
        images, labels, names, numbers, note = read(folder, size, max_images)
        if add_synthetic:
            more = _synthetic(add_synthetic, size, seed)
            images = np.concatenate([images, more[0]])
            labels = np.concatenate([labels, more[1]])
            numbers = np.concatenate([numbers, np.zeros(add_synthetic, np.int64)])
            note += f", and {add_synthetic} SYNTHETIC ones"
    cuts, how = _cuts(numbers, seed)
    splits = [AttributeSplit(images[rows], labels[rows]) for rows in cuts]
    where = f"{note}; {size}x{size}, {how}."
    return AttributeData(*splits, source=where, task_names=names)


def _cuts(numbers: np.ndarray, seed: int) -> tuple[list[np.ndarray], str]:
    """Rows of the three splits, and in words where they come from."""
    last = np.cumsum(OFFICIAL)
    part = np.searchsorted(last, numbers)
    official = [np.flatnonzero(part == k) for k in range(3)]
    if numbers.min() > 0 and all(map(len, official)):
        return official, "the official split"
    count = len(numbers)
    held_out = max(count // 10, 1)
    if count < 3:
        raise ValueError(f"{count} pictures cannot be split, expected at least three")
    order = np.random.default_rng([seed, 0]).permutation(count)
    cuts = np.split(order, [count - 2 * held_out, count - held_out])
    return cuts, f"split by seed {seed}"


def _synthetic(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey noise; every answer yes adds a wave of its own direction and colour."""
    rng = np.random.default_rng([seed, 1])
    labels = rng.integers(0, 2, (count, NUM_ATTRIBUTES)).astype(np.int32)
    place = np.arange(size, dtype=np.float32) / size
    k = np.arange(NUM_ATTRIBUTES, dtype=np.float32)[:, None, None]
    phase = (1 + k % 8) * place[None, :, None] + (k // 8) * place[None, None, :]
    waves = np.cos(2 * np.pi * phase)
    colours = rng.normal(size=(NUM_ATTRIBUTES, 3)).astype(np.float32)
    patterns = (waves[..., None] * colours[:, None, None]).reshape(NUM_ATTRIBUTES, -1)
    images = 128 + 8 * (2 * labels - 1).astype(np.float32) @ patterns
    images += rng.normal(scale=8, size=images.shape).astype(np.float32)
    return images.clip(0, 255).astype(np.uint8).reshape(count, size, size, 3), labels
