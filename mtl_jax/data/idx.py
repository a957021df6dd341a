"""Reads the four IDX files in which MNIST and Fashion-MNIST are published."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""Published file names ``(images, labels)`` of each half, without ``.gz``."""

OFFICIAL_MD5 = {
    "mnist": "6bbc9ace898e44ae57da46a324031adb",
    "fashion_mnist": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
}
"""MD5 of the uncompressed official training images."""

_MAGIC = {1: 0x801, 3: 0x803}  # two zero bytes, 8 for uint8, number of axes
_CONTENT = {0x801: "a label file", 0x803: "an image file"}


def find_idx(folder: Path, stem: str) -> Path | None:
    """The file called ``stem`` or ``stem.gz`` in ``folder``, if there is one."""
    candidates = (folder / stem, folder / f"{stem}.gz")
    return next((path for path in candidates if path.is_file()), None)


def find_folder(data_dir: Path, name: str) -> Path | None:
    """``data_dir/name`` or ``data_dir``: the first that holds any of the four files."""
    stems = [stem for pair in FILES.values() for stem in pair]
    for folder in (data_dir / name, data_dir):
        if any(find_idx(folder, stem) for stem in stems):
            return folder
    return None


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Reads one IDX file of unsigned bytes, gzipped or not (told by its content).

    Args:
        path: the file.
        ndim: 3 for images, 1 for labels.

    Returns:
        uint8 array with ``ndim`` axes.

    Raises:
        ValueError: damaged gzip, wrong magic number, or a size that differs from the
            one in the header.
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path} is not a complete gzip file ({error}); expected a gzipped "
                "IDX file: get it again"
            ) from error
    magic = int.from_bytes(data[:4], "big")
    header = 4 + 4 * ndim
    if len(data) < header or magic != _MAGIC[ndim]:
        content = _CONTENT.get(magic, "neither IDX images nor IDX labels")
        raise ValueError(
            f"{path} starts with the magic number {magic} ({content}), expected "
            f"{_MAGIC[ndim]} ({_CONTENT[_MAGIC[ndim]]}): check that the files are not "
            "swapped, or get it again"
        )
    shape = tuple(np.frombuffer(data, ">u4", count=ndim, offset=4).tolist())
    found, expected = len(data) - header, math.prod(shape)
    if found != expected:
        raise ValueError(
            f"{path} holds {found} bytes of data, but its header says {expected} for "
            f"shape {shape}: the file is cut or damaged, get it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def read_half(folder: Path, half: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads and checks images and labels of one half of a set.

    Args:
        folder: where the files lie.
        half: ``"train"`` or ``"test"``.

    Returns:
        images (N, 28, 28) uint8 and labels (N,) int32 in 0..9.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a damaged file, or images and labels that do not fit together.
    """
    paths = []
    for stem in FILES[half]:
        path = find_idx(folder, stem)
        if path is None:
            raise FileNotFoundError(
                f"{folder} has no file {stem} or {stem}.gz; expected the four files "
                f"{', '.join(s for pair in FILES.values() for s in pair)} (or .gz)"
            )
        paths.append(path)
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    if images.shape[1:] != (28, 28):
        raise ValueError(
            f"{paths[0]} holds images of shape {images.shape[1:]}, expected (28, 28): "
            "pass the MNIST or Fashion-MNIST files"
        )
    if len(images) != len(labels):
        raise ValueError(
            f"{paths[0]} holds {len(images)} images but {paths[1].name} holds "
            f"{len(labels)} labels: take both files from the same set and half"
        )
    if len(labels) == 0:
        raise ValueError(f"{paths[0]} holds 0 images, expected at least one")
    if labels.max() > 9:
        raise ValueError(
            f"{paths[1]} holds the label {labels.max()}, expected 0 to 9: the file is "
            "damaged or of another data set (EMNIST has more classes)"
        )
    return images, labels.astype(np.int32)


def identify(train_images: np.ndarray) -> str | None:
    """Name of the published set with exactly these training images, if any."""
    header = np.array([_MAGIC[3], *train_images.shape], ">u4").tobytes()
    digest = hashlib.md5(header + train_images.tobytes(), usedforsecurity=False)
    names = {md5: name for name, md5 in OFFICIAL_MD5.items()}
    return names.get(digest.hexdigest())
