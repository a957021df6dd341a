"""Cifar10Mnist: pixels, pairing, splits, files of both kinds, rotation."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mtl_jax.data import load_cifar10_mnist
from mtl_jax.data.cifar10_files import read_cifar10
from mtl_jax.data.cifar10_mnist import enlarge, overlay_digits, rotate
from tests.references.idx_files import write_set

RNG = np.random.default_rng(0)
COUNTS = {"train": 25, "test": 6}
COLOURS = {k: RNG.integers(0, 256, (n, 32, 32, 3), np.uint8) for k, n in COUNTS.items()}
CLASSES = {k: RNG.integers(0, 10, n).astype(np.uint8) for k, n in COUNTS.items()}
DIGITS = {
    k: (RNG.integers(0, 256, (n + 3, 28, 28), np.uint8), np.arange(n + 3) % 10)
    for k, n in COUNTS.items()
}


def write_binary(folder):
    folder.mkdir(parents=True)
    names = [f"data_batch_{k}.bin" for k in range(1, 6)]
    parts = [("train", slice(5 * k, 5 * k + 5), name) for k, name in enumerate(names)]
    for half, part, name in [*parts, ("test", slice(None), "test_batch.bin")]:
        planes = COLOURS[half][part].transpose(0, 3, 1, 2).reshape(-1, 3072)
        records = np.concatenate([CLASSES[half][part][:, None], planes], axis=1)
        (folder / name).write_bytes(records.tobytes())


@pytest.fixture
def folder(tmp_path):
    write_binary(tmp_path / "cifar10")
    write_set(tmp_path / "mnist", DIGITS["train"], DIGITS["test"])
    return tmp_path


def test_pixels():
    """Where the enlarged digit is not zero, 128 parts of it and 127 of the picture."""
    cases = [(255, 0, 128), (0, 77, 77), (255, 255, 255), (10, 200, 105)]
    for digit, colour, expected in cases:
        colours = np.full((1, 32, 32, 3), colour, np.uint8)
        out = overlay_digits(colours, np.full((1, 28, 28), digit, np.uint8))
        assert (out == expected).all()


def test_enlarging_equals_pillow():
    digits = DIGITS["train"][0][:10].copy()
    digits[:, :9] = 0
    bicubic = Image.Resampling.BICUBIC
    pictures = [Image.fromarray(digit).resize((32, 32), bicubic) for digit in digits]
    expected = np.stack([np.asarray(picture) for picture in pictures])
    out = enlarge(digits, 32)
    apart = np.abs(out.astype(int) - expected)
    assert apart.max() <= 1 and (apart != 0).mean() < 1e-3
    np.testing.assert_array_equal(out > 0, expected > 0)


def test_pairs_and_splits(folder):
    data = load_cifar10_mnist(folder, pairs=(15, 10, 6))
    assert data.train.images.shape == (15, 32, 32, 3)
    assert data.validation.labels.shape == (10, 2) and data.num_classes == (10, 10)
    both = np.concatenate([data.train.images, data.validation.images])
    labels = np.concatenate([data.train.labels, data.validation.labels])
    whole = overlay_digits(COLOURS["train"], DIGITS["train"][0][:25])
    known = {image.tobytes(): k for k, image in enumerate(whole)}
    found = [known[image.tobytes()] for image in both]
    assert sorted(found) == list(range(25))  # each picture in one split
    np.testing.assert_array_equal(labels[:, 0], CLASSES["train"][found])
    np.testing.assert_array_equal(labels[:, 1], DIGITS["train"][1][found])
    expected = overlay_digits(COLOURS["test"], DIGITS["test"][0][:6])
    np.testing.assert_array_equal(data.test.images, expected)
    again = load_cifar10_mnist(folder, pairs=(15, 10, 6))
    np.testing.assert_array_equal(again.train.images, data.train.images)
    other = load_cifar10_mnist(folder, pairs=(15, 10, 6), seed=1)
    assert (other.train.labels != data.train.labels).any()


def test_packed_jpegs(tmp_path):
    arrays = {}
    for half, images in COLOURS.items():
        files = []
        for image in images:
            smooth = Image.fromarray(image).resize((4, 4)).resize((32, 32))
            buffer = io.BytesIO()
            smooth.save(buffer, "jpeg", quality=95)
            files.append(buffer.getvalue())
        arrays[f"{half}_jpeg"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"{half}_offsets"] = np.cumsum([0, *map(len, files)])
        arrays[f"{half}_labels"] = CLASSES[half]
    np.savez(tmp_path / "cifar10_jpeg.npz", **arrays)
    train, test, note = read_cifar10(tmp_path, 7)
    assert len(train.images) == 7 and len(test.images) == 6 and "JPEG" in note
    np.testing.assert_array_equal(train.labels, CLASSES["train"][:7])
    smooth = Image.fromarray(COLOURS["train"][3]).resize((4, 4)).resize((32, 32))
    assert abs(train.images[3].astype(int) - np.asarray(smooth)).mean() < 6


def test_rotation_equals_pillow():
    images, angles = COLOURS["train"][:5], np.array([0.0, 13.7, -20.0, 5.25, 90.0])
    turned = jax.jit(rotate)(jnp.asarray(images), jnp.asarray(angles))
    for image, angle, out in zip(images, angles, np.asarray(turned), strict=True):
        expected = np.asarray(Image.fromarray(image).rotate(angle))
        assert (out == expected).all(
            axis=-1
        ).mean() > 0.995  # rounding at pixels' borders
    assert turned.dtype == jnp.uint8


def test_bad_input(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"such as data_batch_1\.bin"):
        read_cifar10(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="25 pictures, 30 were asked for"):
        load_cifar10_mnist(folder, pairs=(20, 10, 6))
    with pytest.raises(ValueError, match="three numbers >= 1"):
        load_cifar10_mnist(folder, pairs=(20, 0, 6))
    with (folder / "cifar10" / "test_batch.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="records of 3073 bytes"):
        read_cifar10(folder)


@pytest.mark.slow
def test_real_files(data_dir):
    data = load_cifar10_mnist(data_dir)
    sizes = [len(split.labels) for split in (data.train, data.validation, data.test)]
    assert sizes == [40_000, 10_000, 10_000]
    assert np.bincount(data.test.labels[:, 0]).tolist() == 10 * [1000]
