"""GrOWL as the last transformation of a chain: makes rows of kernels zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtl_jax._types import (
    Array,
    ArrayTree,
    State,
    check_choice,
    check_count,
    check_range,
)
from mtl_jax.sparsity.growl import growl_prox, growl_theta
from mtl_jax.sparsity.rows import (
    LayersSpec,
    chosen_leaves,
    from_rows,
    map_layers,
    select_layers,
    to_rows,
)
from mtl_jax.sparsity.zeros import cap_zero_rows, need_params

MODES = ("prox", "paper")
Schedule = float | Callable[[Array], Any]


class GrowlState(NamedTuple):
    """State of :func:`growl`."""

    count: Array
    """Steps made, int32 ``()``."""
    row_sparsity: Array
    """Share of zero rows in the chosen layers after the last proximal step, ``()``."""


def growl(
    learning_rate: Schedule | None = None,
    *,
    k0: float | Array = 1.0,
    layers: LayersSpec = None,
    pattern: str = "spike",
    beta1: float = 0.8,
    beta2: float = 0.2,
    scale: float | Array = 1.0,
    max_sparsity: Schedule = 1.0,
    mode: str = "prox",
    every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""GrOWL as the last transformation of a chain: makes whole rows of kernels zero.

    After the optimiser's step :math:`y = x + u` the chosen kernels go through

    .. math:: x^+ = \operatorname{prox}_{\eta k_0 c\, G}(y)

    with the learning rate :math:`\eta`, so that the chain minimises
    :math:`L + k_0 c \sum_l G(W_l)` (proximal gradient steps, exactly so after
    ``optax.sgd``; adaptive optimisers scale the gradient of ``L`` alone).

    Args:
        learning_rate: of the optimiser before, a number or an optax schedule.
        k0: weight of the sparsity objective. ``update(..., sparsity_weight=w)`` replaces
            it for one step, e.g. by a multiplier of :func:`mtl_jax.chebyshev_al`.
        layers: which kernels, see ``LayersSpec``.
        pattern: see :func:`growl_theta`, as ``beta1`` and ``beta2``.
        beta1: see there.
        beta2: see there.
        scale: factor ``c`` of the objective, as in :func:`growl_loss`.
        max_sparsity: greatest share of zero rows in one layer, in [0, 1], a number or a
            schedule of the count of steps. Beyond it the rows that were largest before
            the proximal step are put back to those values. (The released code puts back
            random ones.)
        mode: ``"prox"`` or ``"paper"``: the released code's proximal step of size 1,
            which depends on neither learning rate nor ``k0`` (but none for ``k0 = 0``),
            after every epoch: ``every`` is then the number of steps of an epoch.
        every: number of steps from one proximal step to the next; in the mode ``"prox"``
            its size is multiplied by it.

    Returns:
        ``optax.GradientTransformationExtraArgs``; ``update`` needs ``params``.

    Raises:
        ValueError: for hyper-parameters out of range; from ``init`` if ``layers`` chooses
            nothing; from ``update`` without ``params``.

    Examples:
        >>> import jax.numpy as jnp, optax
        >>> tx = optax.chain(optax.sgd(0.5), growl(0.5, k0=2.0))
        >>> params = {"dense": {"kernel": jnp.array([[3.0], [2.0], [1.0], [0.1]])}}
        >>> zero = {"dense": {"kernel": jnp.zeros((4, 1))}}
        >>> updates, state = tx.update(zero, tx.init(params), params)
        >>> print(optax.apply_updates(params, updates)["dense"]["kernel"][:, 0])
        [2.  1.8 0.8 0. ]
        >>> print(optax.tree.get(state, "row_sparsity"))
        0.25

    References:
        Hotegni, Berkemeier and Peitz, *Multi-Objective Optimization for Sparse Deep
        Multi-Task Learning*, 2023, arXiv:2308.12243
    """
    check_choice("mode", mode, MODES)
    check_range("k0", k0, 0)
    check_range("scale", scale, 0)
    growl_theta(1, pattern=pattern, beta1=beta1, beta2=beta2)
    if not callable(max_sparsity):
        check_range("max_sparsity", max_sparsity, 0, 1)
    check_count("every", every, 1)
    if mode == "prox" and learning_rate is None:
        raise ValueError(
            "mode='prox' needs the learning_rate of the optimiser before (a number or a "
            "schedule); mode='paper' does not"
        )
    if learning_rate is not None and not callable(learning_rate):
        check_range("learning_rate", learning_rate, 0, math.inf)

    def init_fn(params: ArrayTree) -> GrowlState:
        sparsity = _share_of_zero_rows(params, select_layers(params, layers))
        return GrowlState(jnp.zeros([], jnp.int32), sparsity)

    def update_fn(
        updates: ArrayTree,
        state: State,
        params: ArrayTree | None = None,
        *,
        sparsity_weight: float | Array | None = None,
        **extra_args: Any,
    ) -> tuple[ArrayTree, State]:
        del extra_args
        params = need_params(params, "growl")
        chosen = select_layers(params, layers)
        weight = jnp.asarray(k0 if sparsity_weight is None else sparsity_weight)
        if mode == "paper":
            step = jnp.where(weight > 0, 1.0, 0.0)
        else:
            rate = _at(learning_rate, state.count)
            step = rate * jnp.maximum(weight, 0) * scale * every
        cap = _at(max_sparsity, state.count)

        def shrink(kernel: Array) -> Array:
            rows = to_rows(kernel)
            size = rows.shape[-2]
            theta = growl_theta(size, pattern=pattern, beta1=beta1, beta2=beta2)

            def one(layer: Array) -> Array:
                shrunk = growl_prox(layer, theta, step=step)
                return cap_zero_rows(shrunk, layer, jnp.floor(cap * size + 1e-4))

            return from_rows(
                (one if rows.ndim == 2 else jax.vmap(one))(rows), kernel.shape
            )

        def finish(updates: ArrayTree) -> tuple[ArrayTree, Array]:
            moved = _moved(params, updates)
            new = map_layers(shrink, moved, chosen)
            return _steps_to(new, params, updates, chosen), _share_of_zero_rows(
                new, chosen
            )

        count = state.count + 1
        if every == 1:
            updates, sparsity = finish(updates)
        else:
            updates, sparsity = lax.cond(
                count % every == 0,
                finish,
                # Of the dtypes that steps to zero rows need to be exact.
                lambda same: (_as_steps(same, params, chosen), state.row_sparsity),
                updates,
            )
        return updates, GrowlState(count, sparsity)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _at(value: Any, count: Array) -> Any:
    return value(count) if callable(value) else value


def _moved(params: ArrayTree, updates: ArrayTree) -> ArrayTree:
    return jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)


def _steps_to(
    new: ArrayTree, params: ArrayTree, updates: ArrayTree, chosen: ArrayTree
) -> ArrayTree:
    """The updates that lead to ``new`` in the chosen leaves; ``p + (0 - p)`` is exact."""
    return jax.tree.map(
        lambda mark, n, p, u: n - p if mark else u, chosen, new, params, updates
    )


def _as_steps(updates: ArrayTree, params: ArrayTree, chosen: ArrayTree) -> ArrayTree:
    """The same updates in the dtypes of :func:`_steps_to`."""
    return jax.tree.map(
        lambda mark, u, p: u.astype(p.dtype) if mark else u, chosen, updates, params
    )


def _share_of_zero_rows(params: ArrayTree, chosen: ArrayTree) -> Array:
    kernels = chosen_leaves(params, chosen).values()
    zero = [~to_rows(kernel).any(axis=-1) for kernel in kernels]
    total = sum(mask.size for mask in zero)
    return jnp.asarray(sum(jnp.sum(mask) for mask in zero) / total, jnp.float32)
