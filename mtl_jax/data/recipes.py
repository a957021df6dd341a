"""28x28 images on one canvas: the published MultiMNIST recipes, on arrays.

Those of two images draw on a 36x36 canvas and shrink it; they differ in placement, in what
happens where the images overlap, and in the resampling filter. Three images share a canvas
of 42x42.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

CANVAS = 36
CONSTRUCTIONS = ("mgda", "exploration", "exploration_14", "mdmtn", "manifold")
OUTPUT_SIZE = {name: 28 for name in CONSTRUCTIONS} | {"exploration_14": 14}
CANVAS_OF_THREE = 42
CORNERS_OF_THREE = ((0, 0), (14, 7), (0, 14))
"""Rows and columns of the corners of three images: top left, bottom centre, top right."""
_CHUNK = 4096  # bounds the temporary canvases to some tens of MB


def compose(
    construction: str, left: np.ndarray, right: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Pastes ``right`` below and to the right of ``left``, by a published recipe.

    ================== ============= ============= ======= =====================
    construction       left corner   right corner  overlap resampling
    ================== ============= ============= ======= =====================
    ``mgda``           0             6             max     nearest
    ``exploration``    random, 0..4  random, 4..8  sum     nearest
    ``exploration_14`` random, 0..3  random, 5..8  sum     nearest, to 14x14
    ``mdmtn``          0             6             max     bilinear, antialiased
    ``manifold``       0             6             max     bicubic, antialiased
    ================== ============= ============= ======= =====================

    Args:
        construction: ``"mgda"`` (Sener & Koltun 2018, arXiv 1810.04650),
            ``"exploration"`` (Ma et al. 2020, arXiv 2006.16434), ``"exploration_14"``
            (its small set with 14x14 images), ``"mdmtn"`` (Hotegni et al. 2023,
            arXiv 2308.12243) or ``"manifold"`` (Dimitriadis et al. 2023, arXiv
            2210.09759; there the resized pixels stay floats, here they are rounded).
        left: uint8 (N, 28, 28).
        right: uint8 (N, 28, 28).
        rng: draws the random corners (:func:`draw_shifts`).

    Returns:
        uint8 (N, S, S), S = 28 or 14.
    """
    shifts = draw_shifts(construction, len(left), rng)
    size = OUTPUT_SIZE[construction]
    images = np.empty((len(left), size, size), np.uint8)
    for start in range(0, len(left), _CHUNK):
        part = slice(start, start + _CHUNK)
        if shifts is None:
            canvas = paste_max(left[part], right[part])
        else:
            canvas = paste_sum(left[part], right[part], *(s[part] for s in shifts))
        if construction == "mdmtn":
            images[part] = shrink_bilinear(canvas, size)
        elif construction == "manifold":
            images[part] = shrink_smoothly(canvas, size, bicubic)
        else:
            images[part] = shrink_nearest(canvas, size)
    return images


