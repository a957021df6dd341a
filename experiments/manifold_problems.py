"""Data, network and losses of each problem that the study ``manifold`` trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.explore_outputs import Examples
from experiments.manifold import ManifoldConfig
from mtl_jax import data, models

Array = jax.Array


class ManifoldProblem(NamedTuple):
    """Everything the study needs to know of a data set and its network."""

    task_names: tuple[str, ...]
    score_names: tuple[str, ...]
    """What the scores are, e.g. ``"left accuracy"``; larger is better, one is perfect."""
    model: models.FunctionalModel
    """Outputs by task; parameters under ``heads/`` belong to one task each."""
    prepare: Callable[[Any], Any]
    """Bytes to the model's inputs."""
    train: Examples
    """Targets are one array ``(N,)`` per task, in a tuple."""
    validation: Examples
    test: Examples
    source: str
    slow_loops: bool = False
    """Whether the backend runs this network in compiled loops many times slower than
    outside (XLA's convolutions on CPUs)."""

    @property
    def num_tasks(self) -> int:
        return len(self.task_names)

    def inputs(self, count: int = 1) -> Any:
        """The first training examples as the model sees them."""
        return self.prepare(self.train.inputs[:count])

    def num_parameters(self) -> int:
        """Parameters of one network."""
        params, _ = jax.eval_shape(self.model.init, jax.random.key(0), self.inputs())
        return sum(leaf.size for leaf in jax.tree.leaves(params))


def batch_losses(outputs: Any, targets: tuple[Array, ...]) -> Array:
    """Mean losses ``(T,)``: cross-entropy of classes, Huber's loss of numbers."""
    return models.mixed_losses(outputs, targets, huber=1.0)


def judge(outputs: Any, targets: tuple[Array, ...]) -> tuple[Array, Array]:
    """Losses and scores ``(T, B)`` of every example.

    The score of a class is one if it is right, so that the mean is the accuracy; that of
    a standardised number is one minus the squared residual, whose mean is the share of
    the training split's variance that is explained.
    """
    losses = models.mixed_losses(outputs, targets, huber=1.0, reduce=False)
    errors = models.mixed_errors(outputs, targets, reduce=False)
    numbers = [jnp.issubdtype(target.dtype, jnp.floating) for target in targets]
    squared = jnp.where(np.array(numbers)[:, None], jnp.square(errors), errors)
    return losses, 1 - squared


def load(config: ManifoldConfig) -> ManifoldProblem:
    """Loads a problem's data onto the device.

    Raises:
        FileNotFoundError: if the data are not in ``data_dir``.
        ValueError: if sizes do not fit.
    """
    makers = {
        "multi_mnist": multi_mnist,
        "multi_mnist3": multi_mnist3,
        "census": census,
        "utkface": utkface,
    }
    problem = makers[config.problem](config)
    if problem.train.count < config.batch_size:
        raise ValueError(
            f"batch_size must be at most the {problem.train.count} training examples, "
            f"got {config.batch_size}"
        )
    if not problem.test.count:
        raise ValueError("the test split is empty: pairs needs a third count > 0")
    return problem


def multi_mnist(config: ManifoldConfig) -> ManifoldProblem:
    """Two digits in a picture, LeNet with 27,450 parameters."""
    return _digits(
        data.load_multi_mnist(
            construction="manifold",
            data_dir=config.data_dir,
            pairs=config.pairs,
            seed=config.data_seed,
        )
    )


def multi_mnist3(config: ManifoldConfig) -> ManifoldProblem:
    """Three digits in a picture, LeNet with 30,510 parameters."""
    return _digits(
        data.load_multi_mnist_3(
            data_dir=config.data_dir, pairs=config.pairs, seed=config.data_seed
        )
    )


def _digits(loaded: data.MultiTaskData) -> ManifoldProblem:
    # The release has no dropout and no standardisation.
    network = models.LeNet(len(loaded.task_names), variant="mgda", dropout=False)
    return _classes(loaded, models.as_functional(network), pixels)


def census(config: ManifoldConfig) -> ManifoldProblem:
    """Questions about a person, a perceptron with one hidden layer of 256."""
    loaded = data.load_census(
        config.data_dir,
        tasks=config.tasks,
        preprocessing=config.preprocessing,
        validation=0.2,
        seed=config.data_seed,
        max_rows=None if config.pairs is None else sum(config.pairs),
    )
    network = models.CensusMLP(num_tasks=len(config.tasks), hidden=(256,))
    problem = _classes(loaded, models.as_functional(network), _as_they_are)
    if config.pairs is None:
        return problem
    train, validation, test = (
        jax.tree.map(lambda leaf, n=n: leaf[:n], split)
        for split, n in zip(
            (problem.train, problem.validation, problem.test), config.pairs, strict=True
        )
    )
    return problem._replace(train=train, validation=validation, test=test)


def utkface(config: ManifoldConfig) -> ManifoldProblem:
    """Age, gender and race of a face, ResNet-18 with BatchNorm, 11,185,224 parameters.

    Ages are standardised by the training split (the release: by the whole set).
    """
    pairs, options = config.pairs, {}
    if pairs is not None:
        shares = tuple(count / sum(pairs) for count in pairs)
        options = {"fractions": shares, "max_images": sum(pairs)}
    loaded = data.load_utkface(
        config.data_dir, size=config.image_size, seed=config.data_seed, **options
    )
    splits = [
        Examples(split.images, tuple(split.targets))
        for split in (loaded.train, loaded.validation, loaded.test)
    ]
    return ManifoldProblem(
        task_names=loaded.task_names,
        score_names=("age explained variance", "gender accuracy", "race accuracy"),
        model=models.as_functional(models.UTKFaceNet()),
        prepare=pixels,
        train=jax.device_put(splits[0]),
        validation=jax.device_put(splits[1]),
        test=jax.device_put(splits[2]),
        source=loaded.source,
        slow_loops=jax.default_backend() == "cpu",
    )


def pixels(images: Any) -> Any:
    """Bytes to numbers in [0, 1]."""
    return images.astype(np.float32) / 255


def _as_they_are(inputs: Any) -> Any:
    return inputs


def _classes(
    loaded: Any, model: models.FunctionalModel, prepare: Callable[[Any], Any]
) -> ManifoldProblem:
    """A classification set, labels ``(N, T)``, from whatever loader."""
    splits = [
        Examples(split[0], tuple(np.ascontiguousarray(split.labels.T)))
        for split in (loaded.train, loaded.validation, loaded.test)
    ]
    return ManifoldProblem(
        task_names=loaded.task_names,
        score_names=tuple(f"{name} accuracy" for name in loaded.task_names),
        model=model,
        prepare=prepare,
        train=jax.device_put(splits[0]),
        validation=jax.device_put(splits[1]),
        test=jax.device_put(splits[2]),
        source=loaded.source,
    )
