"""Sources of the Gramian and of the weighted gradient, one per strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mtl_jax import stacking, tree
from mtl_jax._types import Array, ArrayTree, LossesFn
from mtl_jax.features import (
    LinearizedSplit,
    Split,
    find_representation,
    linearize_split,
)
from mtl_jax.gradients import (
    LinearizedLosses,
    TracedLosses,
    linearize_losses,
    stacked_grads,
    trace_losses,
)
from mtl_jax.layers import layerwise_gram, layerwise_pays
from mtl_jax.pullback import Pullback
from mtl_jax.separable import separate_rows
from mtl_jax.stacking import stack_rows

STRATEGIES = (*stacking.STRATEGIES, "layerwise", "gramian", "features")

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
            return _columns(linear)
        traced = trace_losses(linear)
        if strategy == "features":
            return _features(traced, feature_batch)
        num_tasks = len(linear.losses)
        pays = layerwise_pays(traced.pullback, traced.shared, num_tasks)
        if strategy == "auto" and not pays:
            return _stored(linear, "auto")
        return layerwise_gram(traced), _masked(pull_back)

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
    rows = stacked_grads(linear, strategy)

    def combine(weights: Array, mask: Array) -> Shared:
        return tree.combine(weights, tree.zero_tasks(~mask, rows))

    return tree.gram(rows), combine


def _columns(linear: LinearizedLosses) -> tuple[Array, Combine]:
    """The Gramian column by column: a pull-back and a push-forward for each task.

    Both, and the pull-back that combines, are made from one linearisation: those of two
    would keep the activations twice.
    """
    dtype = tree.accumulator_dtype(linear.losses)
    _, push = jax.linearize(linear.function, linear.point)
    transposed = jax.linear_transpose(push, linear.point)

    def pull_back(cotangent: Array) -> list[Array]:
        return transposed(cotangent.astype(linear.losses.dtype))[0]

    def column(cotangent: Array) -> Array:
        return push(pull_back(cotangent)).astype(dtype)

    columns = lax.map(column, jnp.eye(len(linear.losses), dtype=linear.losses.dtype))
    return 0.5 * (columns + columns.T), _masked(pull_back)


def _features(traced: TracedLosses, feature_batch: str) -> tuple[Array, Combine]:
    """The Gramian of the representation's gradients, the split found in the program."""
    pullback, shared = traced.pullback, traced.shared
    variable = find_representation(pullback, shared, traced.heads)
    if variable is None:
        raise ValueError(
            "strategy='features' found no single array between the shared parameters and "
            "the heads: mark all task-specific parameters with heads=, keep shared ones "
            "out of the heads, or pass losses_fn as mtl_jax.Split(encode, losses)"
        )
    rows = traced.rows
    if traced.start is not variable:
        (rows,) = stack_rows(traced.part([variable]), traced.rows)
    encoder = pullback.part([variable], shared)
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
        rows = _representation_rows(parts)
        return _from_rows(rows, parts.encoder, feature_batch)

    return Source(
        parts.losses,
        parts.value,
        gram,
        lambda weights: parts.encoder(parts.representation(weights.astype(dtype))),
        lambda weights: parts.heads(weights.astype(dtype)),
        lambda shared, head: jax.tree.map(jnp.add, shared, head),
    )


def _representation_rows(parts: LinearizedSplit) -> ArrayTree:
    """The gradients of the representation, leaves ``(T, *z)``."""
    structure: list[Any] = []

    def flat(cotangent: Array) -> list[Array]:
        leaves, tree_def = jax.tree.flatten(parts.representation(cotangent))
        structure.append(tree_def)
        return leaves

    pullback = Pullback(flat, parts.losses)
    rows = [separate_rows(pullback, output) for output in pullback.outputs]
    if any(row is None for row in rows):
        cotangents = jnp.eye(len(parts.losses), dtype=parts.losses.dtype)
        return stack_rows(parts.representation, cotangents)
    return jax.tree.unflatten(structure[0], rows)


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
