"""Points of the simplex: checks, the even grid, and random samplers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from mtl_jax._types import Array, check_choice, check_count, check_range

Draw = Callable[[Array, Any], Array]
"""``draw(key, dtype) -> alphas (W, M)``."""
SAMPLERS = ("dirichlet", "stratified", "grid")
_TOLERANCE = 1e-3  # of an alpha's sum: enough for float16's rounding
_LARGEST_GRID = 1_000_000


def check_alphas(
    name: str, alphas: Any, num_members: int, ndim: int
) -> Array | np.ndarray:
    """Returns ``alphas (..., M)`` as an array of ``ndim`` axes.

    Raises:
        ValueError: for another shape; and, where the values are known (not inside
            ``jit``), for negative or non-finite entries or sums other than one.
    """
    array = alphas if isinstance(alphas, jax.Array) else np.asarray(alphas)
    wanted = ("(M,)", "(N, M)")[ndim - 1]
    if array.ndim != ndim or array.shape[-1] != num_members or array.size == 0:
        raise ValueError(
            f"{name} must have shape {wanted} with M = {num_members}, one entry per "
            f"member, got shape {array.shape}"
        )
    if isinstance(array, Tracer):
        return array
    values = np.asarray(array, np.float64)
    sums = values.sum(axis=-1)
    if not (values >= -_TOLERANCE).all() or not (abs(sums - 1) <= _TOLERANCE).all():
        raise ValueError(
            f"{name} must lie on the simplex (entries >= 0 with sum 1 along the last "
            f"axis), got entries down to {values.min():.4g} and sums between "
            f"{sums.min():.4g} and {sums.max():.4g}; divide by the sum"
        )
    return array


def simplex_grid(num_members: int, num_points: int = 11) -> np.ndarray:
    """Returns all points of the simplex whose entries are multiples of one step.

    11 points along an edge make 11 points for two members and 66 for three. They come in
    falling order of the first entry, then of the second, and so on: with two members from
    the first to the second.

    Args:
        num_members: ``M >= 1``.
        num_points: points along an edge, ends included, >= 2.

    Returns:
        float64 ``(N, M)``, ``N = comb(num_points + M - 2, M - 1)``.

    Raises:
        ValueError: for other numbers, or a grid of over a million points.

    Examples:
        >>> print(simplex_grid(2, 3))
        [[1.  0. ]
         [0.5 0.5]
         [0.  1. ]]
        >>> simplex_grid(3).shape
        (66, 3)
    """
    check_count("num_members", num_members, 1)
    check_count("num_points", num_points, 2)
    size = math.comb(num_points + num_members - 2, num_members - 1)
    if size > _LARGEST_GRID:
        raise ValueError(
            f"{num_points} points along an edge of a simplex with {num_members} vertices "
            f"make a grid of {size} points, more than {_LARGEST_GRID}; take fewer"
        )
    steps = num_points - 1
    # Where the bars stand among the stars: each gap is one entry of the point.
    bars = itertools.combinations(range(steps + num_members - 1), num_members - 1)
    flat = np.fromiter(itertools.chain.from_iterable(bars), int)
    places = flat.reshape(size, num_members - 1)
    ends = np.full((size, 1), steps + num_members - 1)
    gaps = np.diff(np.concatenate([np.full((size, 1), -1), places, ends], axis=1)) - 1
    return gaps[::-1] / steps


def make_sampler(
    sampler: Any,
    num_members: int,
    samples: int,
    concentration: float | Sequence[float],
) -> Draw:
    """Returns the function that draws ``W`` points; arguments as in ``pareto_manifold``."""
    check_count("samples", samples, 1)
    numbers = _concentration(concentration, num_members)
    if callable(sampler):
        return _checked(sampler, (samples, num_members))
    if not isinstance(sampler, str):
        return _from_points(sampler, num_members, samples)
    check_choice("sampler", sampler, SAMPLERS)
    if sampler == "grid":
        return _from_points(simplex_grid(num_members), num_members, samples)
    draw = _dirichlet if sampler == "dirichlet" else _stratified

    def sample(key: Array, dtype: Any) -> Array:
        return draw(key, dtype, samples, numbers)

    return sample


def _dirichlet(key: Array, dtype: Any, samples: int, numbers: np.ndarray) -> Array:
    return jax.random.dirichlet(key, jnp.asarray(numbers, dtype), (samples,), dtype)


def _stratified(key: Array, dtype: Any, samples: int, numbers: np.ndarray) -> Array:
    """Dirichlet by sticks: each broken at a quantile that is spread over W strata.

    A row alone is Dirichlet distributed; the W first entries fall into W different bins
    of equal probability, and so do the later sticks' shares.
    """
    sticks = len(numbers) - 1
    bin_key, place_key = jax.random.split(key)
    bins = jnp.broadcast_to(jnp.arange(samples)[:, None], (samples, sticks))
    bins = jax.random.permutation(bin_key, bins, axis=0, independent=True)
    places = jax.random.uniform(place_key, (samples, sticks), dtype)
    levels = (bins.astype(dtype) + places) / samples
    rest, alphas = jnp.ones(samples, dtype), []
    for index in range(sticks):
        first, others = numbers[index], numbers[index + 1 :].sum()
        share = _beta_quantile(levels[:, index], float(first), float(others))
        alphas.append(rest * share)
        rest = rest * (1 - share)
    return jnp.stack([*alphas, rest], axis=1)


def _beta_quantile(level: Array, a: float, b: float) -> Array:
    """Inverse of the distribution function of Beta(a, b)."""
    if a == 1:
        return -jnp.expm1(jnp.log1p(-level) / b)
    if b == 1:
        return level ** (1 / a)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        below = jax.scipy.special.betainc(a, b, middle) < level
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    ends = jnp.zeros_like(level), jnp.ones_like(level)
    low, high = lax.fori_loop(0, 30, halve, ends)
    return 0.5 * (low + high)


def _from_points(points: Any, num_members: int, samples: int) -> Draw:
    """W of the given points, drawn without replacement; all in their order if W is N."""
    grid = np.asarray(check_alphas("sampler", points, num_members, 2), np.float64)
    if samples > len(grid):
        raise ValueError(
            f"samples={samples} is more than the {len(grid)} points of the sampler's "
            "grid; take fewer samples or a finer grid"
        )

    def sample(key: Array, dtype: Any) -> Array:
        alphas = jnp.asarray(grid, dtype)
        if samples == len(grid):
            return alphas
        return alphas[jax.random.permutation(key, len(grid))[:samples]]

    return sample


def _checked(sampler: Callable[..., Any], shape: tuple[int, int]) -> Draw:
    def sample(key: Array, dtype: Any) -> Array:
        alphas = jnp.asarray(sampler(key))
        if alphas.shape != shape:
            raise ValueError(
                f"the sampler must return points of shape (W, M) = {shape}, got "
                f"{alphas.shape}"
            )
        return alphas.astype(dtype)

    return sample


def _concentration(concentration: Any, num_members: int) -> np.ndarray:
    numbers = np.asarray(concentration, np.float64)
    if numbers.ndim == 0:
        check_range("concentration", float(numbers), 0, math.inf, open_low=True)
        numbers = np.full(num_members, numbers)
    good = numbers.shape == (num_members,) and (numbers > 0).all()
    if not good or not np.isfinite(numbers).all():
        raise ValueError(
            f"concentration must be a finite number > 0, or {num_members} of them, one "
            f"per member, got {concentration!r}"
        )
    return numbers
