"""MultiMNIST on the device, its network and its optimiser."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import mtl_jax
from experiments.config import Protocol
from mtl_jax import data, models, registry, train
from mtl_jax.data import Split
from mtl_jax.sharding import batch_sharding, make_mesh

SINGLE = "single-task"
"""Stands where a method's name stands: one network per task."""


def is_head(path: str) -> bool:
    """Whether a parameter belongs to one task only."""
    return path.startswith("heads/")


def _init(params: Any, model_state: Any, key: Any, **options: Any) -> train.TrainState:
    return train.init_state(params, model_state, key=key, **options)


def make_training(
    call: str,
    num_tasks: int,
    losses_fn: train.TrainLossesFn,
    optimizer: optax.GradientTransformation,
) -> tuple[train.Step, Callable[..., train.TrainState]]:
    """The training step of a method, and ``init(params, model_state, key) -> state``.

    Args:
        call: call string; with an option of ``registry.SOURCE_OPTIONS`` the task
            gradients need not be stored, see ``mtl_jax.value_and_combined_grad``.
        num_tasks: number of losses.
        losses_fn: of the network.
        optimizer: chained after the method.

    Raises:
        ValueError: for an unknown method or option.
    """
    source = registry.build_source(
        call, num_tasks, losses_fn, has_aux=True, heads=is_head
    )
    if source is not None:
        step = train.make_combined_step(source, optimizer)
        return step, functools.partial(_init, tx=optimizer, source=source)
    spec, _ = registry.parse(call)
    if spec.weighting is None:
        method = mtl_jax.build(call, num_tasks)
    else:
        weighting = mtl_jax.build_weighting(call, num_tasks)
        method = mtl_jax.aggregate(weighting, heads=is_head)
    tx = optax.chain(method, optimizer)
    step = train.make_train_step(
        losses_fn, tx, heads=is_head, stack_heads=spec.weighting is None
    )
    return step, functools.partial(_init, tx=tx)


class Problem:
    """The data on the device (once for all runs) and what training needs to know of it.

    Args:
        protocol: settings.
        mesh: devices; all by default. Batches are split over its axis ``data``.

    Raises:
        FileNotFoundError: if ``data_dir`` lacks a base set.
        ValueError: if sizes do not fit.
    """

    def __init__(self, protocol: Protocol, mesh: Mesh | None = None) -> None:
        self.protocol = protocol
        self.mesh = make_mesh() if mesh is None else mesh
        loaded = data.load_multi_mnist(
            construction=protocol.construction,
            left=protocol.left,
            right=protocol.right,
            data_dir=protocol.data_dir,
            pairs=protocol.pairs,
            seed=protocol.data_seed,
        )
        self.source: str = loaded.source
        self.task_names = loaded.task_names
        self._num_classes = loaded.num_classes[0]
        self.train_size = len(loaded.train.labels)
        self._models: dict[int, models.FunctionalModel] = {}
        self.steps_per_epoch = self.train_size // protocol.batch_size
        self._check(loaded)
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.batch_sharding = batch_sharding(self.mesh)
        self.validation_size = len(loaded.validation.labels)
        held_out = map(np.concatenate, zip(loaded.validation, loaded.test, strict=True))
        self._splits = {
            "train": jax.device_put(loaded.train, self.replicated),
            "held_out": jax.device_put(Split(*held_out), self.replicated),
        }

    @property
    def num_tasks(self) -> int:
        return len(self.task_names)

    @property
    def chunk_steps(self) -> int:
        """Steps of one compiled scan: a divisor of the epoch's, so one shape serves all.

        On a CPU about 32, so that the progress bar moves and ctrl-C is heard; elsewhere
        the whole epoch. A step of `ls` in a scan takes 16 ms, called from a Python loop
        18 ms (batch 128; 39 and 46 ms at 256; minima of 6, two shared x86-64 cores), so
        scans are right on CPUs too, as long as the convolution is in block form.
        """
        steps = self.steps_per_epoch
        if jax.default_backend() != "cpu":
            return steps
        divisors = [n for n in range(1, steps + 1) if steps % n == 0]
        fitting = [n for n in divisors if 8 <= n <= 64] or [steps]
        return min(fitting, key=lambda n: abs(n - 32))

    @property
    def total_steps(self) -> int:
        """Steps of one run."""
        return self.protocol.epochs * self.steps_per_epoch

    def split(self, name: str, task: int | None = None) -> Split:
        """``"train"``, or validation and test together as ``"held_out"``, on the device.

        With the labels of one task or of all.
        """
        images, labels = self._splits[name]
        return Split(images, labels if task is None else labels[:, task : task + 1])

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Examples of each batch, int32 (steps per epoch, batch); the rest is left out."""
        shape = (self.steps_per_epoch, self.protocol.batch_size)
        order = np.random.default_rng([seed, epoch]).permutation(self.train_size)
        return order[: shape[0] * shape[1]].reshape(shape).astype(np.int32)

    def model(self, num_tasks: int) -> models.FunctionalModel:
        """The network with ``num_tasks`` heads, always the same object."""
        if num_tasks not in self._models:
            variant, classes = self.protocol.model, self._num_classes
            network = models.LeNet(num_tasks, variant=variant, num_classes=classes)
            self._models[num_tasks] = models.as_functional(network)
        return self._models[num_tasks]

    def training(
        self, call: str, num_tasks: int, losses_fn: train.TrainLossesFn
    ) -> tuple[train.Step, Callable[..., train.TrainState]]:
        """See :func:`make_training`."""
        return make_training(call, num_tasks, losses_fn, self.optimizer())

    def optimizer(self) -> optax.GradientTransformation:
        """The optimiser with its learning-rate schedule."""
        protocol = self.protocol
        rate: Any = protocol.learning_rate
        if protocol.decay != 1:
            rate = optax.exponential_decay(
                rate,
                transition_steps=protocol.decay_epochs * self.steps_per_epoch,
                decay_rate=protocol.decay,
                staircase=True,
            )
        if protocol.optimizer == "sgd":
            return optax.sgd(rate, momentum=protocol.momentum)
        return optax.adam(rate, b1=protocol.momentum)

    def _check(self, loaded: data.MultiTaskData) -> None:
        batch, devices = self.protocol.batch_size, self.mesh.shape["data"]
        if batch % devices:
            raise ValueError(
                f"batch_size must be a multiple of the {devices} devices, got {batch}"
            )
        if not self.steps_per_epoch:
            raise ValueError(
                f"batch_size must be at most the {self.train_size} training pictures, "
                f"got {batch}"
            )
        for name in ("validation", "test"):
            if not len(getattr(loaded, name).labels):
                raise ValueError(
                    f"the {name} split is empty: pairs needs three counts >0"
                )
