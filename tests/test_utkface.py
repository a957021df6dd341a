"""UTKFace: names, folders and zip files, decoding, targets, splits, damaged files."""

import io
import itertools
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from mtl_jax.data import face_files, load_utkface

BADLY_NAMED = (
    "61_1_20170109142408075.jpg.chip.jpg",
    "61_3_1_20170109150557335.jpg.chip.jpg",
    "24_0_1_20170116220224657 .jpg.chip.jpg",
    "200_0_1_20170116220224657.jpg.chip.jpg",
    "10_0_7_20170116220224657.jpg.chip.jpg",
)


def jpeg(seed, side=20):
    """A smooth picture as JPEG bytes."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3)).astype(np.uint8))
    buffer = io.BytesIO()
    coarse.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "jpeg")
    return buffer.getvalue()


def name_of(k):
    return f"{1 + 5 * k}_{k % 2}_{k % 5}_201701161840047{k:02}.jpg.chip.jpg"


PICTURES = {name_of(k): jpeg(k) for k in range(20)}


@pytest.fixture(params=["folder", "inner folder", "zip", "flat folder"])
def container(tmp_path, request):
    """The same 20 pictures and five bad names, in each way in which they may lie."""
    return lay_out(tmp_path, request.param)


def lay_out(tmp_path, kind, pictures=PICTURES):
    files = {**pictures, **dict.fromkeys(BADLY_NAMED, jpeg(99)), "notes.txt": b"hello"}
    folder = {
        "folder": tmp_path / "utkface",
        "inner folder": tmp_path / "utkface" / "UTKFace",
        "zip": tmp_path / "utkface",
        "flat folder": tmp_path,
    }[kind]
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "zip":
        with zipfile.ZipFile(folder / "faces.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(f"UTKFace/{name}", data)
    else:
        for name, data in files.items():
            (folder / name).write_bytes(data)
    return tmp_path


def everything(data):
    """Images, ages, genders and races of all splits, in order of age."""
    splits = (data.train, data.validation, data.test)
    columns = [np.concatenate([s.images for s in splits])]
    for field in ("age", "gender", "race"):
        columns.append(np.concatenate([getattr(s.targets, field) for s in splits]))
    order = np.argsort(columns[1])
    return [values[order] for values in columns]


# -- the synthetic default


def test_default_is_synthetic_and_says_so():
    data = load_utkface()
    assert data.source.startswith("600 SYNTHETIC pictures")
    assert "pass data_dir=" in data.source
    assert data.task_names == ("age", "gender", "race")
    assert data.num_outputs == (1, 2, 5)
    for split, count in ((data.train, 420), (data.validation, 60), (data.test, 120)):
        assert split.images.shape == (count, 64, 64, 3)
        assert split.images.dtype == np.uint8
        assert split.targets.age.dtype == np.float32
        for labels, classes in ((split.targets.gender, 2), (split.targets.race, 5)):
            assert labels.dtype == np.int32 and labels.shape == (count,)
            assert set(labels) == set(range(classes))
    again, other = load_utkface(), load_utkface(seed=1)
    np.testing.assert_array_equal(again.test.images, data.test.images)
    assert not np.array_equal(other.test.images, data.test.images)
    assert load_utkface(size=16, max_images=50).source.startswith("50 SYNTHETIC")


def test_synthetic_race_shows_in_the_colours():
    data = load_utkface(size=16)
    colours = data.train.images.mean((1, 2))
    means = [colours[data.train.targets.race == race].mean(0) for race in range(5)]
    for race, mean in enumerate(means):
        others = [m for k, m in enumerate(means) if k != race]
        assert min(np.abs(mean - other).max() for other in others) > 10


def test_import_leaves_pillow_alone():
    code = "import sys, mtl_jax.data; sys.exit('PIL' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- files


def test_every_layout_gives_the_same_set(container):
    data = load_utkface(container, size=20, age="years")
    assert data.source.startswith("20 pictures of UTKFace from ")
    assert "20 there, 5 badly named ones skipped, 0 duplicates" in data.source
    images, age, gender, race = everything(data)
    np.testing.assert_array_equal(age, 1 + 5 * np.arange(20))
    np.testing.assert_array_equal(gender, np.arange(20) % 2)
    np.testing.assert_array_equal(race, np.arange(20) % 5)
    for picture, written in zip(images, PICTURES.values(), strict=True):
        decoded = np.asarray(Image.open(io.BytesIO(written)))
        np.testing.assert_array_equal(picture, decoded)


def test_the_zip_file_itself_may_be_passed(tmp_path):
    folder = lay_out(tmp_path, "zip")
    data = load_utkface(folder / "utkface" / "faces.zip", size=20)
    assert data.source.startswith("20 pictures of UTKFace from faces.zip (20 there")


def test_pictures_are_shrunk_by_averaging(tmp_path):
    data = load_utkface(lay_out(tmp_path, "zip"), size=5, age="years")
    for picture, jpeg_data in zip(everything(data)[0], PICTURES.values(), strict=True):
        full = np.asarray(Image.open(io.BytesIO(jpeg_data)), np.float64)
        blocks = full.reshape(5, 4, 5, 4, 3).mean((1, 3))
        # bilinear: a triangle over twice the block, on smooth pictures close to the mean
        assert np.abs(picture - blocks).mean() < 8


def test_grey_pictures_become_rgb(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 20), 77, np.uint8)).save(buffer, "jpeg")
    pictures = {name_of(0): buffer.getvalue(), name_of(1): jpeg(1)}
    data = load_utkface(lay_out(tmp_path, "folder", pictures), size=8, age="years")
    images = everything(data)[0]
    assert (images[0] == 77).all() and images.shape == (2, 8, 8, 3)


@pytest.mark.parametrize(("drop", "left"), [(True, 20), (False, 23)])
def test_duplicates(tmp_path, drop, left):
    copies = {f"99_0_0_{k}.jpg.chip.jpg": jpeg(k) for k in range(3)}
    folder = lay_out(tmp_path, "folder", PICTURES | copies)
    data = load_utkface(folder, size=8, drop_duplicates=drop)
    assert len(everything(data)[0]) == left
    assert f"{left} pictures" in data.source
    assert f"{23 - left} duplicates left out" in data.source


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("100_1_0_20170110183726390.jpg.chip.jpg", (100, 1, 0)),
        ("a/b/1_0_4_2017.jpg", (1, 0, 4)),
        ("9_1_4_20170103200637399.jpg.chip.png", None),
        *((name, None) for name in BADLY_NAMED),
    ],
)
def test_names(name, expected):
    assert face_files.parse_name(name) == expected


# -- targets and splits


def test_scales_of_the_age(tmp_path):
    folder = lay_out(tmp_path, "zip")
    years = everything(load_utkface(folder, size=8, age="years"))[1]
    hundredths = load_utkface(folder, size=8, age="hundredths")
    np.testing.assert_allclose(everything(hundredths)[1], years / 100, rtol=1e-6)
    data = load_utkface(folder, size=8)
    # by the training split alone
    assert data.train.targets.age.mean() == pytest.approx(0, abs=1e-6)
    assert data.train.targets.age.std() == pytest.approx(1, abs=1e-6)
    for scaled in (data, hundredths):
        back = scaled.age_mean + scaled.age_scale * everything(scaled)[1]
        np.testing.assert_allclose(back, years, rtol=1e-5)


def test_splits_by_fractions_and_seed(tmp_path):
    folder = lay_out(tmp_path, "zip")

    def ages(**options):
        data = load_utkface(folder, size=8, age="years", **options)
        return [
            s.targets.age.tolist() for s in (data.train, data.validation, data.test)
        ]

    first = ages()
    assert [len(part) for part in first] == [14, 2, 4]
    assert sorted(itertools.chain(*first)) == [1 + 5 * k for k in range(20)]
    assert ages() == first and ages(seed=1) != first
    assert first[0] != sorted(first[0])  # the files are sorted, the splits are not
    halves = ages(fractions=(0.5, 0, 0.5))
    assert [len(part) for part in halves] == [10, 0, 10]
    few = ages(max_images=5)
    assert sum(map(len, few)) == 5 and few == ages(max_images=5)
    assert sorted(itertools.chain(*ages(max_images=5, seed=1))) != sorted(
        itertools.chain(*few)
    )


# -- what is refused


def test_damaged_pictures_are_named(tmp_path):
    folder = lay_out(tmp_path, "folder", {**PICTURES, name_of(3): jpeg(3)[:400]})
    message = rf"{name_of(3)} in .* is not a complete picture .* or remove it"
    with pytest.raises(ValueError, match=message):
        load_utkface(folder, size=8)
    (folder / "utkface" / name_of(3)).write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match=message):
        load_utkface(folder, size=8)


def test_damaged_zip_files_are_refused(tmp_path):
    path = lay_out(tmp_path, "zip") / "utkface" / "faces.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"faces\.zip is not a complete zip file"):
        load_utkface(tmp_path)
    where = whole.index(PICTURES[name_of(2)]) + 30
    path.write_bytes(whole[:where] + b"\0\1\2\3" + whole[where + 4 :])
    with pytest.raises(
        ValueError, match=r"faces\.zip is damaged .*CRC.*: get it again"
    ):
        load_utkface(tmp_path)


def test_a_set_that_is_not_there_is_explained(tmp_path):
    (tmp_path / "61_1_20170109142408075.jpg.chip.jpg").write_bytes(jpeg(0))
    for where in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            FileNotFoundError, match=r"no picture of UTKFace .* zip file"
        ):
            load_utkface(where)


def test_missing_pillow_is_explained(tmp_path, monkeypatch):
    folder = lay_out(tmp_path, "zip")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match=r"Pillow, .* install pillow"):
        load_utkface(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"age": "months"}, "age must be one of"),
        ({"fractions": (0.5, 0.5)}, "fractions must be three shares"),
        ({"fractions": (0.5, 0.2, 0.1)}, "sum to 1"),
        ({"fractions": (1.2, -0.1, -0.1)}, "fractions must be three shares >= 0"),
        ({"fractions": (0.0, 0.5, 0.5)}, "of 600 pictures leave none to train on"),
        ({"max_images": 0}, "max_images must be at least 1 or None, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_utkface(**{"size": 8, **arguments})


# -- the real set


@pytest.fixture
def real(data_dir):
    if not (data_dir / "utkface").is_dir():
        pytest.skip(f"{data_dir} has no utkface")
    return data_dir


def test_some_real_pictures(real):
    data = load_utkface(real, max_images=40)
    assert "0 badly named ones skipped" in data.source
    images, *_ = everything(data)
    assert images.shape == (40, 64, 64, 3)
    assert 60 < images.mean() < 180 and images.std() > 40


@pytest.mark.slow
def test_the_real_sample_is_read_whole(real):
    data = load_utkface(real, age="years", drop_duplicates=False)
    images, age, gender, race = everything(data)
    assert images.shape == (3_900, 64, 64, 3)
    assert (age.min(), age.max()) == (1, 116)
    np.testing.assert_array_equal(np.bincount(gender), [2_091, 1_809])
    np.testing.assert_array_equal(np.bincount(race), [1_622, 725, 593, 671, 289])
