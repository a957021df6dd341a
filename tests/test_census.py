"""Census-Income (KDD): the rows, both preprocessings, the splits, and damaged files."""

import gzip

import numpy as np
import pytest

from mtl_jax.data import census_encoding, census_files, census_synthetic, load_census
from mtl_jax.data.census_columns import COLUMNS

PERSON = (
    "73, Not in universe, 0, 0, High school graduate, 0, Not in universe, Widowed, "
    "Not in universe or children, Not in universe, White, All other, Female, "
    "Not in universe, Not in universe, Not in labor force, 0, 0, 0, Nonfiler, "
    "Not in universe, Not in universe, Other Rel 18+ ever marr not in subfamily, "
    "Other relative of householder, 1700.09, ?, ?, ?, Not in universe under 1 year "
    "old, ?, 0, Not in universe, United-States, United-States, United-States, "
    "Native- Born in the United States, 0, Not in universe, 2, 0, 95, - 50000."
)
DEGREES = [
    "Masters degree(MA MS MEng MEd MSW MBA)",
    "Bachelors degree(BA AB BS)",
    "Some college but no degree",
    "Associates degree-occup /vocational",
    "Doctorate degree(PhD EdD)",
    "Prof school degree (MD DDS DVM LLB JD)",
    "High school graduate",
]


def person(**changes):
    """One row of the files with some columns changed (``_`` for a blank)."""
    fields = dict(zip(COLUMNS, PERSON[:-1].split(", "), strict=True))
    for name, value in changes.items():
        fields[name.replace("_", " ")] = str(value)
    assert len(fields) == 42
    return ", ".join(fields.values()) + "."


