"""CelebA: the list of attributes, splits, the sample in a zip file, damaged files."""

import io
import zipfile

import numpy as np
import pytest

from mtl_jax.data import load_celeba
from mtl_jax.data.celeba_files import parse_attributes

NAMES = [f"Attribute_{k}" for k in range(40)]


def attributes(rows):
    lines = [str(len(rows)), " ".join(NAMES)]
    lines += [f"{n:06}.jpg  {' '.join(map(str, v))}" for n, v in rows]
    return "\n".join(lines) + "\n"


def answers(seed):
    return np.random.default_rng(seed).choice([-1, 1], 40).tolist()


def write_zip(folder, rows):
    from PIL import Image

    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "some.zip", "w") as archive:
        archive.writestr("list_attr_celeba.txt", attributes(rows))
        for number, _ in rows:
            file = io.BytesIO()
            Image.new("RGB", (178, 218), (number % 256, 0, 0)).save(file, "JPEG")
            archive.writestr(f"img_align_celeba/{number:06}.jpg", file.getvalue())
    return folder


def test_default_is_synthetic_and_says_so():
    data = load_celeba(size=16, max_images=60)
    assert (
        data.source.startswith("60 SYNTHETIC pictures") and len(data.task_names) == 40
    )
    assert data.train.images.shape == (48, 16, 16, 3)
    assert data.train.images.dtype == np.uint8 and data.test.labels.shape == (6, 40)
    flat = data.train.images.reshape(48, -1).astype(float)
    # More pixels than answers: least squares finds every answer in the picture.
    rule, *_ = np.linalg.lstsq(np.c_[data.train.labels, np.ones(48)], flat)
    left = flat - np.c_[data.train.labels, np.ones(48)] @ rule
    assert left.std() < 0.7 * flat.std()


def test_official_and_seeded_splits(tmp_path):
    numbers = (1, 162_770, 162_771, 182_637, 182_638)
    folder = write_zip(tmp_path / "celeba", [(n, answers(n)) for n in numbers])
    data = load_celeba(tmp_path, size=8)
    assert data.source == "5 pictures of CelebA from some.zip; 8x8, the official split."
    assert [len(split.labels) for split in data[:3]] == [2, 2, 1]
    np.testing.assert_array_equal(2 * data.test.labels[0] - 1, answers(182_638))
    np.testing.assert_allclose(data.train.images[0].mean((0, 1)), [1, 0, 0], atol=3)
    first = load_celeba(folder, size=8, max_images=2, add_synthetic=8)
    assert "2 pictures of CelebA" in first.source and "8 SYNTHETIC" in first.source
    assert [len(split.labels) for split in first[:3]] == [8, 1, 1]
    assert first.task_names == tuple(NAMES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\na b c\n", "line 2 of .* has 3 names, expected 40"),
        (attributes([(1, [1] * 39)]), "line 3 of .* has not a picture's number and 40"),
        (attributes([(1, [1] * 39 + [0])]), "line 3 of .* 40 values 1 or -1"),
    ],
)
def test_damaged_lists_are_explained(text, message):
    with pytest.raises(ValueError, match=message):
        parse_attributes(text, "here")


def test_missing_files_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"CelebA was not found in .*celeba or"):
        load_celeba(tmp_path)
    (tmp_path / "list_attr_celeba.txt").write_text(attributes([(1, answers(0))]))
    with pytest.raises(ValueError, match=r"the picture 000001\.jpg of .* is missing"):
        load_celeba(tmp_path)
    with pytest.raises(FileNotFoundError, match="celeb_a is not prepared"):
        load_celeba(tmp_path, source="tfds")
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        load_celeba(size=0)


@pytest.mark.slow
def test_the_real_sample(data_dir):
    if not (data_dir / "celeba").is_dir():
        pytest.skip(f"{data_dir} has no celeba")
    data = load_celeba(data_dir, size=32)
    assert "32 pictures of CelebA" in data.source and data.task_names[31] == "Smiling"
    assert 60 < data.train.images.mean() < 180
