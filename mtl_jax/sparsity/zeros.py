"""Zero rows: how many a layer may have, and a transformation that keeps them zero."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax._types import Array, ArrayTree, State
from mtl_jax.sparsity.rows import (
    LayersSpec,
    from_rows,
    row_norms,
    select_layers,
    to_rows,
    zero_rows,
)
from mtl_jax.tree import path_name


class ZeroRowsState(NamedTuple):
    """State of :func:`keep_zero_rows`."""

    zero: dict[str, Array]
    """Path of a kernel to its zero rows, bool ``(n,)`` or ``(L, n)``."""


def keep_zero_rows(layers: LayersSpec = None) -> optax.GradientTransformation:
    """Keeps the rows zero that are zero in the parameters given to ``init``.

    The last transformation of a chain, for training on after :func:`growl`.

    Args:
        layers: which kernels, see ``LayersSpec``.

    Returns:
        ``optax.GradientTransformation``; ``update`` needs ``params``.

    Raises:
        ValueError: from ``init`` if ``layers`` chooses nothing; from ``update`` without
            ``params``.

    Examples:
        >>> import jax.numpy as jnp
        >>> tx = keep_zero_rows()
        >>> params = {"dense": {"kernel": jnp.array([[1.0], [0.0], [2.0], [0.0]])}}
        >>> updates, _ = tx.update({"dense": {"kernel": jnp.ones((4, 1))}},
        ...                        tx.init(params), params)
        >>> print(updates["dense"]["kernel"][:, 0])
        [1. 0. 1. 0.]
    """

    def init_fn(params: ArrayTree) -> ZeroRowsState:
        return ZeroRowsState(zero_rows(params, layers))

    def update_fn(
        updates: ArrayTree, state: State, params: ArrayTree | None = None
    ) -> tuple[ArrayTree, State]:
        params = need_params(params, "keep_zero_rows")

        def mask(path: tuple, mark: bool, update: Array, kernel: Array) -> Array:
            if not mark:
                return update
            zero = state.zero[path_name(path)][..., None]
            rows = jnp.where(zero, 0 - to_rows(kernel), to_rows(update))
            return from_rows(rows.astype(update.dtype), update.shape)

        chosen = select_layers(params, layers)
        new = jax.tree_util.tree_map_with_path(mask, chosen, updates, params)
        return new, state

    return optax.GradientTransformation(init_fn, update_fn)


def cap_zero_rows(rows: Array, before: Array, cap: Array | int) -> Array:
    """Puts the largest rows of ``before`` back until at most ``cap`` rows are zero.

    Args:
        rows: ``(n, d)``, some zero.
        before: the rows before they became zero, ``(n, d)``.
        cap: greatest number of zero rows.

    Returns:
        ``(n, d)``; of the zero rows all but the ``cap`` smallest of ``before`` are those
        of ``before`` (of equal ones the first are put back).

    Examples:
        >>> import jax.numpy as jnp
        >>> before = jnp.array([[0.1], [0.3], [0.2], [5.0]])
        >>> rows = jnp.array([[0.0], [0.0], [0.0], [4.0]])
        >>> print(cap_zero_rows(rows, before, 1)[:, 0])
        [0.  0.3 0.2 4. ]
    """
    zero = ~rows.any(axis=-1)
    excess = jnp.sum(zero) - cap
    key = jnp.where(zero, -row_norms(before), jnp.inf)
    order = jnp.argsort(key, stable=True)
    places = jnp.arange(zero.shape[0])
    ranks = jnp.zeros_like(places).at[order].set(places, unique_indices=True)
    return jnp.where((zero & (ranks < excess))[:, None], before, rows)


def need_params(params: ArrayTree | None, name: str) -> ArrayTree:
    """Raises ``ValueError`` if a transformation was called without parameters."""
    if params is None:
        raise ValueError(
            f"{name} works on the parameters: call update(updates, state, params)"
        )
    return params
