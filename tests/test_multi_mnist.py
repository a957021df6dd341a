"""Two-digit pictures: the published recipes pixel by pixel, splits and pairs."""

import warnings

import jax
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from mtl_jax.data import (
    CONSTRUCTIONS,
    compose,
    load_digits,
    load_multi_mnist,
    recipes,
    standardize,
)
from tests.references.idx_files import write_set

SMALL = (300, 50, 60)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def digits():
    """A few real digits."""
    images = load_digits().train.images
    order = rng().permutation(len(images))
    return images[order[:40]], images[order[40:80]]


# -- recipes


def naive_canvas(left, right, left_at, right_at, mix):
    """One 36x36 canvas, pixel by pixel."""
    canvas = np.zeros((36, 36), np.uint8)
    for row in range(36):
        for column in range(36):
            values = []
            for image, at in ((left, left_at), (right, right_at)):
                r, c = row - at, column - at
                inside = 0 <= r < 28 and 0 <= c < 28
                values.append(int(image[r, c]) if inside else 0)
            canvas[row, column] = min(mix(values), 255)
    return canvas


def pillow_nearest(canvas, size):
    resampling = Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(canvas).resize((size, size), resampling))


def skimage_resize(canvas):
    """skimage.transform.resize(canvas, (28, 28), preserve_range=True), by SciPy.

    Its documentation: order 1, mode "reflect" (SciPy's "mirror"), and, when shrinking,
    a Gaussian of sigma (factor - 1)/2 before.
    """
    factor = 36 / 28
    blurred = scipy.ndimage.gaussian_filter(
        canvas.astype(np.float64), (factor - 1) / 2, mode="mirror"
    )
    return scipy.ndimage.zoom(
        blurred, 1 / factor, order=1, mode="mirror", grid_mode=True
    ).clip(canvas.min(), canvas.max())


def test_mgda_pictures_equal_the_naive_recipe(digits):
    pictures = compose("mgda", *digits, rng())
    for left, right, picture in zip(*digits, pictures, strict=True):
        canvas = naive_canvas(left, right, 0, 6, max)
        np.testing.assert_array_equal(picture, pillow_nearest(canvas, 28))


@pytest.mark.parametrize(
    ("name", "size"), [("exploration", 28), ("exploration_14", 14)]
)
def test_exploration_pictures_equal_the_naive_recipe(digits, name, size):
    pictures = compose(name, *digits, rng(3))
    corners = recipes.draw_shifts(name, len(pictures), rng(3))
    for *images, left_at, right_at, picture in zip(
        *digits, *corners, pictures, strict=True
    ):
        canvas = naive_canvas(*images, left_at, right_at, sum)
        np.testing.assert_array_equal(picture, pillow_nearest(canvas, size))


def test_overlapping_bright_pixels_are_clipped_not_wrapped():
    white = np.full((1, 28, 28), 255, np.uint8)
    assert compose("exploration", white, white, rng()).max() == 255
    canvas = recipes.paste_sum(white, white, np.array([2]), np.array([5]))
    assert (canvas[0, 5:30, 5:30] == 255).all()


def test_mdmtn_pictures_equal_the_naive_recipe(digits):
    pictures = compose("mdmtn", *digits, rng())
    for left, right, picture in zip(*digits, pictures, strict=True):
        exact = skimage_resize(naive_canvas(left, right, 0, 6, max))
        # Truncation may go either way where rounding errors reach a whole number.
        clear = np.abs(exact - exact.round()) > 1e-12
        clear |= exact == 0
        assert clear.mean() > 0.85
        np.testing.assert_array_equal(picture[clear], exact[clear].astype(np.uint8))
        assert np.abs(picture - exact).max() <= 1 + 1e-9


def test_bilinear_shrinking_mirrors_at_the_border():
    canvas = rng().integers(0, 256, (5, 36, 36)).astype(np.uint8)
    shrunk = recipes.shrink_bilinear(canvas, 28)
    for before, after in zip(canvas, shrunk, strict=True):
        np.testing.assert_allclose(after, np.floor(skimage_resize(before)), atol=1)
        assert (after == np.floor(skimage_resize(before))).mean() > 0.999


@pytest.mark.parametrize("size", [28, 14])
def test_nearest_shrinking_equals_pillow(size):
    canvas = rng().integers(0, 256, (5, 36, 36)).astype(np.uint8)
    shrunk = recipes.shrink_nearest(canvas, size)
    for before, after in zip(canvas, shrunk, strict=True):
        np.testing.assert_array_equal(after, pillow_nearest(before, size))


@pytest.mark.parametrize(
    ("name", "heads", "tails"),
    [
        ("exploration", (range(4), range(4, 9)), (range(5), range(5, 9))),
        ("exploration_14", (range(3), range(5, 9)), (range(4), range(6, 9))),
    ],
)
def test_shifts_fill_the_published_ranges_and_never_coincide(name, heads, tails):
    left, right = recipes.draw_shifts(name, 20_000, rng())
    seen = set(zip(left.tolist(), right.tolist(), strict=True))
    allowed = {
        (a, b) for lefts, rights in (heads, tails) for a in lefts for b in rights
    }
    assert seen == allowed
    assert (left < right).all()
    # a fair coin: the pair at the far end of the heads is drawn by heads alone
    only_heads = (left == heads[0][0]) & (right == heads[1][0])
    chance = 0.5 / (len(heads[0]) * len(heads[1]))
    assert only_heads.mean() == pytest.approx(chance, rel=0.2)


