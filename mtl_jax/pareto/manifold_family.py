"""Gradients of any family of networks over the simplex: one source for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax._types import Array, ArrayTree, check_choice, check_losses
from mtl_jax.gradients import value_and_task_grads
from mtl_jax.pareto.manifold_rule import (
    ManifoldRule,
    ManifoldState,
    make_manifold_rule,
    spread,
)
from mtl_jax.stacking import STRATEGIES, stack_rows


class MemberGrad(NamedTuple):
    """Pair of pure functions: a source of gradients for all points of a manifold.

    What :func:`value_and_member_grad` and :func:`value_and_family_grad` return; ``members``
    are whatever is trained.
    """

    init: Callable[[ArrayTree], ManifoldState]
    """``init(members) -> state``."""
    update: Callable[..., tuple[Any, ArrayTree, ManifoldState]]
    """``update(state, members, *args, **kwargs) -> (value, grads, state)``."""


def value_and_family_grad(
    losses_fn: Callable[..., Any],
    num_tasks: int,
    has_aux: bool = False,
    *,
    strategy: str = "auto",
    loop: str = "auto",
    **options: Any,
) -> MemberGrad:
    r"""Creates functions that return losses and the gradients of a family of networks.

    .. math:: \sum_w \sum_t c_{wt} \nabla_\phi L_t(\phi, \alpha_w)

    for parameters :math:`\phi` that stand for a network at every point :math:`\alpha` of
    the simplex: how they do so is the business of ``losses_fn(family, alpha, *args)``.

    ====================  ==========================================  ==================
    family                network at ``alpha``                        ``balance``
    ====================  ==========================================  ==================
    Pareto manifold       ``member_mixture(family, alpha)``           any
    low-rank members      ``low_rank_mixture(family, alpha)``         any
    Pareto hypernetwork   ``hyper.apply(family, alpha)``              ``"ls"`` or
                                                                      ``epo_balance()``
    COSMOS                itself, on ``append_ray(inputs, alpha)``    ``cosmos_balance()``
    ====================  ==========================================  ==================

    For stacked members :func:`value_and_member_grad` gives the same, and is cheaper where
    the balance looks at gradients.

    Args:
        losses_fn: ``losses_fn(family, alpha, *args, **kwargs) -> losses (T,)`` (or a pair
            ``(losses, aux)``), pure JAX code; ``alpha (M,)`` is not differentiated.
        num_tasks: ``T``.
        has_aux: whether it returns a pair.
        strategy: of the ``T`` pull-backs at a point, for a balance that looks at gradients
            (then ``W T`` gradients of the whole family are held).
        loop: over the points, see :func:`value_and_manifold_grads`.
        options: as of :func:`mtl_jax.pareto.pareto_manifold`: the points (``samples``,
            ``sampler``, ``concentration``, ``seed``), ``balance`` and ``regularizer``.
            Norms and Gramians are those of the family's own parameters here. ``M`` is the
            number of entries of ``alpha``, ``T`` by default.

    Returns:
        :class:`MemberGrad` with ``init(family) -> state`` and ``update(state, family,
        *args, **kwargs) -> (losses (W, T), grads, state)`` (``(losses, aux)`` with
        ``has_aux``), ``grads`` like the family: train it with any optax optimiser.

    Raises:
        ValueError: as :func:`mtl_jax.pareto.pareto_manifold`; when called, for losses that
            are not a floating point vector ``(T,)``.

    Examples:
        >>> import optax
        >>> from mtl_jax import pareto
        >>> def losses_fn(family, alpha):
        ...     x = pareto.low_rank_mixture(family, alpha)["w"]
        ...     return jnp.stack([jnp.sum((x - 1) ** 2), jnp.sum((x + 1) ** 2)])
        >>> source = value_and_family_grad(losses_fn, 2, samples=2, balance="ls")
        >>> params = {"w": jnp.zeros((4, 4))}
        >>> family = pareto.low_rank_members(params, 2, 1, key=jax.random.key(1))
        >>> optimizer = optax.adam(0.02)
        >>> @jax.jit
        ... def train(family):
        ...     def step(carry, _):
        ...         family, state, opt_state = carry
        ...         _, grads, state = source.update(state, family)
        ...         updates, opt_state = optimizer.update(grads, opt_state)
        ...         return (optax.apply_updates(family, updates), state, opt_state), None
        ...     start = family, source.init(family), optimizer.init(family)
        ...     return jax.lax.scan(step, start, length=1000)[0][0]
        >>> family = train(family)
        >>> print(pareto.low_rank_mixture(family, [0.75, 0.25])["w"].round(1)[0])
        [0.5 0.5 0.5 0.5]
    """
    check_choice("loop", loop, STRATEGIES)
    rule = make_manifold_rule(num_tasks, **options)
    return MemberGrad(
        rule.start, family_update(losses_fn, rule, has_aux, strategy, loop)
    )


def family_update(
    losses_fn: Callable[..., Any],
    rule: ManifoldRule,
    has_aux: bool,
    strategy: str,
    loop: str,
) -> Callable[..., tuple[Any, ArrayTree, ManifoldState]]:
    """The function ``update`` of :func:`value_and_family_grad`."""
    grads_fn = value_and_task_grads(losses_fn, has_aux=has_aux, strategy=strategy)

    def by_tasks(
        state: ManifoldState, family: ArrayTree, *args: Any, **kwargs: Any
    ) -> tuple[Any, ArrayTree, ManifoldState]:
        def at_point(alpha: Array) -> tuple[Any, ArrayTree]:
            return grads_fn(family, alpha, *args, **kwargs)

        value, grads = stack_rows(at_point, state.alphas, loop)
        losses = value[0] if has_aux else value
        new_state = rule.update(state, losses, rule.shared(grads), own=True)
        ones = jnp.ones((rule.samples, 1), new_state.weights.dtype)
        summed = spread(ones, new_state.weights, grads)
        return value, jax.tree.map(lambda leaf: leaf[0], summed), new_state

    def in_turn(
        state: ManifoldState, family: ArrayTree, *args: Any, **kwargs: Any
    ) -> tuple[Any, ArrayTree, ManifoldState]:
        # The weights are known before the losses: forth and back at one point, then at
        # the next, so that one point's activations are held.
        new_state = rule.update(state, None, None)

        def at_point(row: Array) -> tuple[Array, Any, ArrayTree]:
            alpha, weights = jnp.split(row, [state.alphas.shape[1]])

            def at_family(family: ArrayTree) -> tuple[Array, Any]:
                output = losses_fn(family, alpha, *args, **kwargs)
                losses, aux = output if has_aux else (output, None)
                check_losses(losses)
                return losses, aux

            losses, pullback, aux = jax.vjp(at_family, family, has_aux=True)
            return losses, aux, pullback(weights.astype(losses.dtype))[0]

        rows = jnp.concatenate([state.alphas, new_state.weights], axis=1)
        losses, aux, grads = stack_rows(at_point, rows, loop)
        grads = jax.tree.map(lambda leaf: leaf.sum(0), grads)
        return ((losses, aux) if has_aux else losses), grads, new_state

    def at_once(
        state: ManifoldState, family: ArrayTree, *args: Any, **kwargs: Any
    ) -> tuple[Any, ArrayTree, ManifoldState]:
        def at_all(family: ArrayTree) -> tuple[Array, Any]:
            def at_point(alpha: Array) -> tuple[Array, Any]:
                output = losses_fn(family, alpha, *args, **kwargs)
                losses, aux = output if has_aux else (output, None)
                check_losses(losses)
                return losses, aux

            return stack_rows(at_point, state.alphas, loop)

        losses, pullback, aux = jax.vjp(at_all, family, has_aux=True)
        new_state = rule.update(state, losses, None)
        (grads,) = pullback(new_state.weights.astype(losses.dtype))
        return ((losses, aux) if has_aux else losses), grads, new_state

    if rule.balance.needs_grads:
        return by_tasks
    return in_turn if rule.balance.fixed and not rule.regularized else at_once
