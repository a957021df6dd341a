"""Finds and reads the files in which Census-Income (KDD) is published."""

from __future__ import annotations

import gzip
import itertools
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtl_jax.data.census_columns import COLUMNS

FOLDER = "census_income_kdd"
STEMS = {"train": "census-income.data", "test": "census-income.test"}
OFFICIAL_ROWS = {"train": 199_523, "test": 99_762}
_CHUNK = 20_000  # rows split at once: bounds the Python strings to some tens of MB

Table = dict[str, np.ndarray]
"""Column name to array (N,): uint8 positions in the sorted values, or float32."""


class Files(NamedTuple):
    """What was found of the set."""

    train: Path | None
    test: Path | None
    samples: tuple[Path, ...]
    """Parts of the training file, used where the whole is missing."""


def find_files(data_dir: Path) -> Files:
    """Files in ``data_dir/census_income_kdd`` or, if there are none, in ``data_dir``.

    They are called ``census-income.data``, ``census-income.test`` and
    ``census-income.data.sample*``, with or without ``.gz``.

    Raises:
        FileNotFoundError: there is none.
    """
    for folder in (data_dir / FOLDER, data_dir):
        halves = {half: _find(folder, stem) for half, stem in STEMS.items()}
        samples = sorted(folder.glob(f"{STEMS['train']}.sample*"))
        if samples or any(halves.values()):
            return Files(**halves, samples=tuple(p for p in samples if p.is_file()))
    raise FileNotFoundError(
        f"Census-Income (KDD) was not found in {data_dir / FOLDER} or {data_dir}: put "
        f"{STEMS['train']}.gz and {STEMS['test']}.gz there"
    )


def _find(folder: Path, stem: str) -> Path | None:
    candidates = (folder / stem, folder / f"{stem}.gz")
    return next((path for path in candidates if path.is_file()), None)


def read_file(path: Path, max_rows: int | None = None) -> Table:
    """Reads one file, gzipped or not (told by its content).

    Args:
        path: the file.
        max_rows: stop after this many rows.

    Returns:
        all 42 columns.

    Raises:
        ValueError: a damaged file, or a row that is not of this set.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    opener = gzip.open if zipped else open
    try:
        with opener(path, "rt", encoding="ascii") as lines:
            return parse(lines, str(path), max_rows)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} is not a complete gzip file ({error}); expected a gzipped file of "
            "Census-Income (KDD): get it again"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not a text file ({error}); expected rows of {len(COLUMNS)} "
            "fields: get it again"
        ) from error


def parse(lines: Iterable[str], origin: str, max_rows: int | None = None) -> Table:
    """Columns of rows in the set's format: fields separated by commas, then a period.

    Args:
        lines: rows; blank ones are left out.
        origin: what errors call them.
        max_rows: stop after this many rows.

    Raises:
        ValueError: naming the line, for another number of fields or a value that the
            column does not take; or if there are no rows.
    """
    numbered = ((k, row) for k, row in enumerate(lines, 1) if not row.isspace() and row)
    numbered = itertools.islice(numbered, max_rows)
    vocabularies = {
        name: None if values is None else _Positions(values)
        for name, values in COLUMNS.items()
    }
    tables = []
    while chunk := list(itertools.islice(numbered, _CHUNK)):
        tables.append(_parse_chunk(chunk, vocabularies, origin))
    if not tables:
        raise ValueError(f"{origin} holds no rows, expected at least one")
    return concatenate(tables)


def concatenate(tables: list[Table]) -> Table:
    """Rows of all tables, one after the other."""
    return {name: np.concatenate([t[name] for t in tables]) for name in COLUMNS}


def take(table: Table, rows: np.ndarray) -> Table:
    """The given rows, by index."""
    return {name: column[rows] for name, column in table.items()}


class _Positions(dict):
    """Position of each value, also as it is written with blanks and the last period."""

    def __init__(self, values: tuple[str, ...]) -> None:
        super().__init__((value, k) for k, value in enumerate(values))

    def __missing__(self, written: str) -> int:
        value = written.strip().removesuffix(".").rstrip()
        if value == "0" and "?" in self:
            value = "?"  # some copies write the unknown so
        if value not in self:
            raise ValueError(value)
        self[written] = self[value]
        return self[value]


def _parse_chunk(
    chunk: list[tuple[int, str]],
    vocabularies: dict[str, _Positions | None],
    origin: str,
) -> Table:
    rows = [row.split(",") for _, row in chunk]
    for (number, _), row in zip(chunk, rows, strict=True):
        if len(row) != len(COLUMNS):
            raise ValueError(
                f"line {number} of {origin} has {len(row)} fields, expected "
                f"{len(COLUMNS)}: it is damaged, or of another set (Adult has 15)"
            )
    table: Table = {}
    for (name, positions), column in zip(
        vocabularies.items(), zip(*rows, strict=True), strict=True
    ):
        read = float if positions is None else positions.__getitem__
        dtype = np.float32 if positions is None else np.uint8
        try:
            table[name] = np.fromiter(map(read, column), dtype, len(column))
            if not np.isfinite(table[name]).all():
                raise ValueError("not finite")
        except ValueError as error:
            number, written = _first_bad(chunk, column, read)
            kind = "a number" if positions is None else "a documented value"
            raise ValueError(
                f"line {number} of {origin} holds {written.strip()!r} in the column "
                f"{name!r}, expected {kind}: it is damaged, or of another set"
            ) from error
    return table


def _first_bad(chunk: list, column: tuple[str, ...], read) -> tuple[int, str]:
    for (number, _), written in zip(chunk, column, strict=True):
        try:
            good = math.isfinite(read(written))
        except ValueError:
            good = False
        if not good:
            return number, written
    raise AssertionError("every field can be read")
