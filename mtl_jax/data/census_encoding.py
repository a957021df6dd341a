"""Census-Income (KDD): from columns to the inputs and labels of a recipe."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mtl_jax.data import census_files
from mtl_jax.data.census_columns import (
    COLUMNS,
    EMPLOYED,
    FAMILY,
    INCOME,
    MIGRATION,
    RARE_FAMILY,
    WEIGHT,
)
from mtl_jax.data.census_files import Table

_COLLEGE = ("Bachelors", "Some", "Asso", "Doctorate", "Prof")


class CensusTask(NamedTuple):
    """A yes-no question that one column answers."""

    column: str
    yes: float | tuple[str, ...]
    """For numbers the least value, else the beginnings of the values that mean yes."""


TASKS = {
    "age": CensusTask("age", 40.0),
    "education": CensusTask("education", (*_COLLEGE, "Masters")),
    "marital": CensusTask("marital stat", ("Never married",)),
    "income": CensusTask(INCOME, ("50000+",)),
}
"""At least 40 years old; college or more; never married; income over 50,000 dollars."""


class Preprocessing(NamedTuple):
    """How rows become inputs and labels."""

    scaled: bool
    """Whether numbers are standardised by the mean and deviation of the training rows."""
    income: bool
    """Whether the income is an input where it is no task."""
    masters: str
    """How the values of ``education`` that count as a master's degree begin."""
    left_out: tuple[str, ...] = ()
    """Columns that are no inputs."""
    one_hot: tuple[tuple[str, int], ...] = ()
    """Columns of whole numbers 0, 1, ... that are inputs as classes, and how many."""
    without: tuple[tuple[str, str], ...] = ()
    """Column and value: rows that have it are left out, and the value is no input."""


PREPROCESSINGS = {
    "faithful": Preprocessing(scaled=False, income=True, masters="Maters"),
    "fixed": Preprocessing(scaled=True, income=False, masters="Masters"),
    "manifold": Preprocessing(
        scaled=True,
        income=True,
        masters="Maters",
        left_out=(*MIGRATION, "year"),
        one_hot=((EMPLOYED, 7),),
        without=((FAMILY, RARE_FAMILY),),
    ),
}


def num_rows(table: Table) -> int:
    """``N``."""
    return len(table[WEIGHT])


def without(table: Table, recipe: Preprocessing) -> Table:
    """The rows that have none of the values that the recipe does without."""
    for name, value in recipe.without:
        position = (COLUMNS[name] or ()).index(value)
        table = census_files.take(table, np.flatnonzero(table[name] != position))
    return table


def labels_of(
    table: Table, tasks: tuple[str, ...], recipe: Preprocessing
) -> np.ndarray:
    """int32 ``(N, T)``, one column a task."""
    labels = np.empty((num_rows(table), len(tasks)), np.int32)
    for k, task in enumerate(tasks):
        name, yes = TASKS[task]
        values = COLUMNS[name]
        if not isinstance(yes, tuple) or values is None:
            labels[:, k] = table[name] >= yes
            continue
        if task == "education":
            yes = (*_COLLEGE, recipe.masters)
        labels[:, k] = np.array([v.startswith(yes) for v in values])[table[name]]
    return labels


def inputs_of(
    tables: tuple[Table, ...], tasks: tuple[str, ...], recipe: Preprocessing
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Inputs of each table, scaled by the first one; and the features' names."""
    left_out = {WEIGHT, *recipe.left_out, *(TASKS[task].column for task in tasks)}
    if not recipe.income:
        left_out.add(INCOME)
    columns = {name: v for name, v in COLUMNS.items() if name not in left_out}
    for name, count in recipe.one_hot:
        if name in columns:
            columns[name] = tuple(map(str, range(count)))
            _check_classes(tables, name, count)
    names = tuple(
        name if value is None else f"{name}={value}"
        for name, values in columns.items()
        for value in values or (None,)
    )
    inputs = [np.zeros((num_rows(table), len(names)), np.float32) for table in tables]
    first = 0
    for name, values in columns.items():
        for table, matrix in zip(tables, inputs, strict=True):
            column = table[name]
            if values is None:
                matrix[:, first] = column
            else:
                matrix[np.arange(len(column)), first + column.astype(np.int64)] = 1
        if values is None and recipe.scaled:
            train = tables[0][name].astype(np.float64)
            mean, deviation = train.mean(), train.std()
            for matrix in inputs:
                matrix[:, first] -= mean
                matrix[:, first] /= deviation or 1
        first += len(values or (None,))
    return _without_values(inputs, names, recipe)


def _check_classes(tables: tuple[Table, ...], name: str, count: int) -> None:
    for table in tables:
        wrong = table[name][~np.isin(table[name], np.arange(count))]
        if len(wrong):
            raise ValueError(
                f"the column {name!r} holds {wrong[0]:g}, expected whole numbers from 0 "
                f"to {count - 1}"
            )


def _without_values(
    inputs: list[np.ndarray], names: tuple[str, ...], recipe: Preprocessing
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Inputs without those that are always zero because their rows were dropped."""
    gone = {f"{column}={value}" for column, value in recipe.without}
    kept = [k for k, name in enumerate(names) if name not in gone]
    if len(kept) == len(names):
        return inputs, names
    return [matrix[:, kept] for matrix in inputs], tuple(names[k] for k in kept)
