"""Data, network and losses of each problem that the study ``explore`` trains."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from experiments.explore import ExploreConfig
from experiments.explore_outputs import (
    CENSUS,
    FACES,
    LENET,
    Examples,
    census_examples,
    digit_examples,
    face_examples,
    picture_numbers,
)
from mtl_jax import data, models

Array = jax.Array
EMBEDDED_PAIRS = (12_800, 0, 3_000)
"""Pictures made from the embedded digits: so many that a CPU trains five networks."""
EVAL_BATCH = 500
PROBE = 10_000
"""Training examples on which losses are compared between points, always the same."""


class NetworkProblem(NamedTuple):
    """Everything the study needs to know of a data set and its network."""

    task_names: tuple[str, ...]
    error_names: tuple[str, ...]
    """What the errors are, e.g. ``"left error, %"``; smaller is better."""
    init: Callable[[Array], Any]
    """``init(key) -> params``."""
    examples: Callable[[Any, Examples], tuple[Array, Array]]
    """``examples(params, batch) -> (losses (m, B), errors (m, B))``, one per example."""
    train: Examples
    test: Examples
    source: str

    @property
    def num_tasks(self) -> int:
        return len(self.task_names)

    @property
    def train_size(self) -> int:
        return self.train.count

    def probe(self) -> Examples:
        """The first training examples, which lie in random order."""
        return jax.tree.map(lambda leaf: leaf[:PROBE], self.train)


def load(config: ExploreConfig) -> NetworkProblem:
    """Loads a problem's data onto the device.

    Raises:
        FileNotFoundError: if the data are not in ``data_dir``.
        ValueError: if sizes do not fit.
    """
    makers = {"multi_mnist": multi_mnist, "census": census, "utkface": utkface}
    problem = makers[config.problem](config)
    if problem.train_size < config.batch_size:
        raise ValueError(
            f"batch_size must be at most the {problem.train_size} training examples, "
            f"got {config.batch_size}"
        )
    if not problem.test.count:
        raise ValueError("the test split is empty: pairs needs a third count > 0")
    return problem


def losses_on(problem: NetworkProblem, examples: Examples) -> Callable[..., Array]:
    """``losses_fn(params, rows (B,)) -> (m,)``: mean losses of the examples ``rows``.

    Rows travel instead of examples, which stay where they are: bound as arrays, so that
    they are no constants of compiled programs.
    """
    return Partial(_row_losses(problem.examples), examples)


@functools.cache
def _row_losses(rule: Callable[..., Any]) -> Callable[..., Array]:
    def losses_fn(examples: Examples, params: Any, rows: Array) -> Array:
        batch = jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), examples)
        return rule(params, batch)[0].mean(-1)

    return losses_fn


def mean_losses(problem: NetworkProblem, examples: Examples) -> Callable[..., Array]:
    """``losses_fn(params) -> (m,)``: mean losses of all the examples, in batches."""
    return Partial(_whole_losses(problem.examples), examples)


@functools.cache
def _whole_losses(rule: Callable[..., Any]) -> Callable[..., Array]:
    return lambda examples, params: example_means(rule, params, examples)[0]


@functools.partial(jax.jit, static_argnums=0)
def example_means(rule: Callable[..., Any], params: Any, examples: Examples) -> Any:
    """Means of ``rule(params, batch) -> (parts (m, B), ...)`` over all examples, ``(m,)``.

    The rule is static: it must hold no arrays.
    """
    count = examples.count
    size = min(EVAL_BATCH, count)
    rows = jnp.arange(-(-count // size) * size).reshape(-1, size)

    def sums(rows: Array) -> Any:
        batch = jax.tree.map(
            lambda leaf: jnp.take(leaf, rows, axis=0, mode="clip"), examples
        )
        real = rows[None] < count  # the last batch is filled up
        return [jnp.where(real, part, 0).sum(-1) for part in rule(params, batch)]

    return [part.sum(0) / count for part in lax.map(sums, rows)]


def measure(
    problem: NetworkProblem, params: Any, examples: Examples
) -> tuple[np.ndarray, np.ndarray]:
    """Mean losses and errors of N networks, one after the other.

    Args:
        problem: whose network it is.
        params: stacked, leaves ``(N, *p)``.
        examples: on which.

    Returns:
        Losses and errors, each float64 ``(N, m)``.
    """
    count = len(jax.tree.leaves(params)[0])
    rows = [
        example_means(
            problem.examples, jax.tree.map(lambda leaf, k=k: leaf[k], params), examples
        )
        for k in range(count)
    ]
    losses, errors = zip(*jax.device_get(rows), strict=True)
    return np.array(losses, np.float64), np.array(errors, np.float64)


def multi_mnist(config: ExploreConfig) -> NetworkProblem:
    """Two digits in a picture, LeNet with 22,350 parameters."""
    pairs = config.pairs
    if pairs is None:
        pairs = EMBEDDED_PAIRS if config.data_dir is None else (60_000, 0, 10_000)
    loaded = data.load_multi_mnist(
        construction="exploration",
        data_dir=config.data_dir,
        pairs=pairs,
        validation=0,
        seed=config.data_seed,
    )
    train, test = (Examples(*split) for split in (loaded.train, loaded.test))
    return NetworkProblem(
        task_names=loaded.task_names,
        error_names=tuple(f"{name} error, %" for name in loaded.task_names),
        init=functools.partial(_init, LENET, data.standardize(train.inputs[:1])),
        examples=digit_examples,
        train=jax.device_put(train),
        test=jax.device_put(test),
        source=loaded.source,
    )


def census(config: ExploreConfig) -> NetworkProblem:
    """Three questions about a person, a perceptron with 158,598 parameters."""
    loaded = data.load_census(
        config.data_dir, preprocessing=config.preprocessing, seed=config.data_seed
    )
    train, test = (Examples(*split) for split in (loaded.train, loaded.test))
    order = np.random.default_rng(config.data_seed).permutation(train.count)
    train = Examples(*(leaf[order] for leaf in train))
    if config.pairs is not None:
        train, test = _first(train, config.pairs[0]), _first(test, config.pairs[2])
    return NetworkProblem(
        task_names=loaded.task_names,
        error_names=tuple(f"{name} error, %" for name in loaded.task_names),
        init=functools.partial(_init, CENSUS, train.inputs[:1]),
        examples=census_examples,
        train=jax.device_put(train),
        test=jax.device_put(test),
        source=loaded.source,
    )


def utkface(config: ExploreConfig) -> NetworkProblem:
    """Age, gender and race of a face, ResNet-18 with 11,180,616 parameters.

    GroupNorm in place of BatchNorm: there the losses depend on running statistics, which
    a step along a tangent does not move. The age's loss is the squared error of the
    standardised age, its error the absolute one in years.
    """
    pairs, options = config.pairs, {}
    if pairs is not None:
        shares = tuple(count / sum(pairs) for count in pairs)
        options = {"fractions": shares, "max_images": sum(pairs)}
    loaded = data.load_utkface(
        config.data_dir, size=config.image_size, seed=config.data_seed, **options
    )
    train, test = (Examples(*split) for split in (loaded.train, loaded.test))
    return NetworkProblem(
        task_names=loaded.task_names,
        error_names=("age error, years", "gender error, %", "race error, %"),
        init=functools.partial(_init, FACES, picture_numbers(train.inputs[:1])),
        examples=functools.partial(face_examples, loaded.age_scale),
        train=jax.device_put(train),
        test=jax.device_put(test),
        source=loaded.source,
    )


def _init(model: models.FunctionalModel, inputs: Any, key: Array) -> Any:
    return jax.jit(model.init)(key, inputs)[0]


def _first(examples: Examples, count: int) -> Examples:
    return jax.tree.map(lambda leaf: leaf[:count], examples)