def write(folder, train=(), test=(), suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    for stem, rows in (("data", train), ("test", test)):
        if rows:
            text = "".join(f"{row}\n" for row in rows).encode()
            path = folder / f"census-income.{stem}{suffix}"
            path.write_bytes(gzip.compress(text) if suffix == ".gz" else text)
    return folder


def made_up(count, seed=0):
    return census_synthetic.rows(count, np.random.default_rng(seed))


def column(data, split, name):
    return getattr(data, split).inputs[:, data.feature_names.index(name)]


# -- the synthetic default


def test_default_is_synthetic_and_says_so():
    data = load_census()
    assert data.source.startswith("4,000 + 0 + 2,000 SYNTHETIC rows")
    assert "pass data_dir=" in data.source
    assert data.task_names == ("age", "education", "marital")
    assert data.num_classes == (2, 2, 2)
    assert data.num_features == 487
    for split, rows in ((data.train, 4_000), (data.validation, 0), (data.test, 2_000)):
        assert split.inputs.shape == (rows, 487) and split.inputs.dtype == np.float32
        assert split.labels.shape == (rows, 3) and split.labels.dtype == np.int32
    again, other = load_census(), load_census(seed=1)
    np.testing.assert_array_equal(again.train.inputs, data.train.inputs)
    assert not np.array_equal(other.train.inputs, data.train.inputs)


def test_synthetic_tasks_can_be_learned_but_are_not_trivial():
    data = load_census(preprocessing="fixed")
    (x, y), (test_x, test_y) = data.train, data.test
    # Ridge regression on +-1: a linear rule, in closed form.
    gram = x.T @ x + 10 * np.eye(x.shape[1], dtype=np.float32)
    rule = np.linalg.solve(gram, x.T @ (2 * y - 1).astype(np.float32))
    accuracy = ((test_x @ rule > 0) == test_y).mean(0)
    common = np.maximum(test_y.mean(0), 1 - test_y.mean(0))
    assert (accuracy > common + 0.05).all() and (accuracy < 0.99).all()


# -- inputs and labels


def test_widths_of_all_choices():
    for tasks, faithful in (
        (("age", "education", "marital"), 487),
        (("age", "education"), 487 + 7),
        (("income", "marital"), 487 + 1 + 17 - 2),
        (("income", "age"), 487 + 17 + 7 - 2),
    ):
        income = 0 if "income" in tasks else 2
        for preprocessing, width in (
            ("faithful", faithful),
            ("fixed", faithful - income),
            ("manifold", faithful - 26),  # the published 468, 477 and 483 of two tasks
        ):
            data = load_census(tasks=tasks, preprocessing=preprocessing, max_rows=5)
            assert data.num_features == width
            assert data.train.labels.shape == (5, len(tasks))
            assert data.num_classes == (2,) * len(tasks)


def test_manifold_preprocessing(tmp_path):
    rows = [person(num_persons_worked_for_employer=size) for size in (0, 6, 3, 6)]
    rare = "Grandchild <18 ever marr not in subfamily"
    rows.append(person(detailed_household_and_family_stat=rare))
    folder = write(tmp_path, rows, [PERSON])
    options = {"tasks": ("age", "education"), "preprocessing": "manifold"}
    data = load_census(folder, validation=0.25, **options)
    assert data.num_features == 468
    # The rare row went before a quarter was set aside.
    sizes = [len(split.labels) for split in data[:3]]
    assert sizes == [3, 1, 1]
    names = np.array(data.feature_names)
    columns = np.char.startswith(names, "num persons worked for employer=")
    both = np.concatenate([data.train.inputs, data.validation.inputs])[:, columns]
    np.testing.assert_array_equal(np.sort(both.argmax(1)), [0, 3, 6, 6])
    np.testing.assert_array_equal(both.sum(1), 1)
    assert not any("Grandchild <18 ever" in name or "year=" in name for name in names)
    assert "income=50000+" in names
    with pytest.raises(ValueError, match="a share below 1, got"):
        load_census(folder, validation=1.0)
    bad = write(tmp_path / "bad", [person(num_persons_worked_for_employer=7)], [PERSON])
    with pytest.raises(ValueError, match="holds 7, expected whole numbers from 0 to 6"):
        load_census(bad, **options)


def test_a_row_becomes_ones_at_its_values_and_numbers(tmp_path):
    row = person(wage_per_hour=1200, weeks_worked_in_year=52)
    data = load_census(write(tmp_path, [row], [PERSON]))
    expected = {"wage per hour": 1200, "weeks worked in year": 52}
    hidden = {"age", "education", "marital stat", "instance weight"}
    fields = row[:-1].split(", ")
    for (name, values), field in zip(COLUMNS.items(), fields, strict=True):
        if values is not None and name not in hidden:
            expected[f"{name}={field}"] = 1
    found = {
        name: value
        for name, value in zip(data.feature_names, data.train.inputs[0], strict=True)
        if value
    }
    assert found == expected and len(found) == 34
    assert data.feature_names[0] == "class of worker=Federal government"
    assert data.feature_names[-1] == "income=50000+"


@pytest.mark.parametrize(("preprocessing", "masters"), [("faithful", 0), ("fixed", 1)])
def test_labels(tmp_path, preprocessing, masters):
    rows = [person(education=degree) for degree in DEGREES]
    rows += [person(age=39), person(age=40), person(income="50000+")]
    rows += [person(**{"marital stat": "Never married"})]
    data = load_census(
        write(tmp_path, rows, [PERSON]),
        tasks=("education", "age", "marital", "income"),
        preprocessing=preprocessing,
    )
    expected = np.array([[k < 6, True, False, False] for k in range(7)])
    expected[0, 0] = masters
    more = [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 1], [0, 1, 1, 0]]
    np.testing.assert_array_equal(data.train.labels, [*expected, *more])


def test_numbers_are_scaled_by_the_training_rows_only(tmp_path):
    train = [person(wage_per_hour=w) for w in (0, 100, 200, 500)]
    folder = write(tmp_path, train, [person(wage_per_hour=900)])
    faithful = load_census(folder)
    np.testing.assert_array_equal(
        column(faithful, "train", "wage per hour"), [0, 100, 200, 500]
    )
    fixed = load_census(folder, preprocessing="fixed")
    mean, deviation = 200, np.std([0, 100, 200, 500])
    np.testing.assert_allclose(
        column(fixed, "train", "wage per hour"),
        (np.array([0, 100, 200, 500]) - mean) / deviation,
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        column(fixed, "test", "wage per hour"), [(900 - mean) / deviation], rtol=1e-6
    )
    # a constant column is only centred
    np.testing.assert_array_equal(column(fixed, "test", "capital gains"), [0])
    ones = [k for k, name in enumerate(fixed.feature_names) if "=" in name]
    assert set(np.unique(fixed.train.inputs[:, ones])) == {0, 1}
    assert not any(name.startswith("income") for name in fixed.feature_names)


