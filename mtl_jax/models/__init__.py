"""Reference networks and adapters; the only part of mtl_jax that imports flax."""

from mtl_jax.models.conv import conv_pool
from mtl_jax.models.functional import FunctionalModel, as_functional
from mtl_jax.models.lenet import Encoder, Heads, LeNet
from mtl_jax.models.losses import accuracy, cross_entropy

__all__ = [
    "Encoder",
    "FunctionalModel",
    "Heads",
    "LeNet",
    "accuracy",
    "as_functional",
    "conv_pool",
    "cross_entropy",
]
