"""Tied rows: every row of a cluster is the cluster's mean, zero rows stay zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from mtl_jax._types import Array, ArrayTree, State
from mtl_jax.sparsity.rows import from_rows, to_rows
from mtl_jax.sparsity.zeros import need_params
from mtl_jax.tree import path_name

Labels = Mapping[str, Any]
"""Path of a kernel to cluster numbers ``(n,)`` or ``(L, n)``; -1 marks zero rows."""


def tie_rows(rows: Array, labels: Any) -> Array:
    """Replaces every row by the mean of its cluster, and rows labelled -1 by zero.

    This is the orthogonal projection on the tied rows: sums over clusters stay, and a
    second application changes nothing.

    Args:
        rows: ``(n, d)``.
        labels: integers ``(n,)``; they may be traced, and then go unchecked.

    Returns:
        ``(n, d)``.

    Raises:
        ValueError: for labels that are no integers >= -1, one for each row.

    Examples:
        >>> import jax.numpy as jnp
        >>> print(tie_rows(jnp.array([[1.0], [3.0], [9.0], [5.0]]), [0, 0, -1, 1])[:, 0])
        [2. 2. 0. 5.]
    """
    traced = isinstance(labels, Tracer)
    labels = labels if traced else np.asarray(labels)
    good = labels.shape == jnp.shape(rows)[:1] and jnp.issubdtype(
        labels.dtype, jnp.integer
    )
    if not good or (not traced and (labels < -1).any()):
        raise ValueError(
            "labels must be integers >= -1, one for each of the "
            f"{jnp.shape(rows)[0]} rows, got shape {labels.shape} and dtype "
            f"{labels.dtype}"
        )
    count = labels.shape[0] if traced else int(labels.max(initial=0)) + 1
    numbers = jnp.asarray(labels)
    live = numbers >= 0
    wide = jnp.promote_types(rows.dtype, jnp.float32)
    safe = jnp.where(live, numbers, 0)
    kept = jnp.where(live[:, None], rows.astype(wide), 0)
    sums = jax.ops.segment_sum(kept, safe, count)
    sizes = jax.ops.segment_sum(live.astype(wide), safe, count)
    means = sums / jnp.maximum(sizes, 1)[:, None]
    return jnp.where(live[:, None], means[safe], 0).astype(rows.dtype)


def tie(params: ArrayTree, labels: Labels) -> ArrayTree:
    """Ties the rows of all kernels that ``labels`` names, see :func:`tie_rows`.

    Args:
        params: the parameters.
        labels: from :func:`mtl_jax.sparsity.cluster_layers`.

    Returns:
        The parameters with tied rows; others unchanged.

    Raises:
        ValueError: for labels of other shapes, or of kernels that are not there.

    Examples:
        >>> import jax.numpy as jnp
        >>> params = {"kernel": jnp.array([[1.0], [3.0], [9.0]]), "bias": jnp.ones(1)}
        >>> print(tie(params, {"kernel": [0, 0, -1]})["kernel"][:, 0])
        [2. 2. 0.]
    """
    _check_names(params, labels)

    def leaf_tie(path: tuple, kernel: Array) -> Array:
        name = path_name(path)
        if name not in labels:
            return kernel
        rows, numbers = to_rows(kernel), labels[name]
        if not isinstance(numbers, Tracer):
            numbers = np.asarray(numbers)
        if rows.ndim == 2:
            return from_rows(tie_rows(rows, numbers), kernel.shape)
        if numbers.shape != rows.shape[:2]:
            raise ValueError(
                f"labels of {name!r} must have shape {rows.shape[:2]}, got "
                f"{numbers.shape}"
            )
        layers = range(rows.shape[0])
        tied_rows = [tie_rows(rows[k], numbers[k]) for k in layers]
        return from_rows(jnp.stack(tied_rows), kernel.shape)

    return jax.tree_util.tree_map_with_path(leaf_tie, params)


def tied(labels: Labels) -> optax.GradientTransformation:
    """Keeps rows tied: the last transformation of a chain projects every step.

    With ``optax.sgd`` each cluster's centroid moves against the mean of its rows'
    gradients (their sum is the gradient with respect to a stored centroid). Begin with
    ``tie(params, labels)``, and tie again after training if rows of a cluster shall be
    equal to the last bit. (The released code ties once per epoch, and zero rows with the
    others, which makes them non-zero.)

    Args:
        labels: from :func:`mtl_jax.sparsity.cluster_layers`; rows labelled -1 stay zero.

    Returns:
        ``optax.GradientTransformation``; ``update`` needs ``params``.

    Raises:
        ValueError: for labels that do not fit the parameters; from ``update`` without
            ``params``.

    Examples:
        >>> import jax.numpy as jnp
        >>> params = {"kernel": jnp.array([[1.0], [1.0], [0.0]])}
        >>> tx = tied({"kernel": [0, 0, -1]})
        >>> grads = {"kernel": jnp.array([[2.0], [4.0], [6.0]])}
        >>> print(tx.update(grads, tx.init(params), params)[0]["kernel"][:, 0])
        [3. 3. 0.]
    """

    def init_fn(params: ArrayTree) -> optax.EmptyState:
        _check_names(params, labels)
        return optax.EmptyState()

    def update_fn(
        updates: ArrayTree, state: State, params: ArrayTree | None = None
    ) -> tuple[ArrayTree, State]:
        params = need_params(params, "tied")
        moved = jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)
        new = tie(moved, labels)

        def leaf_update(path: tuple, update: Array, old: Array, end: Array) -> Array:
            return end - old if path_name(path) in labels else update

        steps = jax.tree_util.tree_map_with_path(leaf_update, updates, params, new)
        return steps, state

    return optax.GradientTransformation(init_fn, update_fn)


def _check_names(params: ArrayTree, labels: Labels) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    missing = set(labels) - {path_name(path) for path, _ in leaves}
    if missing:
        raise ValueError(
            f"labels names {', '.join(sorted(missing))}, which the parameters do not have"
        )
