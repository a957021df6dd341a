"""Reads CelebA from its published files or from tensorflow-datasets."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.data.tfds_builders import find_prepared

ATTRIBUTES_FILE = "list_attr_celeba.txt"
PICTURES = "img_align_celeba"
NUM_ATTRIBUTES = 40
OFFICIAL = (162_770, 19_867)
"""Pictures of the official training and validation split; the others are for the test."""
Pictures = tuple[np.ndarray, np.ndarray, tuple[str, ...], np.ndarray, str]


def read_files(data_dir: Path | None, size: int, max_images: int | None) -> Pictures:
    """Reads the published files, see :func:`mtl_jax.data.load_celeba`.

    Returns:
        images uint8 (N, S, S, 3), labels int32 (N, 40), names of the attributes, numbers of
        the pictures int64 (N,), and where they come from.

    Raises:
        FileNotFoundError: they are not there.
        ValueError: a damaged file.
    """
    if data_dir is None:
        raise ValueError("source='files' needs data_dir=, the folder that holds CelebA")
    container, read = _find(data_dir)
    names, files, labels = parse_attributes(
        read(ATTRIBUTES_FILE).decode("ascii", "replace"), str(container)
    )
    files, labels = files[:max_images], labels[:max_images]
    decode = _decoder(size)
    images = np.empty((len(files), size, size, 3), np.uint8)
    for k, file in enumerate(files):
        try:
            images[k] = decode(read(f"{PICTURES}/{file}"))
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"the picture {file} of {container} is missing or damaged ({error}): get "
                "it again, or pass max_images= to stop before it"
            ) from None
    numbers = np.array([int(file.split(".")[0]) for file in files])
    note = f"{len(files):,} pictures of CelebA from {container.name}"
    return images, labels, names, numbers, note


def _find(data_dir: Path) -> tuple[Path, Callable[[str], bytes]]:
    for folder in (data_dir / "celeba", data_dir):
        if (folder / ATTRIBUTES_FILE).is_file():
            return folder, _reader(folder)
        for path in sorted(folder.glob("*.zip")):
            if not zipfile.is_zipfile(path):
                continue
            archive = zipfile.ZipFile(path)
            if ATTRIBUTES_FILE in archive.namelist():
                return path, archive.read
            archive.close()
    raise FileNotFoundError(
        f"CelebA was not found in {data_dir / 'celeba'} or {data_dir}: put "
        f"{ATTRIBUTES_FILE} and the folder {PICTURES} there, or a zip file with both"
    )


def _reader(folder: Path) -> Callable[[str], bytes]:
    return lambda name: (folder / name).read_bytes()


def parse_attributes(
    text: str, origin: str
) -> tuple[tuple[str, ...], list[str], np.ndarray]:
    """Reads CelebA's list: a count, forty names, then a picture and forty +-1 a line.

    Returns:
        the names, the pictures' files and the labels int32 (N, 40), 0 or 1.

    Raises:
        ValueError: naming the line that does not fit.
    """
    lines = text.splitlines()
    names = tuple(lines[1].split()) if len(lines) > 1 else ()
    if len(names) != NUM_ATTRIBUTES:
        raise ValueError(
            f"line 2 of {ATTRIBUTES_FILE} in {origin} has {len(names)} names, expected "
            f"{NUM_ATTRIBUTES}: it is damaged, or of another set"
        )
    files, labels = [], []
    for number, line in enumerate(lines[2:], 3):
        file, *values = line.split() or [""]
        fits = len(values) == NUM_ATTRIBUTES and set(values) <= {"1", "-1"}
        if not fits or not file.split(".")[0].isdigit():
            raise ValueError(
                f"line {number} of {ATTRIBUTES_FILE} in {origin} has not a picture's "
                f"number and {NUM_ATTRIBUTES} values 1 or -1: it is damaged"
            )
        files.append(file)
        labels.append([value == "1" for value in values])
    return names, files, np.array(labels, np.int32).reshape(-1, NUM_ATTRIBUTES)


def _decoder(size: int) -> Callable[[bytes], np.ndarray]:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the pictures of CelebA are decoded by Pillow, which is not installed: "
            "install pillow"
        ) from error

    def decode(data: bytes) -> np.ndarray:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))

    return decode


def read_tfds(data_dir: Path | None, size: int, max_images: int | None) -> Pictures:
    """Reads what tensorflow-datasets has prepared; returns as :func:`read_files`."""
    try:
        import tensorflow_datasets as tfds
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"source='tfds' needs {error.name}, which is not installed: install it, or "
            "pass data_dir= with CelebA's files"
        ) from error
    prepared = None if data_dir is None else find_prepared(data_dir, "celeb_a")
    if prepared is None:
        raise FileNotFoundError(
            f"celeb_a is not prepared in {data_dir}: let tensorflow-datasets prepare it "
            "there (file_format='array_record')"
        )
    builder: Any = tfds.builder_from_directory(str(prepared))
    images, labels, numbers = [], [], []
    names: tuple[str, ...] = ()
    for k, split in enumerate(("train", "validation", "test")):
        rows = builder.as_data_source(split=split)
        first = (0, *np.cumsum(OFFICIAL))[k] + 1
        for i in range(min(len(rows), max_images or len(rows))):
            picture = Image.fromarray(rows[i]["image"]).resize(
                (size, size), Image.Resampling.BILINEAR
            )
            images.append(np.asarray(picture))
            names = tuple(sorted(rows[i]["attributes"]))
            labels.append([rows[i]["attributes"][name] for name in names])
            numbers.append(first + i)  # tells the split
    note = f"{len(images):,} pictures of CelebA from tensorflow-datasets"
    return np.stack(images), np.array(labels, np.int32), names, np.array(numbers), note
