"""Pytrees as vectors: inner products, norms and checks for the Krylov solvers.

Leaf by leaf, without ravel or concatenation: sharded leaves stay sharded and only scalars
cross devices.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mtl_jax._types import Array, ArrayTree
from mtl_jax.tree import accumulator_dtype, path_name


def as_vector(name: str, tree: ArrayTree) -> ArrayTree:
    """Returns ``tree`` with array leaves.

    Raises:
        ValueError: naming the leaf, unless every leaf is real floating point, and if there
            is no leaf.
    """
    tree = jax.tree.map(jnp.asarray, tree)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(
            f"{name} has no leaves; pass a pytree of floating point arrays"
        )
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"leaf {_label(path)} of {name} has dtype {leaf.dtype}, expected a real "
                "floating point dtype"
            )
    return tree


def check_like(name: str, tree: ArrayTree, reference_name: str, reference: Any) -> None:
    """Raises ``ValueError`` unless ``tree`` has the structure and shapes of ``reference``.

    Args:
        name: what ``tree`` is called in the message.
        tree: pytree of arrays.
        reference_name: what ``reference`` is called in the message.
        reference: pytree of arrays.

    Raises:
        ValueError: naming the first leaf that is missing, too many or of another shape.
    """
    found = dict(jax.tree_util.tree_leaves_with_path(tree))
    expected = dict(jax.tree_util.tree_leaves_with_path(reference))
    for path in expected:
        if path not in found:
            raise ValueError(
                f"{name} lacks the leaf {_label(path)} of {reference_name}; both must have "
                "the same structure"
            )
    for path, leaf in found.items():
        if path not in expected:
            raise ValueError(
                f"{name} has a leaf {_label(path)} that {reference_name} lacks; both must "
                "have the same structure"
            )
        shape, wanted = jnp.shape(leaf), jnp.shape(expected[path])
        if shape != wanted:
            raise ValueError(
                f"leaf {_label(path)} of {name} has shape {shape}, expected {wanted} as in "
                f"{reference_name}"
            )
    structures = jax.tree.structure(tree), jax.tree.structure(reference)
    if structures[0] != structures[1]:
        raise ValueError(
            f"{name} has the structure {structures[0]}, expected {structures[1]} as in "
            f"{reference_name}"
        )


def zeros(tree: ArrayTree) -> ArrayTree:
    """Returns zeros shaped like ``tree``."""
    return jax.tree.map(jnp.zeros_like, tree)


def widen(tree: ArrayTree) -> ArrayTree:
    """Returns the tree with 16-bit leaves in float32, the others as they are."""
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree
    )


def cast_like(tree: ArrayTree, reference: ArrayTree) -> ArrayTree:
    """Returns the tree with the dtypes of ``reference``'s leaves."""
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), tree, reference)


def add_scaled(tree: ArrayTree, scale: Array | float, other: ArrayTree) -> ArrayTree:
    """Returns ``tree + scale * other`` in the dtypes of ``tree``'s leaves."""
    return jax.tree.map(
        lambda x, y: (x + scale * y.astype(x.dtype)).astype(x.dtype), tree, other
    )


def divide(tree: ArrayTree, divisor: Array) -> ArrayTree:
    """Returns ``tree / divisor``, or zeros where ``divisor`` is zero."""
    safe = jnp.where(divisor > 0, divisor, jnp.inf)
    return jax.tree.map(lambda leaf: (leaf / safe).astype(leaf.dtype), tree)


def select(condition: Array, tree: ArrayTree, other: ArrayTree) -> ArrayTree:
    """Returns ``tree`` where the scalar ``condition`` holds, else ``other``."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), tree, other)


def inner(tree: ArrayTree, other: ArrayTree) -> Array:
    """Returns the inner product, accumulated in float32, or float64 if a leaf is."""
    dtype = accumulator_dtype(tree)
    products = jax.tree.map(
        lambda x, y: jnp.sum(x.astype(dtype) * y.astype(dtype)), tree, other
    )
    return jnp.asarray(sum(jax.tree.leaves(products)))


def norm(tree: ArrayTree) -> Array:
    """Returns the Euclidean norm; neither it nor its squares leave the dtype's range.

    Float32 or float64 as :func:`inner`; NaN or infinite if an entry is.
    """
    dtype = accumulator_dtype(tree)
    peaks = [
        jnp.max(jnp.abs(leaf), initial=0).astype(dtype)
        for leaf in jax.tree.leaves(tree)
    ]
    largest = jnp.max(jnp.stack(peaks))
    scaled = divide(tree, largest)
    return largest * jnp.sqrt(inner(scaled, scaled))


def all_finite(tree: ArrayTree) -> Array:
    """Returns whether every entry of every leaf is finite, bool ``()``."""
    flags = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(flags).all()


def _label(path: tuple) -> str:
    return repr(path_name(path)) if path else "(the whole tree)"
