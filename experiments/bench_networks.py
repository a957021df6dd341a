"""The networks of the benchmarks, each with ``T`` heads, on random data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from mtl_jax import models
from mtl_jax.models.heads import Heads

Array = jax.Array


class BenchProblem(NamedTuple):
    """Everything a training step needs."""

    losses_fn: Callable[..., tuple[Array, Any]]
    """``losses_fn(params, model_state, inputs, labels) -> (losses (T,), model_state)``."""
    params: Any
    model_state: Any
    inputs: Array
    labels: Array


class MLP(nn.Module):
    """Dense layers with heads."""

    num_tasks: int
    width: int = 1024
    depth: int = 4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for _ in range(self.depth):
            x = nn.relu(nn.Dense(self.width)(x))
        return Heads(self.num_tasks, name="heads")(x)


def lenet(num_tasks: int, batch_size: int = 256) -> BenchProblem:
    """The LeNet of the papers: 21,330 shared parameters, 510 per head; 28x28 images."""
    images = jax.random.normal(jax.random.key(0), (batch_size, 28, 28, 1))
    return _problem(models.LeNet(num_tasks), images, num_tasks, 10)


def transformer(num_tasks: int, batch_size: int = 16) -> BenchProblem:
    """A transformer encoder with 5.0 million parameters; 64 tokens."""
    tokens = jax.random.randint(jax.random.key(0), (batch_size, 64), 0, 1000)
    return _problem(models.TransformerClassifier(num_tasks), tokens, num_tasks, 2)


def resnet18(num_tasks: int, batch_size: int = 32) -> BenchProblem:
    """ResNet-18 with BatchNorm, 11.2 million parameters, standard stem; 64x64 images."""
    images = jax.random.normal(jax.random.key(0), (batch_size, 64, 64, 3))
    network = models.ResNet18(num_tasks, stem="imagenet")
    return _problem(network, images, num_tasks, 2)


def mlp(num_tasks: int, batch_size: int = 64, width: int = 1024) -> BenchProblem:
    """Four dense layers of 1,024 units, 4.2 million parameters; 1,024 inputs."""
    inputs = jax.random.normal(jax.random.key(0), (batch_size, width))
    return _problem(MLP(num_tasks, width), inputs, num_tasks, 10)


def _problem(
    network: nn.Module, inputs: Array, num_tasks: int, num_classes: int
) -> BenchProblem:
    label_key, init_key = jax.random.split(jax.random.key(1))
    shape = (inputs.shape[0], num_tasks)
    labels = jax.random.randint(label_key, shape, 0, num_classes)
    model = models.as_functional(network)
    params, model_state = jax.jit(model.init)(init_key, inputs[:1])

    def losses_fn(
        params: Any, model_state: Any, inputs: Array, labels: Array
    ) -> tuple[Array, Any]:
        logits, model_state = model.apply(params, model_state, inputs, train=True)
        return models.cross_entropy(logits, labels), model_state

    return BenchProblem(losses_fn, params, model_state, inputs, labels)


NETWORKS: dict[str, Callable[..., BenchProblem]] = {
    "lenet": lenet,
    "mlp": mlp,
    "transformer": transformer,
    "resnet18": resnet18,
}
