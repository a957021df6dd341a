"""Data and networks of the study ``sparse``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from experiments.explore_outputs import Examples
from experiments.sparse import SparseConfig
from mtl_jax import data, models

Array = jax.Array
LSUV_BATCH = 256


class SparseProblem(NamedTuple):
    """Everything the study needs to know of a data set."""

    name: str
    images: str
    """Which networks of :mod:`mtl_jax.models` take its pictures."""
    task_names: tuple[str, ...]
    prepare: Callable[[Any, Array | None], Any]
    """``prepare(bytes, key)``: the network's inputs; with a key, turned at random where
    the published pipeline does."""
    train: Examples
    """Targets are one array ``(N,)`` per task, in a tuple."""
    validation: Examples
    test: Examples
    source: str

    @property
    def num_tasks(self) -> int:
        return len(self.task_names)

    def of_task(self, task: int) -> SparseProblem:
        """The same pictures with one task."""

        def only(split: Examples) -> Examples:
            return Examples(split.inputs, (split.targets[task],))

        return self._replace(
            task_names=self.task_names[task : task + 1],
            train=only(self.train),
            validation=only(self.validation),
            test=only(self.test),
        )


class Network(NamedTuple):
    """A module, as functions, and which of its parameters belong to one task."""

    name: str
    module: nn.Module
    model: models.FunctionalModel
    task_specific: Callable[[str], bool]


def load(config: SparseConfig) -> SparseProblem:
    """Loads a problem's data onto the device.

    Raises:
        FileNotFoundError: if the data are not in ``data_dir``.
        ValueError: if sizes do not fit.
    """
    if config.problem == "cifar10_mnist":
        if config.data_dir is None:
            raise ValueError(
                "cifar10_mnist needs --data-dir, the folder of CIFAR-10 and MNIST"
            )
        loaded = data.load_cifar10_mnist(config.data_dir, pairs=config.pairs)
        images, prepare = "cifar10_mnist", _colours
    else:
        if config.problem == "multi_mnist" and config.data_dir is None:
            raise ValueError(
                "multi_mnist needs --data-dir, the folder of MNIST; without it there is "
                "--config sparse_digits"
            )
        loaded = data.load_multi_mnist(
            construction="mdmtn",
            data_dir=config.data_dir if config.problem == "multi_mnist" else None,
            pairs=config.pairs,
            seed=config.data_seed,
        )
        images, prepare = "multi_mnist", _digits
    train, validation, test = (
        jax.device_put(
            Examples(split.images, tuple(np.ascontiguousarray(split.labels.T)))
        )
        for split in (loaded.train, loaded.validation, loaded.test)
    )
    if train.count < config.batch_size:
        raise ValueError(
            f"batch_size must be at most the {train.count} training pictures, got "
            f"{config.batch_size}"
        )
    if not validation.count or not test.count:
        raise ValueError(
            "pairs needs three counts > 0: models are chosen by validation"
        )
    return SparseProblem(
        config.problem,
        images,
        loaded.task_names,
        prepare,
        train,
        validation,
        test,
        loaded.source,
    )


def network(name: str, problem: SparseProblem) -> Network:
    """The network of that name for a problem's pictures.

    Args:
        name: ``"hps"``, ``"mdmtn"``, ``"kdmtl"`` or ``"mtan"``; with one task ``"hps"``
            is a single-task network.
        problem: data.
    """
    makers: dict[str, Any] = {
        "hps": models.HardSharing,
        "mdmtn": models.MDMTN,
        "kdmtl": models.KDMTL,
        "mtan": models.MTAN,
    }
    module = makers[name](problem.num_tasks, images=problem.images)
    return Network(name, module, models.as_functional(module), _not_shared)


def start(
    net: Network, problem: SparseProblem, seed: int, *, lsuv: bool
) -> tuple[Any, Any]:
    """First parameters and model state.

    Args:
        net: network.
        problem: data.
        seed: of both initialisations.
        lsuv: layer-sequential unit variance, a fresh batch for each layer; else the
            layers' default.
    """

    def batch(number: int) -> Any:
        rng = np.random.default_rng([seed, number])
        size = min(LSUV_BATCH, problem.train.count)
        rows = rng.choice(problem.train.count, size, replace=False)
        return problem.prepare(problem.train.inputs[rows], None)

    first = problem.prepare(problem.train.inputs[:1], None)
    params, model_state = jax.jit(net.model.init)(jax.random.key(seed), first)
    if lsuv:
        params = models.lsuv(net.module, params, model_state, batch, seed=seed)
    return params, model_state


def is_kernel(path: str) -> bool:
    """Layers that the published tables count: all kernels, heads included."""
    return path.rsplit("/", 1)[-1] == "kernel"


def _not_shared(path: str) -> bool:
    return not path.startswith("encoder/")


def _digits(images: Any, key: Array | None) -> Any:
    del key
    return data.standardize(images)


def _colours(images: Any, key: Array | None) -> Any:
    if key is not None:
        images = data.random_rotation(key, images)
    mean: Any = data.CIFAR_MEAN
    std: Any = data.CIFAR_STD
    return data.standardize(images, mean, std)