@pytest.mark.parametrize("name", ["mgda", "mdmtn"])
def test_other_recipes_draw_nothing(name):
    assert recipes.draw_shifts(name, 5, rng()) is None


def test_large_sets_are_made_in_chunks_that_do_not_show(digits, monkeypatch):
    whole = {name: compose(name, *digits, rng(1)) for name in CONSTRUCTIONS}
    monkeypatch.setattr(recipes, "_CHUNK", 7)
    for name in CONSTRUCTIONS:
        np.testing.assert_array_equal(compose(name, *digits, rng(1)), whole[name])


# -- pairs and splits


@pytest.fixture
def marked(tmp_path):
    """Base images of one grey level each, so that pictures tell what they hold.

    The left set has levels 1..120 (train 1..90), the right one 131..250 (131..220);
    the label of an image is its level modulo 10.
    """
    for name, first in (("mnist", 1), ("fashion_mnist", 131)):
        levels = first + np.arange(120)
        images = np.broadcast_to(levels[:, None, None], (120, 28, 28))
        halves = [(images[s], levels[s] % 10) for s in (slice(90), slice(90, None))]
        write_set(tmp_path / name, *halves)
    return tmp_path


def levels(split):
    """Grey levels of the left and the right image of every picture."""
    diagonal = split.images[:, np.arange(28), np.arange(28), 0]
    filled = diagonal > 0
    first, last = filled.argmax(axis=1), 27 - filled[:, ::-1].argmax(axis=1)
    rows = np.arange(len(diagonal))
    return diagonal[rows, first], diagonal[rows, last]


@pytest.mark.parametrize("construction", ["mgda", "exploration"])
@pytest.mark.parametrize("right", ["mnist", "fashion_mnist"])
def test_labels_follow_the_pasted_images_and_splits_share_none(
    marked, construction, right
):
    data = load_multi_mnist(
        construction=construction, right=right, data_dir=marked, pairs=SMALL
    )
    used = []
    for split, count in zip(data[:3], SMALL, strict=True):
        found = levels(split)
        assert split.images.shape == (count, 28, 28, 1)
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        np.testing.assert_array_equal(split.labels, np.stack(found, axis=1) % 10)
        used.append(set(np.concatenate(found).tolist()))
        if right == "fashion_mnist":
            assert found[0].max() <= 120 and found[1].min() >= 131
    assert not (used[0] & used[1] or used[0] & used[2] or used[1] & used[2])
    # every left image is used in training: 75 of 90, a sixth is set aside
    assert len(np.unique(levels(data.train)[0])) == 75


@pytest.mark.parametrize("construction", ["mgda", "exploration"])
def test_one_picture_per_image_by_default(marked, construction):
    data = load_multi_mnist(construction=construction, data_dir=marked)
    assert [len(split.labels) for split in data[:3]] == [75, 15, 30]
    left, right = levels(data.train)
    assert len(np.unique(left)) == 75
    # a permutation in one recipe, drawn with repetition in the other
    assert (len(np.unique(right)) == 75) == (construction == "exploration")
    assert "75 + 15 + 30 pictures" in data.source and "75 + 15 + 30 base" in data.source
    assert repr(construction) in data.source and "mnist from IDX" in data.source


def test_left_images_are_used_equally_often(marked):
    data = load_multi_mnist(data_dir=marked, pairs=(200, 0, 0))
    counts = np.unique(levels(data.train)[0], return_counts=True)[1]
    assert len(counts) == 75 and set(counts.tolist()) == {2, 3}


def test_validation_is_carved_class_by_class(marked):
    data = load_multi_mnist(construction="exploration", data_dir=marked, validation=30)
    for split, per_class in zip(data[:3], (6, 3, 3), strict=True):
        for task in range(2):
            counts = np.bincount(split.labels[:, task], minlength=10)
            np.testing.assert_array_equal(counts, [per_class] * 10)


def test_no_validation(marked):
    data = load_multi_mnist(data_dir=marked, validation=0)
    assert data.train.images.shape == (90, 28, 28, 1)
    assert data.validation.images.shape == (0, 28, 28, 1)
    assert data.validation.labels.shape == (0, 2)
    with pytest.raises(ValueError, match="5 pictures in the validation split, which"):
        load_multi_mnist(data_dir=marked, validation=0, pairs=(5, 5, 5))


def test_seed_alone_decides(marked):
    first = load_multi_mnist(data_dir=marked, pairs=SMALL, seed=1)
    rng().random(5)
    load_multi_mnist(data_dir=marked, pairs=SMALL, seed=2)
    again = load_multi_mnist(data_dir=marked, pairs=SMALL, seed=1)
    other = load_multi_mnist(data_dir=marked, pairs=SMALL, seed=2)
    for k in range(3):
        np.testing.assert_array_equal(first[k].images, again[k].images)
        np.testing.assert_array_equal(first[k].labels, again[k].labels)
        assert (first[k].images != other[k].images).any()


