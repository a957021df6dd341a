"""Rescaler: divides every task gradient by its norm, its loss, or both."""

from __future__ import annotations

import optax

from mtl_jax import tree
from mtl_jax._types import Array, StackedTree, State, Statistics, check_choice
from mtl_jax.transforms._base import transform_stack
from mtl_jax.weighting._base import losses_of
from mtl_jax.weighting.mgda import NORMALIZATIONS, normalization_scales


def normalize(
    kind: str = "l2", *, num_tasks: int
) -> optax.GradientTransformationExtraArgs:
    r"""Divides each task gradient by :math:`n_t`, before an aggregator.

    :math:`n_t` is 1 (``"none"``), :math:`\|g_t\|` (``"l2"``), :math:`L_t` (``"loss"``) or
    :math:`L_t \|g_t\|` (``"loss+"``), as in the released code of MGDA. Chained before
    :func:`mtl_jax.mgda` it equals ``mgda(normalization=..., weights_on="normalized")``.

    Args:
        kind: ``"none"``, ``"l2"``, ``"loss"`` or ``"loss+"``.
        num_tasks: number of tasks ``T``.

    Returns:
        A stateless transformation from ``(T, *p)`` to ``(T, *p)``, dtypes kept; the loss
        kinds need ``losses=`` of shape ``(T,)`` at ``update``. A divisor that is not
        positive and finite (zero gradient, negative loss) is replaced by 1.

    Raises:
        ValueError: for an unknown kind; from ``update``, for wrong shapes or missing
            losses.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax, optax
        >>> tx = optax.chain(mtl_jax.normalize("l2", num_tasks=2), mtl_jax.ls(2))
        >>> grads = jnp.array([[3.0, 0.0], [0.0, 0.5]])
        >>> print(tx.update(grads, tx.init(jnp.zeros(2)))[0])
        [1. 1.]

    References:
        Sener & Koltun, *Multi-Task Learning as Multi-Objective Optimization*, 2018,
        arXiv:1810.04650 (the normalisations are in its code only)
    """
    check_choice("kind", kind, NORMALIZATIONS)

    def update(
        updates: StackedTree, state: State, losses: Array | None
    ) -> tuple[StackedTree, State]:
        if kind == "none":
            return updates, state
        if kind != "l2":
            losses = losses_of(
                Statistics(losses=losses), num_tasks, f"normalize({kind!r})"
            )
        norms = tree.task_norms(updates) if kind != "loss" else None
        scales = normalization_scales(kind, norms, losses)
        return tree.scale_tasks(1 / scales, updates), state

    return transform_stack(num_tasks, update)