# -- files and splits


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("subfolder", ["", "census_income_kdd"])
def test_official_split(tmp_path, suffix, subfolder):
    write(tmp_path / subfolder, made_up(30), made_up(20, 1), suffix)
    data = load_census(tmp_path)
    assert len(data.train.labels) == 30 and len(data.test.labels) == 20
    assert "split as published" in data.source
    assert f"30 of 199,523 rows of census-income.data{suffix}" in data.source
    expected = census_files.parse(made_up(20, 1), "")["age"] >= 40
    np.testing.assert_array_equal(data.test.labels[:, 0], expected)


def test_the_test_half_alone_is_split_by_seed(tmp_path):
    rows = [person(age=40 * (k % 2), wage_per_hour=k) for k in range(30)]
    folder = write(tmp_path, test=rows)
    (folder / "census-income.data.sample6.gz").write_bytes(
        gzip.compress(
            "\n".join(person(wage_per_hour=100 + k) for k in range(6)).encode()
        )
    )
    data = load_census(folder)
    assert "split by seed 0 because one half is not complete" in data.source
    assert "6 rows of census-income.data.sample6.gz" in data.source
    assert "30 of 99,762 rows of census-income.test" in data.source
    train, test = (column(data, half, "wage per hour") for half in ("train", "test"))
    assert (len(train), len(test)) == (24, 12)
    assert sorted([*train, *test]) == [*range(30), *range(100, 106)]
    for wage, label in zip(train, data.train.labels[:, 0], strict=True):
        assert label == (wage >= 100 or wage % 2)
    other = column(load_census(folder, seed=1), "test", "wage per hour")
    assert not np.array_equal(other, test)
    with pytest.raises(
        FileNotFoundError, match=r"whole of census-income\.data, .* put"
    ):
        load_census(folder, split="official")


def test_seeded_split_of_complete_files_and_one_half_only(tmp_path):
    write(tmp_path, made_up(40), made_up(20, 1))
    data = load_census(tmp_path, split="seeded")
    assert (len(data.train.labels), len(data.test.labels)) == (40, 20)
    assert "split by seed 0, from" in data.source
    (tmp_path / "census-income.test").unlink()
    data = load_census(tmp_path)
    assert (len(data.train.labels), len(data.test.labels)) == (27, 13)
    with pytest.raises(FileNotFoundError, match=r"whole of census-income\.test"):
        load_census(tmp_path, split="official")


def test_validation_rows_leave_the_training_rows(tmp_path):
    rows = [person(wage_per_hour=k) for k in range(20)]
    folder = write(tmp_path, rows, [PERSON])
    data = load_census(folder, validation=5)
    wages = [column(data, half, "wage per hour") for half in ("train", "validation")]
    assert [len(part) for part in wages] == [15, 5]
    assert sorted(np.concatenate(wages)) == list(range(20))
    with pytest.raises(ValueError, match="expected 0 to 19 of 20, got 20"):
        load_census(folder, validation=20)


def test_max_rows_reads_the_first_rows(tmp_path):
    folder = write(tmp_path, made_up(30), made_up(20, 1))
    whole, part = load_census(folder), load_census(folder, max_rows=7)
    assert len(part.train.labels) == len(part.test.labels) == 7
    np.testing.assert_array_equal(part.train.inputs, whole.train.inputs[:7])


def test_zero_stands_for_unknown_where_there_is_an_unknown(tmp_path):
    marked = load_census(write(tmp_path, [PERSON], [PERSON.replace("?", "0")]))
    np.testing.assert_array_equal(marked.test.inputs, marked.train.inputs)
    assert column(marked, "test", "migration prev res in sunbelt=?") == 1


def test_chunks_are_put_together(monkeypatch):
    rows = ["", *made_up(50), "  \n"]
    whole = census_files.parse(rows, "")
    monkeypatch.setattr(census_files, "_CHUNK", 7)
    parts = census_files.parse(rows, "")
    assert list(parts) == list(COLUMNS)
    for name, values in whole.items():
        np.testing.assert_array_equal(parts[name], values)
        assert values.dtype == (np.float32 if COLUMNS[name] is None else np.uint8)


