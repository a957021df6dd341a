"""CIFAR-10 from files: the official binary version, or JPEGs packed in one npz."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

FOLDERS = ("cifar10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin", ".")
PACKED = "cifar10_jpeg.npz"
_TRAIN = tuple(f"data_batch_{k}.bin" for k in range(1, 6))
_TEST = ("test_batch.bin",)
_RECORD = 1 + 3 * 32 * 32


class ColourHalf(NamedTuple):
    """Pictures with one label each."""

    images: np.ndarray
    """uint8 (N, 32, 32, 3)."""
    labels: np.ndarray
    """int32 (N,), 0 to 9."""


def read_cifar10(
    data_dir: Path, train: int | None = None, test: int | None = None
) -> tuple[ColourHalf, ColourHalf, str]:
    """Reads the first pictures of both halves, in the order of the files.

    Args:
        data_dir: folder with the six ``.bin`` files of the official binary version, or
            with ``cifar10_jpeg.npz``, both also one folder below (``FOLDERS``). The npz
            holds, for ``train`` and ``test``, ``NAME_jpeg`` (all files end to end, uint8),
            ``NAME_offsets`` (int64, N + 1) and ``NAME_labels``.
        train: how many training pictures; all by default.
        test: how many test pictures; all by default.

    Returns:
        Training and test half, and where they come from, in words.

    Raises:
        FileNotFoundError: there are no such files.
        ValueError: damaged files, or fewer pictures than asked for.
    """
    for folder in (data_dir / name for name in FOLDERS):
        if all((folder / name).is_file() for name in _TRAIN + _TEST):
            first, last = _binary(folder, _TRAIN, train), _binary(folder, _TEST, test)
            return first, last, "CIFAR-10, the official binary version"
        if (folder / PACKED).is_file():
            with np.load(folder / PACKED) as packed:
                first = _packed(packed, "train", train)
                last = _packed(packed, "test", test)
            return first, last, "CIFAR-10 as JPEGs (not the exact pixels)"
    raise FileNotFoundError(
        f"CIFAR-10 was not found in {data_dir}: put the six files of its binary version "
        f"(such as {_TRAIN[0]}) or {PACKED} in {data_dir / FOLDERS[0]}"
    )


def _binary(folder: Path, names: tuple[str, ...], count: int | None) -> ColourHalf:
    data = b"".join((folder / name).read_bytes() for name in names)
    if len(data) % _RECORD:
        raise ValueError(
            f"{folder / names[0]} and its like must hold records of {_RECORD} bytes, "
            f"found {len(data)} bytes in all"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD)
    records = _first(records, count, names[0])
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return ColourHalf(images, records[:, 0].astype(np.int32))


def _packed(packed: np.lib.npyio.NpzFile, name: str, count: int | None) -> ColourHalf:
    from PIL import Image

    data = packed[f"{name}_jpeg"]
    offsets = packed[f"{name}_offsets"].astype(np.int64)
    labels = _first(packed[f"{name}_labels"].astype(np.int32), count, name)

    def decode(index: int) -> np.ndarray:
        file = io.BytesIO(data[offsets[index] : offsets[index + 1]].tobytes())
        with Image.open(file) as picture:
            return np.asarray(picture.convert("RGB"))

    with ThreadPoolExecutor() as pool:
        images = list(pool.map(decode, range(len(labels))))
    if any(image.shape != (32, 32, 3) for image in images):
        raise ValueError(f"{PACKED} must hold pictures of 32x32 pixels")
    return ColourHalf(np.stack(images), labels)


def _first(array: np.ndarray, count: int | None, name: str) -> np.ndarray:
    if count is not None and count > len(array):
        raise ValueError(f"{name} holds {len(array)} pictures, {count} were asked for")
    return array[:count]
