"""Data sets as NumPy arrays, and analytic problems."""

from mtl_jax.data.compose import CONSTRUCTIONS, compose
from mtl_jax.data.digits import BASES, DigitHalves, Digits, load_digits
from mtl_jax.data.multi_mnist import (
    MEAN,
    STD,
    MultiTaskData,
    Split,
    load_multi_mnist,
    standardize,
)

__all__ = [
    "BASES",
    "CONSTRUCTIONS",
    "MEAN",
    "STD",
    "DigitHalves",
    "Digits",
    "MultiTaskData",
    "Split",
    "compose",
    "load_digits",
    "load_multi_mnist",
    "standardize",
]