# -- what is refused


BAD = {
    "fields": ("1, 2, 3.", r"line 3 of .*data has 3 fields, expected 42: .*Adult"),
    "value": (person(sex="Robot"), r"line 3 of .* holds 'Robot' in the column 'sex'"),
    "number": (person(age="old"), r"holds 'old' in the column 'age', expected a numb"),
    "nan": (person(capital_gains="nan"), "holds 'nan' in the column 'capital gains'"),
    "unknown": (person(race="?"), r"holds '\?' in the column 'race', expected a doc"),
    "zero": (person(**{"live in this house 1 year ago": "0"}), "holds '0' in the col"),
    "letters": ("Ünïcode", "is not a text file .* get it again"),
}


@pytest.mark.parametrize("kind", BAD)
def test_damaged_rows_are_refused_in_one_sentence(tmp_path, kind):
    row, message = BAD[kind]
    write(tmp_path, [PERSON, "", row], [PERSON])
    with pytest.raises(ValueError, match=message) as error:
        load_census(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def cut(data):
    return data[:-20]


def garble(data):
    return data[:20] + b"\xff" * 30 + data[50:]


def flip(data):
    return data[:-5] + bytes([data[-5] ^ 255]) + data[-4:]


@pytest.mark.parametrize("damage", [cut, garble, flip])
def test_damaged_gzip_files_are_refused(tmp_path, damage):
    write(tmp_path, made_up(50), [PERSON], ".gz")
    path = tmp_path / "census-income.data.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"data\.gz is not a complete gzip .* again"):
        load_census(tmp_path)


def test_empty_and_missing_files_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"was not found in .*\.data\.gz and"):
        load_census(tmp_path)
    write(tmp_path, ["   "], [PERSON])
    with pytest.raises(ValueError, match="data holds no rows, expected at least one"):
        load_census(tmp_path)
    (tmp_path / "census-income.data").unlink()
    with pytest.raises(ValueError, match="holds 1 row, expected at least two to split"):
        load_census(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ("age", "wealth")}, r"tasks must be different names .*'wealth'"),
        ({"tasks": ()}, r"tasks must be different names out of .*, got \(\)"),
        ({"tasks": "age"}, r"tasks must be different names out of .*, got 'age'"),
        ({"tasks": ("age", "age")}, "tasks must be different names"),
        ({"preprocessing": "best"}, "preprocessing must be one of"),
        ({"split": "random"}, "split must be one of"),
        ({"max_rows": 0}, "max_rows must be at least 1 or None, got 0"),
        ({"validation": -1}, "validation must leave training rows"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_census(**arguments)


# -- the real set


@pytest.fixture
def real(data_dir):
    if not (data_dir / census_files.FOLDER).is_dir():
        pytest.skip(f"{data_dir} has no {census_files.FOLDER}")
    return data_dir


def test_the_first_real_rows(real):
    data = load_census(real, max_rows=500)
    assert data.num_features == 487
    # every row has one value in each of the 32 columns that are no numbers
    one_hot = [k for k, name in enumerate(data.feature_names) if "=" in name]
    for split in (data.train, data.test):
        assert np.isfinite(split.inputs).all()
        np.testing.assert_array_equal(split.inputs[:, one_hot].sum(1), 32)


@pytest.mark.slow
def test_the_real_test_half_is_read_whole(real):
    path = census_files.find_files(real).test
    assert path is not None
    table = census_files.read_file(path)
    assert len(table["age"]) == 99_762
    tasks = tuple(census_encoding.TASKS)
    counts = {"faithful": [39_366, 30_104, 43_143], "fixed": [39_366, 33_410, 43_143]}
    counts["manifold"] = counts["faithful"]
    for name, recipe in census_encoding.PREPROCESSINGS.items():
        labels = census_encoding.labels_of(table, tasks, recipe)
        # the last is the published number of incomes over 50,000
        np.testing.assert_array_equal(labels.sum(0), [*counts[name], 6_186])
    # all documented values occur but one, which is in the training half only
    found = sum(len(np.unique(table[n])) for n, values in COLUMNS.items() if values)
    assert found == sum(len(values) for values in COLUMNS.values() if values) - 1
