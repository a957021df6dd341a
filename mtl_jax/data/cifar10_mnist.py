"""Cifar10Mnist: a digit laid half transparently over a CIFAR-10 picture, two tasks."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax._types import Array
from mtl_jax.data.cifar10_files import ColourHalf, read_cifar10
from mtl_jax.data.digits import Digits, load_digits
from mtl_jax.data.picture_sets import MultiTaskData, Split
from mtl_jax.data.recipes import bicubic

CIFAR_MEAN = np.array([0.4914, 0.4822, 0.4465], np.float32).reshape(1, 1, 1, 3)
"""Of CIFAR-10's training pixels, shaped for :func:`standardize`."""
CIFAR_STD = np.array([0.2023, 0.1994, 0.2010], np.float32).reshape(1, 1, 1, 3)
"""As all published pipelines use them; means over pictures of their deviations."""


def load_cifar10_mnist(
    data_dir: str | Path,
    *,
    pairs: tuple[int, int, int] | None = None,
    seed: int = 42,
) -> MultiTaskData:
    """Pairs the i-th CIFAR-10 picture with the i-th MNIST digit, as published.

    Task 0 is the class of the picture, task 1 the digit. The training half of 50,000 is
    split at random into 40,000 and 10,000 for validation. In training the published
    pipeline turns the pictures, see :func:`random_rotation`, and standardises them by
    ``standardize(images, CIFAR_MEAN, CIFAR_STD)``.

    Differs from the released code in the random numbers of the split, and in that the
    validation images are not turned.

    Args:
        data_dir: folder of CIFAR-10, see :func:`mtl_jax.data.cifar10_files.read_cifar10`,
            and of MNIST, see :func:`mtl_jax.data.load_digits`.
        pairs: pictures in (train, validation, test), made of the first of each half;
            40,000, 10,000 and 10,000 by default.
        seed: of the split.

    Returns:
        Images uint8 (N, 32, 32, 3) and labels int32 (N, 2), for each split.

    Raises:
        FileNotFoundError: a base set is not in ``data_dir``.
        ValueError: damaged files, or more pictures than there are.

    References:
        Hotegni, Berkemeier and Peitz, 2023, arXiv:2308.12243
    """
    train, validation, test = pairs or (40_000, 10_000, 10_000)
    if min(train, validation, test) < 1:
        raise ValueError(f"pairs must be three numbers >= 1, got {pairs!r}")
    folder = Path(data_dir).expanduser()
    digits = load_digits("mnist", data_dir=folder)
    first, last, note = read_cifar10(folder, train + validation, test)
    order = np.random.default_rng(seed).permutation(train + validation)
    whole, held_out = _pair(first, digits.train), _pair(last, digits.test)
    kept, checked = np.sort(order[:train]), np.sort(order[train:])
    return MultiTaskData(
        Split(whole.images[kept], whole.labels[kept]),
        Split(whole.images[checked], whole.labels[checked]),
        held_out,
        source=f"Cifar10Mnist of {note}, and {digits.train.source}",
        task_names=("object", "digit"),
        num_classes=(10, 10),
    )


def _pair(colours: ColourHalf, digits: Digits) -> Split:
    count = len(colours.images)
    if count > len(digits.images):
        raise ValueError(
            f"there are {len(digits.images)} digits for {count} CIFAR-10 pictures; ask "
            "for fewer pairs"
        )
    images = overlay_digits(colours.images, digits.images[:count])
    return Split(images, np.stack([colours.labels, digits.labels[:count]], axis=1))


def overlay_digits(colours: np.ndarray, digits: np.ndarray) -> np.ndarray:
    """Lays digits over pictures: ``(128 d + 127 c) / 255`` where ``d > 0``, else ``c``.

    The digits are first enlarged to the pictures' size by Pillow's bicubic filter.

    Args:
        colours: ``c``, uint8 (N, 32, 32, 3).
        digits: uint8 (N, 28, 28).

    Returns:
        uint8 (N, 32, 32, 3).

    Examples:
        >>> import numpy as np
        >>> black, bright = np.zeros((1, 32, 32, 3), np.uint8), np.full((1, 28, 28), 255)
        >>> int(overlay_digits(black, bright)[0, 16, 16, 0])
        128
    """
    large = enlarge(digits, colours.shape[1])[..., None]
    mixed = (128 * large.astype(np.int32) + 127 * colours.astype(np.int32)) / 255
    return np.where(large > 0, np.rint(mixed), colours).astype(np.uint8)


def enlarge(digits: np.ndarray, size: int) -> np.ndarray:
    """Enlarges uint8 (N, S, S) to (N, size, size) as Pillow does: by rows, then columns."""
    centres = (np.arange(size) + 0.5) * digits.shape[1] / size
    pixels = np.arange(digits.shape[1]) + 0.5
    weights = bicubic(pixels[None, :] - centres[:, None])
    matrix = (weights / weights.sum(1, keepdims=True)).astype(np.float32)

    def to_bytes(values: np.ndarray) -> np.ndarray:
        return np.floor(values + 0.5).clip(0, 255)

    wide = to_bytes(digits.astype(np.float32) @ matrix.T)
    return to_bytes(matrix @ wide).astype(np.uint8)


def random_rotation(key: Array, images: Array, degrees: float = 20.0) -> Array:
    """Turns every image by its own angle in ``[-degrees, degrees]``; jittable.

    Args:
        key: random key.
        images: ``(N, H, W, C)``.
        degrees: greatest angle.

    Returns:
        ``(N, H, W, C)`` in the dtype of ``images``, see :func:`rotate`.
    """
    angles = jax.random.uniform(key, images.shape[:1], minval=-degrees, maxval=degrees)
    return rotate(images, angles)


def rotate(images: Array, degrees: Array) -> Array:
    """Turns images counter-clockwise about their centres: nearest pixel, zeros outside.

    Args:
        images: ``(N, H, W, C)``.
        degrees: ``(N,)``.

    Returns:
        ``(N, H, W, C)``; Pillow's ``Image.rotate`` up to rounding of coordinates.

    Examples:
        >>> import jax, numpy as np
        >>> image = np.array([[1, 2], [3, 4]]).reshape(1, 2, 2, 1)
        >>> print(np.asarray(jax.jit(rotate)(image, np.array([90.0])))[0, :, :, 0])
        [[2 4]
         [1 3]]
    """
    height, width = images.shape[1:3]
    angles = jnp.deg2rad(jnp.asarray(degrees, jnp.float32)).reshape(-1, 1, 1)
    x = (jnp.arange(width) + 0.5 - width / 2).reshape(1, 1, -1)
    y = (jnp.arange(height) + 0.5 - height / 2).reshape(1, -1, 1)
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    columns = jnp.floor(cosine * x - sine * y + width / 2).astype(jnp.int32)
    rows = jnp.floor(sine * x + cosine * y + height / 2).astype(jnp.int32)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    places = jnp.clip(rows, 0, height - 1) * width + jnp.clip(columns, 0, width - 1)
    flat = images.reshape(images.shape[0], height * width, -1)
    turned = jnp.take_along_axis(
        flat, places.reshape(images.shape[0], -1, 1), axis=1
    ).reshape(images.shape)
    return jnp.where(inside[..., None], turned, jnp.zeros_like(turned))
