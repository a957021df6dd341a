"""Data sets as NumPy arrays, and analytic problems."""

from mtl_jax.data.celeba import AttributeData, AttributeSplit, load_celeba
from mtl_jax.data.census import TabularData, TabularSplit, load_census
from mtl_jax.data.cifar10_mnist import (
    CIFAR_MEAN,
    CIFAR_STD,
    load_cifar10_mnist,
    overlay_digits,
    random_rotation,
    rotate,
)
from mtl_jax.data.digits import BASES, DigitHalves, Digits, load_digits
from mtl_jax.data.multi_mnist import load_multi_mnist
from mtl_jax.data.multi_mnist_3 import load_multi_mnist_3
from mtl_jax.data.picture_sets import MEAN, STD, MultiTaskData, Split, standardize
from mtl_jax.data.qm9 import MoleculeData, MoleculeInputs, MoleculeSplit, load_qm9
from mtl_jax.data.recipes import CONSTRUCTIONS, compose
from mtl_jax.data.toy import TOY_STARTS, toy_losses, toy_pareto_set
from mtl_jax.data.utkface import FaceData, FaceSplit, FaceTargets, load_utkface
from mtl_jax.data.zdt2 import zdt2_front, zdt2_losses, zdt2_pareto_point, zdt2_sample

__all__ = [
    "BASES",
    "CIFAR_MEAN",
    "CIFAR_STD",
    "CONSTRUCTIONS",
    "MEAN",
    "STD",
    "TOY_STARTS",
    "AttributeData",
    "AttributeSplit",
    "DigitHalves",
    "Digits",
    "FaceData",
    "FaceSplit",
    "FaceTargets",
    "MoleculeData",
    "MoleculeInputs",
    "MoleculeSplit",
    "MultiTaskData",
    "Split",
    "TabularData",
    "TabularSplit",
    "compose",
    "load_celeba",
    "load_census",
    "load_cifar10_mnist",
    "load_digits",
    "load_multi_mnist",
    "load_multi_mnist_3",
    "load_qm9",
    "load_utkface",
    "overlay_digits",
    "random_rotation",
    "rotate",
    "standardize",
    "toy_losses",
    "toy_pareto_set",
    "zdt2_front",
    "zdt2_losses",
    "zdt2_pareto_point",
    "zdt2_sample",
]
