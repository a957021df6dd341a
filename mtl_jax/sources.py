"""Sources of the Gramian and of the weighted gradient, one per strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mtl_jax import gradients, tree
from mtl_jax._types import Array, ArrayTree, LossesFn
from mtl_jax.features import Split, find_representation, linearize_split
from mtl_jax.gradients import LinearizedLosses, linearize_losses, stacked_pullback
from mtl_jax.layers import layerwise_gram, layerwise_pays
from mtl_jax.pullback import Pullback
from mtl_jax.separable import separate_rows

STRATEGIES = (*gradients.STRATEGIES, "layerwise", "gramian", "features")

Shared = Any
"""Gradients of the shared parameters, as the source at hand nests them."""
Combine = Callable[[Array, Array], Shared]
"""Weights ``(T,)`` and which tasks are usable, bool ``(T,)`` -> shared gradients."""


class Source(NamedTuple):
    """One forward pass, and what can be asked of it; nothing else has run yet."""

    losses: Array
    """``(T,)``."""
    value: Any
    """What the caller gets: the losses, or ``(losses, aux)``."""
    gram: Callable[[], tuple[Array, Combine]]
    """Returns the Gramian and the function that combines with the weights it leads to."""
    shared: Callable[[Array], Shared]
    """Weights ``(T,)`` -> shared gradients, by one pull-back."""
    heads: Callable[[Array], Any]
    """Weights ``(T,)`` -> gradients of the head parameters."""
    join: Callable[[Shared, Any], ArrayTree]
    """Shared and head gradients -> one tree like the differentiated argument(s)."""


def make_source(
    losses_fn: LossesFn,
    argnums: int | Sequence[int],
    has_aux: bool,
    heads: tree.HeadsSpec,
    args: tuple,
    kwargs: dict[str, Any],
    *,
    strategy: str,
    feature_batch: str,
) -> Source:
    """Runs the forward pass; see :func:`mtl_jax.value_and_combined_grad`."""
    if strategy == "features" and isinstance(losses_fn, Split):
        return _from_split(losses_fn, has_aux, args, kwargs, feature_batch)
    linear = linearize_losses(losses_fn, argnums, has_aux, heads, args, kwargs)

    def pull_back(weights: Array) -> list[Array]:
        return linear.shared(weights.astype(linear.losses.dtype))

    def gram() -> tuple[Array, Combine]:
        if strategy in ("vmap", "unroll", "map"):
            return _stored(linear, strategy)
        if strategy == "gramian":
            return _columns(linear), _masked(pull_back)
        pullback, shared, head = _trace(linear)
        if strategy == "features":
            return _features(linear, pullback, shared, head, feature_batch)
        if strategy == "auto" and not layerwise_pays(
            pullback, shared, len(linear.losses)
        ):
            return _stored(linear, "auto")
        rows = layerwise_gram(
            pullback,
            shared,
            len(linear.losses),
            lambda part: stacked_pullback(part, linear.losses, "auto"),
        )
        return rows, _masked(pull_back)

    return Source(
        linear.losses,
        linear.value,
        gram,
        pull_back,
        lambda weights: linear.heads(weights.astype(linear.losses.dtype)),
        linear.join,
    )


def _masked(pull_back: Callable[[Array], Shared]) -> Combine:
    return lambda weights, mask: pull_back(jnp.where(mask, weights, 0))


def _stored(linear: LinearizedLosses, strategy: str) -> tuple[Array, Combine]:
    """The Gramian of stored task gradients."""
    rows = stacked_pullback(linear.shared, linear.losses, strategy)

    def combine(weights: Array, mask: Array) -> Shared:
        return tree.combine(weights, tree.zero_tasks(~mask, rows))

    return tree.gram(rows), combine


def _columns(linear: LinearizedLosses) -> Array:
    """The Gramian column by column: a pull-back and a push-forward for each task."""
    dtype = tree.accumulator_dtype(linear.losses)
    _, push = jax.linearize(linear.function, linear.point)

    def column(cotangent: Array) -> Array:
        return push(linear.shared(cotangent)).astype(dtype)

    columns = lax.map(column, jnp.eye(len(linear.losses), dtype=linear.losses.dtype))
    return 0.5 * (columns + columns.T)


def _trace(linear: LinearizedLosses) -> tuple[Pullback, list, list]:
    """The pull-back as equations, its outputs for shared and for head parameters."""

    def both(cotangent: Array) -> list[Array]:
        shared, head = linear.pullback(cotangent)
        return [*shared, *head]

    pullback = Pullback(both, linear.losses)
    count = len(pullback.outputs) - linear.num_heads
    return pullback, pullback.outputs[:count], pullback.outputs[count:]


def _features(
    linear: LinearizedLosses,
    pullback: Pullback,
    shared: list,
    head: list,
    feature_batch: str,
) -> tuple[Array, Combine]:
    """The Gramian of the representation's gradients, the split found in the program."""
    variable = find_representation(pullback, shared, head)
    encoder = pullback.part([variable], shared)
    rows = separate_rows(pullback, variable)
    if rows is None:
        part = pullback.part([pullback.input], [variable])
        (rows,) = stacked_pullback(part, linear.losses, "auto")
    return _from_rows([rows], lambda leaves: encoder(*leaves), feature_batch)


def _from_split(
    split: Split,
    has_aux: bool,
    args: tuple,
    kwargs: dict[str, Any],
    feature_batch: str,
) -> Source:
    """The same with the split given by functions."""
    parts = linearize_split(split, has_aux, args, kwargs)
    dtype = parts.losses.dtype

    def gram() -> tuple[Array, Combine]:
        rows = stacked_pullback(parts.representation, parts.losses, "auto")
        return _from_rows(rows, parts.encoder, feature_batch)

    return Source(
        parts.losses,
        parts.value,
        gram,
        lambda weights: parts.encoder(parts.representation(weights.astype(dtype))),
        lambda weights: parts.heads(weights.astype(dtype)),
        lambda shared, head: jax.tree.map(jnp.add, shared, head),
    )


def _from_rows(
    rows: ArrayTree, encoder: Callable[[ArrayTree], Shared], feature_batch: str
) -> tuple[Array, Combine]:
    """The Gramian of the representation's gradients ``(T, *z)``; one encoder pull-back."""
    counted = rows
    if feature_batch == "sum":
        counted = jax.tree.map(lambda leaf: leaf.sum(axis=1), rows)

    def combine(weights: Array, mask: Array) -> Shared:
        return encoder(tree.combine(weights, tree.zero_tasks(~mask, rows)))

    return tree.gram(counted), combine
