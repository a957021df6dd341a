"""Data sets as NumPy arrays, and analytic problems."""

from mtl_jax.data.digits import BASES, DigitHalves, Digits, load_digits
from mtl_jax.data.multi_mnist import (
    MEAN,
    STD,
    MultiTaskData,
    Split,
    load_multi_mnist,
    standardize,
)
from mtl_jax.data.recipes import CONSTRUCTIONS, compose
from mtl_jax.data.toy import TOY_STARTS, toy_losses, toy_pareto_set

__all__ = [
    "BASES",
    "CONSTRUCTIONS",
    "MEAN",
    "STD",
    "TOY_STARTS",
    "DigitHalves",
    "Digits",
    "MultiTaskData",
    "Split",
    "compose",
    "load_digits",
    "load_multi_mnist",
    "standardize",
    "toy_losses",
    "toy_pareto_set",
]
