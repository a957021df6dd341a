"""Census-Income (KDD) as a multi-task set: several questions about the same person."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtl_jax._types import check_choice
from mtl_jax.data import census_files, census_synthetic
from mtl_jax.data.census_encoding import (
    PREPROCESSINGS,
    TASKS,
    inputs_of,
    labels_of,
    num_rows,
    without,
)
from mtl_jax.data.census_files import OFFICIAL_ROWS, STEMS, Table

SPLITS = ("auto", "official", "seeded")
SYNTHETIC_ROWS = (4_000, 2_000)


class TabularSplit(NamedTuple):
    """Rows, ready to lie on a device as they are."""

    inputs: np.ndarray
    """float32 (N, F)."""
    labels: np.ndarray
    """int32 (N, T), one column a task."""


class TabularData(NamedTuple):
    """A multi-task classification set of rows of features."""

    train: TabularSplit
    validation: TabularSplit
    test: TabularSplit
    source: str
    """Where the rows come from, in one sentence."""
    task_names: tuple[str, ...]
    num_classes: tuple[int, ...]
    """Classes of each task."""
    feature_names: tuple[str, ...]
    """Such as ``"sex=Female"`` for a one-hot input, ``"wage per hour"`` for a number."""

    @property
    def num_features(self) -> int:
        """``F``."""
        return len(self.feature_names)


def load_census(
    data_dir: str | Path | None = None,
    *,
    tasks: tuple[str, ...] = ("age", "education", "marital"),
    preprocessing: str = "faithful",
    split: str = "auto",
    validation: int | float = 0,
    seed: int = 0,
    max_rows: int | None = None,
) -> TabularData:
    """Loads Census-Income (KDD); with no ``data_dir``, a synthetic table of its format.

    Two-class tasks: ``"age"`` (at least 40), ``"education"`` (college or more),
    ``"marital"`` (never married), ``"income"`` (over 50,000 dollars). Their columns and
    the instance weight leave the inputs; numbers are inputs as they are, everything
    else is one-hot over the documented values, in the order of the file. Inputs:

    ============ ======== ============= ======================= ======================
    choice       numbers  income        "education" counts      inputs, default tasks
    ============ ======== ============= ======================= ======================
    ``faithful`` raw      an input      no master's degrees     487
    ``fixed``    scaled   left out      master's degrees, too   485
    ``manifold`` scaled   an input      no master's degrees     461
    ============ ======== ============= ======================= ======================

    ``faithful`` keeps three quirks of the code released with continuous Pareto
    exploration: numbers up to 99,999 beside ones and zeros; a typing error
    (``"Maters"``) that makes the 3 % with a master's degree count as no college; and the
    income, the set's own target, among the inputs. ``fixed`` mends them: numbers are
    standardised by the training rows, and the income is never an input.

    ``manifold`` is that of Pareto manifold learning (arXiv:2210.09759): three columns of
    migration codes and the year are left out, the number of persons worked for is seven
    classes, and the few rows with one rare family status are dropped. With ``("age",
    "education")`` it has 468 inputs, with ``("income", "marital")`` 477 and with
    ``("income", "age")`` 483, as there.

    Differs from that code in that the values of a column are the documented ones, not
    those found in both files: with the official files the two are the same, and with
    part of them the width stays the same. A row that has not 42 fields is an error; the
    release leaves it out (the test file has none). Where a column knows ``?``, a ``0``
    is read as one: some copies of the set write it so.

    Args:
        data_dir: folder with ``census-income.data`` and ``census-income.test`` (or
            ``.gz``), in itself or in ``census_income_kdd``.
        tasks: which of the tasks, in which order.
        preprocessing: ``"faithful"``, ``"fixed"`` or ``"manifold"``.
        split: ``"official"``: the two files are training and test rows. ``"seeded"``:
            all rows found are put together in random order and a third of them, as in
            the official split, is set aside for the test. ``"auto"``: official where
            both files are there, else seeded. Parts of the training file
            (``census-income.data.sample*``) are read where the whole is missing.
        validation: training rows set aside, at random: their number, or a share below 1.
        seed: of the seeded split, the validation rows and the synthetic table.
        max_rows: read only the first rows of each file.

    Returns:
        Inputs float32 (N, F) and labels int32 (N, T) for each split. But for the
        instance weight a quarter of the rows equal others, also across the splits.

    Raises:
        FileNotFoundError: the files that ``split`` needs are not in ``data_dir``.
        ValueError: a damaged file, or arguments that do not fit.

    References:
        Ma, Du and Matusik 2020, arXiv:2006.16434; Lane and Kohavi, Census-Income (KDD),
        UCI repository.

    >>> data = load_census()
    >>> data.train.inputs.shape, data.train.labels.shape
    ((4000, 487), (4000, 3))
    >>> print(data.source[:31])
    4,000 + 0 + 2,000 SYNTHETIC row
    """
    _check(tasks, preprocessing, split, max_rows)
    if data_dir is None:
        train, test, note = _synthetic(seed, max_rows)
    else:
        train, test, note = _read(Path(data_dir).expanduser(), split, seed, max_rows)
    recipe = PREPROCESSINGS[preprocessing]
    train, test = (without(table, recipe) for table in (train, test))
    train, held_out = _carve(train, validation, seed)
    tables = (train, held_out, test)
    labels = [labels_of(table, tasks, recipe) for table in tables]
    inputs, names = inputs_of(tables, tasks, recipe)
    counts = " + ".join(f"{len(rows):,}" for rows in labels)
    return TabularData(
        *(TabularSplit(*arrays) for arrays in zip(inputs, labels, strict=True)),
        source=f"{counts} {note}, {preprocessing!r} preprocessing.",
        task_names=tuple(tasks),
        num_classes=(2,) * len(tasks),
        feature_names=names,
    )


def _check(
    tasks: tuple[str, ...], preprocessing: str, split: str, max_rows: int | None
) -> None:
    known = not isinstance(tasks, str) and set(tasks) <= set(TASKS)
    if not known or not tasks or len(set(tasks)) != len(tasks):
        raise ValueError(
            f"tasks must be different names out of {sorted(TASKS)}, got {tasks!r}"
        )
    check_choice("preprocessing", preprocessing, PREPROCESSINGS)
    check_choice("split", split, SPLITS)
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows must be at least 1 or None, got {max_rows}")


def _synthetic(seed: int, max_rows: int | None) -> tuple[Table, Table, str]:
    train, test = (
        census_files.parse(
            census_synthetic.rows(count, np.random.default_rng([seed, k])),
            "the synthetic table",
            max_rows,
        )
        for k, count in enumerate(SYNTHETIC_ROWS)
    )
    return (
        train,
        test,
        "SYNTHETIC rows (train + validation + test) in the format of Census-Income "
        f"(KDD), drawn with seed {seed}: no real people, pass data_dir= for the set",
    )


def _read(
    data_dir: Path, split: str, seed: int, max_rows: int | None
) -> tuple[Table, Table, str]:
    files = census_files.find_files(data_dir)
    complete = files.train is not None and files.test is not None
    if split == "official" and not complete:
        missing = STEMS["test" if files.train else "train"]
        raise FileNotFoundError(
            f"split='official' needs the whole of {missing}, which is not in {data_dir}: "
            "put it there, or pass split='seeded'"
        )
    parts = (files.train,) if files.train else files.samples
    paths = [path for path in (*parts, files.test) if path is not None]
    tables = [census_files.read_file(path, max_rows) for path in paths]
    notes = [
        _describe(path, num_rows(t)) for path, t in zip(paths, tables, strict=True)
    ]
    start = "rows (train + validation + test) of Census-Income (KDD)"
    found = " and ".join(notes)
    if complete and split != "seeded":
        train, test = tables
        return train, test, f"{start}, split as published, from {found}"
    pool = census_files.concatenate(tables)
    total = num_rows(pool)
    if total < 2:
        raise ValueError(
            f"{data_dir} holds {total} row, expected at least two to split"
        )
    order = np.random.default_rng([seed, 0]).permutation(total)
    test_rows = max(round(total / 3), 1)
    halves = (order[test_rows:], order[:test_rows])
    reason = "" if complete else " because one half is not complete"
    train, test = (census_files.take(pool, rows) for rows in halves)
    return train, test, f"{start}, split by seed {seed}{reason}, from {found}"


def _describe(path: Path, rows: int) -> str:
    official = {STEMS[half]: count for half, count in OFFICIAL_ROWS.items()}
    expected = official.get(path.name.removesuffix(".gz"))
    of = "" if expected in (None, rows) else f" of {expected:,}"
    return f"{rows:,}{of} rows of {path.name}"


def _carve(train: Table, validation: int | float, seed: int) -> tuple[Table, Table]:
    total = num_rows(train)
    if isinstance(validation, float):
        if not 0 <= validation < 1:
            raise ValueError(
                f"validation must be a number of rows or a share below 1, got {validation}"
            )
        validation = round(validation * total)
    if not 0 <= validation < total:
        raise ValueError(
            f"validation must leave training rows: expected 0 to {total - 1} of "
            f"{total}, got {validation}"
        )
    order = np.random.default_rng([seed, 1]).permutation(total)
    rest, held_out = np.sort(order[validation:]), np.sort(order[:validation])
    return census_files.take(train, rest), census_files.take(train, held_out)
