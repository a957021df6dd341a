"""UTKFace: age, gender and race of the person in a picture."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtl_jax._types import check_choice
from mtl_jax.data import face_files
from mtl_jax.data.face_files import Faces

AGE_SCALES = ("standardized", "hundredths", "years")
SYNTHETIC_PICTURES = 600
_COLOURS = np.array(
    [[230, 190, 160], [110, 70, 50], [240, 215, 140], [170, 110, 70], [150, 150, 190]],
    np.float32,
)


class FaceTargets(NamedTuple):
    """What is asked of each picture; the three fields are the three tasks."""

    age: np.ndarray
    """float32 (N,), on the scale that the loader was asked for."""
    gender: np.ndarray
    """int32 (N,): 0 male, 1 female."""
    race: np.ndarray
    """int32 (N,): 0 White, 1 Black, 2 Asian, 3 Indian, 4 others."""


class FaceSplit(NamedTuple):
    """Pictures and targets, ready to lie on a device as they are."""

    images: np.ndarray
    """uint8 (N, S, S, 3); divide by 255 on the device."""
    targets: FaceTargets


class FaceData(NamedTuple):
    """A set with one regression and two classification tasks."""

    train: FaceSplit
    validation: FaceSplit
    test: FaceSplit
    source: str
    """Where the pictures come from, in one sentence."""
    task_names: tuple[str, ...]
    num_outputs: tuple[int, ...]
    """Outputs of each task: one number, or as many as there are classes."""
    age_mean: float
    age_scale: float
    """An age in years is ``age_mean + age_scale * target``."""


def load_utkface(
    data_dir: str | Path | None = None,
    *,
    size: int = 64,
    age: str = "standardized",
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    drop_duplicates: bool = True,
    max_images: int | None = None,
) -> FaceData:
    """Loads UTKFace; with no ``data_dir``, synthetic pictures of the same shapes.

    The aligned and cropped pictures (200x200) say everything in their names,
    ``age_gender_race_date.jpg.chip.jpg``. Names that do not are skipped and counted in
    ``source`` (five in the whole set). Pictures are resized to ``size x size`` by
    Pillow's bilinear filter, which averages over the area when it shrinks.

    The set has no official split. Here a permutation by ``seed`` is cut by
    ``fractions``. Files that equal an earlier one byte for byte (390 of 23,703) are left
    out, so that no test picture is in the training split. Published code (of Pareto
    manifold learning, say) keeps them, and standardises ages by the whole set; here
    ``"standardized"`` uses the mean and deviation of the training split.

    Args:
        data_dir: folder with the pictures, or with a zip file of them, in itself or in
            ``utkface``; or the zip file.
        size: side of the pictures.
        age: scale of the age targets: ``"standardized"``, ``"hundredths"`` (years / 100)
            or ``"years"``.
        fractions: shares of (train, validation, test).
        seed: of the split, of the draw for ``max_images`` and of synthetic pictures.
        drop_duplicates: whether to leave out byte-identical files.
        max_images: read only so many pictures, drawn at random.

    Returns:
        Images uint8 (N, S, S, 3) and targets age float32 (N,), gender int32 (N,) and
        race int32 (N,), for each split, in random order.

    Raises:
        FileNotFoundError: there are no such pictures in ``data_dir``.
        ModuleNotFoundError: Pillow is not installed and ``data_dir`` is given.
        ValueError: a damaged file, or arguments that do not fit.

    References:
        Zhang, Song and Qi 2017, arXiv:1702.08423; its tasks with a ResNet-18: Ma, Du and
        Matusik 2020, arXiv:2006.16434. For non-commercial research only.

    >>> data = load_utkface(size=8)
    >>> data.train.images.shape, data.train.targets.race.shape
    ((420, 8, 8, 3), (420,))
    >>> print(data.source[:22])
    600 SYNTHETIC pictures
    """
    _check(size, age, fractions, max_images)
    if data_dir is None:
        faces, note = _synthetic(size, seed, max_images)
    else:
        folder = Path(data_dir).expanduser()
        faces, note = _read(folder, size, seed, drop_duplicates, max_images)
    total = len(faces.people)
    held_out, test = (round(share * total) for share in fractions[1:])
    order = np.random.default_rng([seed, 0]).permutation(total)
    cuts = np.split(order, [total - held_out - test, total - test])
    if not len(cuts[0]):
        raise ValueError(
            f"fractions={fractions} of {total} pictures leave none to train on: expected "
            "at least one"
        )
    ages = faces.people[cuts[0], 0].astype(np.float64)
    mean, scale = {
        "standardized": (float(ages.mean()), float(ages.std()) or 1.0),
        "hundredths": (0.0, 100.0),
        "years": (0.0, 1.0),
    }[age]
    splits = []
    for rows in cuts:  # in random order: the files are sorted by age
        years, gender, race = faces.people[rows].T
        targets = FaceTargets(((years - mean) / scale).astype(np.float32), gender, race)
        splits.append(FaceSplit(faces.images[rows], targets))
    return FaceData(
        *splits,
        source=f"{total:,} {note}, {size}x{size}, split {fractions} by seed {seed}.",
        task_names=FaceTargets._fields,
        num_outputs=(1, 2, 5),
        age_mean=mean,
        age_scale=scale,
    )


def _check(
    size: int, age: str, fractions: tuple[float, ...], max_images: int | None
) -> None:
    check_choice("age", age, AGE_SCALES)
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(
            "fractions must be three shares >= 0 that sum to 1 (train, validation, "
            f"test), got {fractions!r}"
        )
    if max_images is not None and max_images < 1:
        raise ValueError(f"max_images must be at least 1 or None, got {max_images}")


def _read(
    data_dir: Path, size: int, seed: int, drop_duplicates: bool, max_images: int | None
) -> tuple[Faces, str]:
    found = face_files.find_faces(data_dir)
    names = found.names
    if max_images is not None and max_images < len(names):
        order = np.random.default_rng([seed, 1]).permutation(len(names))
        names = tuple(names[k] for k in np.sort(order[:max_images]))
    faces = face_files.read_faces(found.container, names, size, drop_duplicates)
    note = (
        f"pictures of UTKFace from {found.container.name} ({len(found.names):,} there, "
        f"{found.skipped} badly named ones skipped, {faces.duplicates} duplicates left "
        "out)"
    )
    return faces, note


def _synthetic(size: int, seed: int, max_images: int | None) -> tuple[Faces, str]:
    """Ovals: coloured by race, with a bar for gender and finer stripes for age."""
    rng = np.random.default_rng([seed, 2])
    count = min(SYNTHETIC_PICTURES, max_images or SYNTHETIC_PICTURES)
    people = rng.integers([1, 0, 0], [117, 2, 5], (count, 3)).astype(np.int32)
    y, x = np.meshgrid(*[(np.arange(size) + 0.5) / size - 0.5] * 2, indexing="ij")
    y, x = y.astype(np.float32)[None], x.astype(np.float32)[None]
    years, gender, race = (part[:, None, None] for part in people.T)
    oval = (x / 0.35) ** 2 + (y / 0.45) ** 2 < 1
    stripes = 0.85 + 0.15 * np.cos(years * y, dtype=np.float32)
    bar = 1 - 0.6 * gender * (np.abs(y + 0.1) < 0.06)
    shade = (np.where(oval, stripes * bar, 0.2)).astype(np.float32)
    images = shade[..., None] * _COLOURS[race[:, 0, 0]][:, None, None]
    images += rng.normal(scale=8, size=images.shape).astype(np.float32)
    note = (
        "SYNTHETIC pictures drawn by formula: no real faces, pass data_dir= for UTKFace"
    )
    return Faces(images.clip(0, 255).astype(np.uint8), people, 0), note