def test_size_of_one_split_leaves_the_others_alone(marked):
    small = load_multi_mnist(data_dir=marked, pairs=(10, 50, 60))
    large = load_multi_mnist(data_dir=marked, pairs=SMALL)
    np.testing.assert_array_equal(small.validation.images, large.validation.images)
    np.testing.assert_array_equal(small.test.images, large.test.images)


@pytest.mark.parametrize("construction", CONSTRUCTIONS)
def test_embedded_default(construction):
    data = load_multi_mnist(construction=construction)
    size = recipes.OUTPUT_SIZE[construction]
    counts = (20_000, 2_000, 3_000)
    for split, count in zip(data[:3], counts, strict=True):
        assert split.images.shape == (count, size, size, 1)
        assert split.labels.shape == (count, 2)
        # 3,500, 700 and 800 base images, balanced: each class a tenth, up to chance
        for task in range(2):
            share = np.bincount(split.labels[:, task], minlength=10) / count
            np.testing.assert_allclose(share, 0.1, atol=0.03)
    assert "3,500 + 700 + 800 base images" in data.source
    assert "embedded" in data.source
    assert data.num_classes == (10, 10) and len(data.task_names) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"construction": "pamal"}, "construction must be one of .*, got 'pamal'"),
        ({"left": "emnist"}, "name must be one of .*, got 'emnist'"),
        ({"pairs": (10, 10)}, r"pairs must be three counts .*, got \(10, 10\)"),
        ({"pairs": (10, -1, 10)}, r"pairs must be three counts .*-1"),
        ({"validation": 4200}, "expected 0 to 4199 of 4200, got 4200"),
        ({"validation": -1}, "expected 0 to 4199 of 4200, got -1"),
        ({"cache_dir": "somewhere"}, "cache_dir .* needs data_dir=.*drop cache_dir"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_multi_mnist(**arguments)


# -- standardisation


def test_standardize_is_the_same_inside_jit():
    images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    exact = (images / 255 - 0.1307) / 0.3081
    on_host, on_device = standardize(images), jax.jit(standardize)(images)
    assert on_host.dtype == on_device.dtype == np.float32
    np.testing.assert_allclose(on_host, exact, atol=1e-6)
    np.testing.assert_allclose(on_device, exact, atol=1e-6)
    np.testing.assert_allclose(
        standardize(images, 0.286, 0.353), (images / 255 - 0.286) / 0.353, atol=1e-6
    )


def test_standardize_keeps_float32_under_64_bit_mode(x64):
    assert jax.jit(standardize)(np.zeros(3, np.uint8)).dtype == np.float32


# -- prepared by tensorflow-datasets


@pytest.mark.parametrize("validation", [15, 0])
def test_prepared_set_equals_the_one_made_directly(marked, tmp_path, validation):
    pytest.importorskip("tensorflow_datasets")
    arguments = {"right": "fashion_mnist", "data_dir": marked, "validation": validation}
    expected = load_multi_mnist(**arguments)
    cache = tmp_path / "cache"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tensorflow-datasets
        for _ in range(2):
            data = load_multi_mnist(cache_dir=cache, **arguments)
            for k in range(3):
                assert data[k].images.dtype == np.uint8
                assert data[k].labels.dtype == np.int32
                np.testing.assert_array_equal(data[k].images, expected[k].images)
                np.testing.assert_array_equal(data[k].labels, expected[k].labels)
            assert data[3:] == expected[3:]
        # the second time it was read: the base sets may even be gone
        for path in (marked / "mnist").iterdir():
            path.unlink()
        data = load_multi_mnist(cache_dir=cache, **arguments)
        np.testing.assert_array_equal(data.test.images, expected.test.images)
        with pytest.raises(FileNotFoundError, match="mnist was not found in"):
            load_multi_mnist(cache_dir=cache, seed=5, **arguments)


def test_prepared_set_without_base_folder_is_explained(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; pass the"):
        load_multi_mnist(data_dir=tmp_path / "nowhere", cache_dir=tmp_path / "cache")


# -- the real sets


@pytest.mark.parametrize("construction", CONSTRUCTIONS)
def test_full_mnist_has_the_published_counts(data_dir, construction):
    data = load_multi_mnist(construction=construction, data_dir=data_dir)
    assert [len(split.labels) for split in data[:3]] == [50_000, 10_000, 10_000]
    counts = np.bincount(data.test.labels[:, 0])
    np.testing.assert_array_equal(
        counts, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    )
    assert "official training images" in data.source


def test_digit_and_garment(data_dir):
    data = load_multi_mnist(
        right="fashion_mnist", data_dir=data_dir, pairs=(2000, 100, 100)
    )
    # garments fill more of the picture than digits: compare what each corner shows
    picture = data.train.images[..., 0].astype(float)
    assert picture[:, 20:27, 20:27].mean() > picture[:, 1:8, 1:8].mean()
    assert "fashion_mnist" in data.source
