"""Reference networks and adapters; the only part of mtl_jax that imports flax."""

from mtl_jax.models.census_mlp import CensusMLP, DenseEncoder
from mtl_jax.models.conv import conv_pool
from mtl_jax.models.functional import FunctionalModel, as_functional
from mtl_jax.models.hard_sharing import HardSharing, Trunk
from mtl_jax.models.heads import Heads
from mtl_jax.models.kdmtl import KDMTL, distillation_losses
from mtl_jax.models.lenet import Encoder, LeNet
from mtl_jax.models.losses import accuracy, cross_entropy, mixed_errors, mixed_losses
from mtl_jax.models.lsuv import lsuv
from mtl_jax.models.mdmtn import MDMTN
from mtl_jax.models.mini_lenet import MiniEncoder, MiniLeNet
from mtl_jax.models.mpnn import MPNN, GraphBatch, pair_features
from mtl_jax.models.mtan import MTAN
from mtl_jax.models.ray import RayChannels
from mtl_jax.models.resnet import ResNet18, ResNet18Encoder
from mtl_jax.models.rotograd import Rotations, cayley, rotation_loss
from mtl_jax.models.row_layers import ConvBlock, RowDense
from mtl_jax.models.transformer import TransformerClassifier, TransformerEncoder
from mtl_jax.models.utkface import NamedHeads, UTKFaceNet

__all__ = [
    "KDMTL",
    "MDMTN",
    "MPNN",
    "MTAN",
    "CensusMLP",
    "ConvBlock",
    "DenseEncoder",
    "Encoder",
    "FunctionalModel",
    "GraphBatch",
    "HardSharing",
    "Heads",
    "LeNet",
    "MiniEncoder",
    "MiniLeNet",
    "NamedHeads",
    "RayChannels",
    "ResNet18",
    "ResNet18Encoder",
    "Rotations",
    "RowDense",
    "TransformerClassifier",
    "TransformerEncoder",
    "Trunk",
    "UTKFaceNet",
    "accuracy",
    "as_functional",
    "cayley",
    "conv_pool",
    "cross_entropy",
    "distillation_losses",
    "lsuv",
    "mixed_errors",
    "mixed_losses",
    "pair_features",
    "rotation_loss",
]
