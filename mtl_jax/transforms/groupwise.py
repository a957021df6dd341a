"""Any method, group of parameters by group of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from mtl_jax import tree
from mtl_jax._types import ArrayTree, StackedTree, State

Groups = str | Callable[[str], str] | ArrayTree
"""``"leaf"``, ``"layer"``, a function of the leaf's path, or a tree of labels."""


def groupwise(
    make_tx: Callable[[str], optax.GradientTransformation], groups: Groups = "layer"
) -> optax.GradientTransformationExtraArgs:
    """Applies a method to each group of parameters by itself: its own Gramian and weights.

    Conflicts differ from layer to layer; GradVac's paper works on groups, and any other
    method can.

    Args:
        make_tx: label -> method for that group, e.g. ``lambda label: mtl_jax.gradvac(3)``;
            different labels may have different methods. (For two or three groups with
            labels that are known beforehand ``optax.partition`` does the same.)
        groups: ``"leaf"``: every array is a group; ``"layer"``: the arrays that share a
            path but for its last part; a function from the path (``"encoder/0/kernel"``)
            to the label; or a tree of labels that is a prefix of the parameters' tree.

    Returns:
        A transformation from ``(T, *p)`` to ``(*p)``; its state is a dictionary by label.
        ``optax.tree.get_all_with_path(state, "weights")`` reads all weights.

    Raises:
        ValueError: for an unknown word, or a tree of labels that does not fit.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> tx = mtl_jax.groupwise(lambda label: mtl_jax.mgda(2), "leaf")
        >>> params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
        >>> grads = {"a": jnp.array([[1.0], [2.0]]), "b": jnp.array([[1.0], [-1.0]])}
        >>> update, state = tx.update(grads, tx.init(params))
        >>> print(update["a"], update["b"])
        [1.] [0.]
    """
    if isinstance(groups, str) and groups not in ("leaf", "layer"):
        raise ValueError(
            "groups must be 'leaf', 'layer', a function of the path or a tree of labels, "
            f"got {groups!r}"
        )

    def labels_of(params: ArrayTree) -> ArrayTree:
        if isinstance(groups, str) or callable(groups):
            return jax.tree_util.tree_map_with_path(
                lambda path, _: _label(groups, tree.path_name(path)), params
            )
        try:
            return jax.tree.map(
                lambda label, part: jax.tree.map(lambda _: label, part), groups, params
            )
        except ValueError as error:
            raise ValueError(
                f"the tree of labels must be a prefix of the parameters' tree: {error}"
            ) from None

    def partition(params: ArrayTree) -> optax.GradientTransformationExtraArgs:
        labels = labels_of(params)
        names = sorted(set(jax.tree.leaves(labels)))
        return optax.partition({name: make_tx(name) for name in names}, labels)

    def init_fn(params: ArrayTree) -> State:
        return partition(params).init(params)

    def update_fn(
        updates: StackedTree,
        state: State,
        params: ArrayTree | None = None,
        **extra_args: Any,
    ) -> tuple[ArrayTree, State]:
        return partition(updates).update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _label(groups: str | Callable[[str], str], path: str) -> str:
    if callable(groups):
        return groups(path)
    return path.rpartition("/")[0] if groups == "layer" else path
