"""The examples in the docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import mtl_jax

MODULES = [
    module.name
    for module in pkgutil.walk_packages(mtl_jax.__path__, prefix="mtl_jax.")
    if not module.name.endswith("tfds_builders")  # needs a prepared data set
    and module.name != "mtl_jax.transforms.methods"  # the weightings' examples again
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    results = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert results.failed == 0
