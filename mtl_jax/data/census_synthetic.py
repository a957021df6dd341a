"""Made-up rows in the format of Census-Income (KDD), with something to learn in them."""

from __future__ import annotations

import numpy as np

from mtl_jax.data.census_columns import COLUMNS, UNIVERSE, WEIGHT

_SCHOOL = ("7th and 8th grade", "10th grade", "12th grade no diploma")
_COLLEGE = (
    "Some college but no degree",
    "Associates degree-academic program",
    "Bachelors degree(BA AB BS)",
    "Masters degree(MA MS MEng MEd MSW MBA)",
)


def rows(count: int, rng: np.random.Generator) -> list[str]:
    """Draws rows whose age, education, marital status and income hang together.

    The columns next to the tasks (household, tax, occupation, weeks worked, income)
    depend on them with noise; all other columns are drawn by themselves, few values
    often and most of them seldom. No marginal is that of the real set.

    Args:
        count: number of rows.
        rng: source of all draws.

    Returns:
        lines of 42 fields, as in the files.
    """
    age = rng.integers(0, 91, count)
    grown, talent = age >= 18, rng.normal(size=count)
    college = grown & (talent > 0.3)
    single = rng.random(count) < 1 / (1 + np.exp((age - 27) / 5))
    single |= age < 16
    working = grown & (age < 68) & (rng.random(count) < 0.8)
    rich = working & (talent + 0.03 * (age - 45) + 0.5 * rng.normal(size=count) > 1.3)

    def pick(values: tuple[str, ...]) -> np.ndarray:
        return np.array(values)[rng.integers(len(values), size=count)]

    def mostly(column: np.ndarray, values: tuple[str, ...]) -> np.ndarray:
        """``column``, with one field in ten replaced by any of ``values``."""
        return np.where(rng.random(count) < 0.1, pick(values), column)

    grades = np.where(grown, "High school graduate", pick(_SCHOOL))
    schooling = np.where(college, pick(_COLLEGE), grades)
    unmarried = np.where(age < 70, "Divorced", "Widowed")
    spouse = rng.random(count) < 0.75
    married = np.where(spouse, "Married-civilian spouse present", unmarried)
    joint = np.where(age < 65, "Joint both under 65", "Joint both 65+")
    tax = np.where(single | ~spouse, "Single", joint)
    head = np.where(rng.random(count) < 0.5, "Householder", "Spouse of householder")
    home = np.where(single & (age < 25), "Child 18 or older", head)
    job = np.where(college, "Professional specialty", "Other service")
    known = {
        "age": age,
        "education": np.where(age < 15, "Children", schooling),
        "marital stat": np.where(single, "Never married", married),
        "tax filer stat": np.where(grown, tax, "Nonfiler"),
        "detailed household summary in household": np.where(
            grown, home, "Child under 18 never married"
        ),
        "major occupation code": np.where(working, job, UNIVERSE),
        "class of worker": np.where(working, "Private", UNIVERSE),
        "family members under 18": np.where(grown, UNIVERSE, "Both parents present"),
        "income": np.where(rich, "50000+", "- 50000"),
    }
    weeks = np.where(working, rng.integers(20, 53, count), 0)
    numbers = {
        "wage per hour": (working & ~college) * rng.integers(0, 2_000, count),
        "capital gains": (rng.random(count) < 0.04) * rng.integers(100_000, size=count),
        "capital losses": (rng.random(count) < 0.02) * rng.integers(4_000, size=count),
        "dividends from stocks": rich * rng.integers(0, 20_000, count),
        "num persons worked for employer": working * rng.integers(1, 7, count),
        "weeks worked in year": weeks,
        WEIGHT: rng.uniform(100, 4_000, count).round(2),
    }
    table = []
    for name, values in COLUMNS.items():
        if values is None:
            column = numbers.get(name, age)
        elif name in ("education", "marital stat", "income"):
            column = known[name]
        elif name in known:
            column = mostly(known[name], values)
        else:
            shares = 1 / np.arange(1, len(values) + 1) ** 1.5
            column = rng.choice(np.array(values), count, p=shares / shares.sum())
        table.append(column.astype(str))
    return [", ".join(fields) + "." for fields in zip(*table, strict=True)]
