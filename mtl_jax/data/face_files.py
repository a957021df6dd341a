"""Finds and decodes the pictures of UTKFace, in a folder or a zip file."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

FOLDERS = ("utkface", "UTKFace", ".")
_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_\d+\.jpg(\.chip\.jpg)?")
_BLOCK = 512  # pictures held as bytes at once


class FaceFiles(NamedTuple):
    """The pictures of one folder or zip file."""

    container: Path
    names: tuple[str, ...]
    """Well-named pictures, sorted."""
    skipped: int
    """Pictures whose names do not say age, gender and race."""


class Faces(NamedTuple):
    """Decoded pictures with what their names say."""

    images: np.ndarray
    """uint8 (N, S, S, 3)."""
    people: np.ndarray
    """int32 (N, 3): age in years, gender, race."""
    duplicates: int
    """Pictures left out because an earlier file has the same bytes."""


def find_faces(data_dir: Path) -> FaceFiles:
    """Looks in ``data_dir/utkface``, ``data_dir/UTKFace`` and ``data_dir``.

    In each first for pictures, there or one folder ``UTKFace`` below, then for a zip
    file with such pictures; ``data_dir`` may be the zip file itself.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a damaged zip file.
    """
    if data_dir.is_file():
        found = _sort_out(data_dir, _zip_names(data_dir))
        if found.names:
            return found
    for folder in (data_dir / name for name in FOLDERS):
        for inner in (folder, folder / "UTKFace"):
            found = _sort_out(inner, [path.name for path in inner.glob("*.jpg")])
            if found.names:
                return found
        for path in sorted(folder.glob("*.zip")):
            found = _sort_out(path, _zip_names(path))
            if found.names:
                return found
    raise FileNotFoundError(
        f"no picture of UTKFace was found in {data_dir / FOLDERS[0]} or {data_dir}: put "
        "the aligned and cropped pictures (age_gender_race_date.jpg.chip.jpg) there, as "
        "files or in a zip file"
    )


def _zip_names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [name for name in archive.namelist() if name.endswith(".jpg")]
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is not a complete zip file ({error}): get it again"
        ) from error


def _sort_out(container: Path, names: list[str]) -> FaceFiles:
    good = sorted(name for name in names if parse_name(name) is not None)
    return FaceFiles(container, tuple(good), len(names) - len(good))


def parse_name(name: str) -> tuple[int, int, int] | None:
    """Age, gender (0 male, 1 female) and race (0 to 4) from a file's name, if it fits.

    Races: White, Black, Asian, Indian, others. Ages over 120 do not fit.

    >>> parse_name("UTKFace/26_1_2_20170116184004753.jpg.chip.jpg")
    (26, 1, 2)
    >>> parse_name("61_1_20170109142408075.jpg.chip.jpg")  # one of five in the set
    """
    match = _NAME.fullmatch(PurePosixPath(name).name)
    if match is None:
        return None
    age, gender, race = (int(text) for text in match.groups()[:3])
    return (age, gender, race) if age <= 120 else None


def read_faces(
    container: Path, names: tuple[str, ...], size: int, drop_duplicates: bool
) -> Faces:
    """Decodes pictures and resizes them to ``size x size``, in several threads.

    Args:
        container: folder or zip file.
        names: of the pictures to read.
        size: side of the results; others are resized bilinearly with antialiasing.
        drop_duplicates: leave out files with the bytes of an earlier one.

    Raises:
        ModuleNotFoundError: Pillow is not installed.
        ValueError: a damaged picture.
    """
    decode = _decoder(container, size)
    images = np.empty((len(names), size, size, 3), np.uint8)
    people, seen, count = [], set(), 0
    with _opened(container) as read, ThreadPoolExecutor() as pool:
        for start in range(0, len(names), _BLOCK):
            block = []
            for name in names[start : start + _BLOCK]:
                data = read(name)
                digest = hashlib.sha256(data).digest()
                if not drop_duplicates or digest not in seen:
                    block.append((name, data))
                    people.append(parse_name(name))
                seen.add(digest)
            for picture in pool.map(decode, block):
                images[count] = picture
                count += 1
    labels = np.array(people, np.int32).reshape(-1, 3)
    return Faces(images[:count], labels, len(names) - count)


@contextlib.contextmanager
def _opened(container: Path) -> Iterator[Callable[[str], bytes]]:
    if container.is_dir():
        yield lambda name: (container / name).read_bytes()
        return
    with zipfile.ZipFile(container) as archive:
        try:
            yield archive.read
        except zipfile.BadZipFile as error:
            raise ValueError(
                f"{container} is damaged ({error}): get it again"
            ) from error


def _decoder(container: Path, size: int) -> Callable[[tuple[str, bytes]], np.ndarray]:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the pictures of UTKFace are decoded by Pillow, which is not installed: "
            "install pillow"
        ) from error

    def decode(item: tuple[str, bytes]) -> np.ndarray:
        name, data = item
        try:
            picture = Image.open(io.BytesIO(data)).convert("RGB")
        except OSError as error:
            raise ValueError(
                f"{name} in {container} is not a complete picture ({error}): get it "
                "again, or remove it"
            ) from error
        if picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(picture)

    return decode
