"""Reference networks and adapters; the only part of mtl_jax that imports flax."""

from mtl_jax.models.conv import conv_pool
from mtl_jax.models.functional import FunctionalModel, as_functional
from mtl_jax.models.heads import Heads
from mtl_jax.models.lenet import Encoder, LeNet
from mtl_jax.models.losses import accuracy, cross_entropy
from mtl_jax.models.resnet import ResNet18, ResNet18Encoder
from mtl_jax.models.transformer import TransformerClassifier, TransformerEncoder

__all__ = [
    "Encoder",
    "FunctionalModel",
    "Heads",
    "LeNet",
    "ResNet18",
    "ResNet18Encoder",
    "TransformerClassifier",
    "TransformerEncoder",
    "accuracy",
    "as_functional",
    "conv_pool",
    "cross_entropy",
]
