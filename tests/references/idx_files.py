"""Writes IDX files, from their published description."""

import gzip
import struct
from pathlib import Path

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    """One array of unsigned bytes as an IDX file."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(path: Path, array: np.ndarray) -> None:
    """Writes ``array``, gzipped if the name ends in ``.gz``."""
    data = idx_bytes(array)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_set(folder: Path, train, test, suffix: str = "") -> None:
    """Writes the four files of a set from two pairs (images, labels)."""
    folder.mkdir(parents=True, exist_ok=True)
    for half, (images, labels) in (("train", train), ("t10k", test)):
        write_idx(folder / f"{half}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{half}-labels-idx1-ubyte{suffix}", labels)