def compose_three(images: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Pastes three images top left, bottom centre and top right, pixelwise maximum.

    The recipe of Pareto manifold learning's MultiMNIST-3 (arXiv 2210.09759): a canvas of
    42x42 pixels, shrunk to 28x28 by bilinear interpolation without anti-aliasing (that of
    tensors in the torchvision it names). There the pixels stay floats.

    Args:
        images: three arrays, uint8 (N, 28, 28).

    Returns:
        uint8 (N, 28, 28).
    """
    count = len(images[0])
    made = np.empty((count, 28, 28), np.uint8)
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        size = (len(images[0][part]), CANVAS_OF_THREE, CANVAS_OF_THREE)
        canvas = np.zeros(size, np.uint8)
        for each, (row, column) in zip(images, CORNERS_OF_THREE, strict=True):
            window = canvas[:, row : row + 28, column : column + 28]
            np.maximum(window, each[part], out=window)
        made[part] = shrink_smoothly(canvas, 28, triangle, antialias=False)
    return made


def draw_shifts(
    construction: str, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """Corners of both images, the same on both axes, or ``None`` where they are fixed.

    A fair coin picks one of two pairs of ranges, so that the corners never coincide:
    (0..3, 4..8) or (0..4, 5..8); in the 14x14 set (0..2, 5..8) or (0..3, 6..8).

    Returns:
        ``(left, right)``, int64 (N,) each.
    """
    if construction not in ("exploration", "exploration_14"):
        return None
    heads = rng.random(count) < 0.5
    if construction == "exploration":
        left = rng.integers(0, np.where(heads, 4, 5))
        right = 4 + rng.integers(np.where(heads, 0, 1), 5)
    else:
        left = rng.integers(0, np.where(heads, 3, 4))
        right = 8 - rng.integers(0, np.where(heads, 4, 3))
    return left, right


def paste_max(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Corners at (0, 0) and (6, 6), pixelwise maximum: uint8 (N, 36, 36)."""
    canvas = np.zeros((len(left), CANVAS, CANVAS), np.uint8)
    canvas[:, :28, :28] = left
    window = canvas[:, 6:34, 6:34]
    np.maximum(window, right, out=window)
    return canvas


def paste_sum(
    left: np.ndarray, right: np.ndarray, left_at: np.ndarray, right_at: np.ndarray
) -> np.ndarray:
    """Given corners, sum of the pixels clipped at 255: uint8 (N, 36, 36)."""
    canvas = np.zeros((len(left), CANVAS, CANVAS), np.uint16)
    for images, corners in ((left, left_at), (right, right_at)):
        for corner in np.unique(corners):
            rows = np.flatnonzero(corners == corner)
            span = slice(corner, corner + 28)
            canvas[rows, span, span] += images[rows]
    return np.minimum(canvas, 255).astype(np.uint8)


def shrink_nearest(canvas: np.ndarray, size: int) -> np.ndarray:
    """Picks the source pixel under each output pixel's centre, as Pillow's NEAREST."""
    source = ((np.arange(size) + 0.5) * CANVAS / size).astype(np.int64)
    return canvas[:, source[:, None], source]


def shrink_bilinear(canvas: np.ndarray, size: int) -> np.ndarray:
    """Gaussian anti-aliasing, bilinear sampling, truncation, as scikit-image's resize.

    Both filters are separable and linear, so each axis is one (size, 36) matrix. The
    Gaussian has sigma = (36/size - 1)/2 (0.1429 for 28) cut at 4 sigma; pixels beyond
    the border are mirrored.
    """
    matrix = _bilinear_matrix(size)
    return (matrix @ canvas.astype(np.float64) @ matrix.T).astype(np.uint8)


def _bilinear_matrix(size: int) -> np.ndarray:
    factor = CANVAS / size
    sigma = (factor - 1) / 2
    radius = int(4 * sigma + 0.5)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    pixels = np.arange(CANVAS)
    blur = np.zeros((CANVAS, CANVAS))
    for offset, tap in zip(range(-radius, radius + 1), taps, strict=True):
        np.add.at(blur, (pixels, _mirror(pixels + offset)), tap)
    position = (np.arange(size) + 0.5) * factor - 0.5
    low = np.floor(position).astype(np.int64)
    fraction = position - low
    rows = np.arange(size)
    sample = np.zeros((size, CANVAS))
    np.add.at(sample, (rows, _mirror(low)), 1 - fraction)
    np.add.at(sample, (rows, _mirror(low + 1)), fraction)
    return sample @ blur


def shrink_smoothly(
    canvas: np.ndarray,
    size: int,
    kernel: Callable[[np.ndarray], np.ndarray],
    antialias: bool = True,
) -> np.ndarray:
    """Shrinks by a separable kernel that is cut at the border.

    Args:
        canvas: uint8 (N, C, C).
        size: side of the result.
        kernel: :func:`bicubic` or :func:`triangle`.
        antialias: whether the kernel is as wide as the reduction, as in Pillow; else it
            interpolates between neighbours, as PyTorch does by default.

    Returns:
        uint8 (N, size, size), rounded and clipped.
    """
    factor = canvas.shape[1] / size
    centres = (np.arange(size) + 0.5) * factor
    pixels = np.arange(canvas.shape[1]) + 0.5
    width = factor if antialias else 1
    weights = kernel((pixels[None, :] - centres[:, None]) / width)
    matrix = weights / weights.sum(1, keepdims=True)
    smooth = matrix @ canvas.astype(np.float64) @ matrix.T
    return np.rint(smooth).clip(0, 255).astype(np.uint8)


def bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with slope -1/2, zero from 2 on."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def triangle(x: np.ndarray) -> np.ndarray:
    """Linear interpolation's kernel, zero from 1 on."""
    return np.maximum(1 - np.abs(x), 0)


def _mirror(index: np.ndarray) -> np.ndarray:
    index = np.abs(index)
    return np.where(index < CANVAS, index, 2 * (CANVAS - 1) - index)
