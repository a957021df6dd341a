"""Losses and gradients at sampled points of a Pareto manifold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtl_jax._types import Array, ArrayTree, LossesFn, StackedTree, check_choice
from mtl_jax.gradients import value_and_task_grads
from mtl_jax.pareto.manifold_family import MemberGrad, family_update
from mtl_jax.pareto.manifold_rule import ManifoldState, make_manifold_rule
from mtl_jax.pareto.members import count_members, member_mixture
from mtl_jax.pareto.simplex_samplers import check_alphas
from mtl_jax.stacking import STRATEGIES, stack_rows


def manifold_points(members: ArrayTree, state: Any) -> ArrayTree:
    """Returns the mixtures at which the next gradients are to be taken, ``(W, *p)``.

    Args:
        members: leaves ``(M, *p)``.
        state: of :func:`mtl_jax.pareto.pareto_manifold`, alone or in a chain.
    """
    alphas = optax.tree.get(state, "alphas")
    return jax.vmap(member_mixture, (None, 0))(members, alphas)


def value_and_manifold_grads(
    losses_fn: LossesFn,
    has_aux: bool = False,
    *,
    strategy: str = "auto",
    loop: str = "auto",
) -> Callable[..., tuple[Any, StackedTree]]:
    """Creates a function of losses and task gradients at the points of a manifold.

    Args:
        losses_fn: as for :func:`mtl_jax.value_and_task_grads`: the losses ``(T,)`` of one
            network.
        has_aux: whether it returns a pair ``(losses, aux)``.
        strategy: of the ``T`` pull-backs at a point, as there.
        loop: over the points: ``"vmap"``, all at once, the choice on accelerators;
            ``"unroll"``; ``"map"``, one point's activations at a time; ``"auto"`` chooses
            as ``strategy="auto"`` does.

    Returns:
        ``grads_fn(members, alphas, *args, **kwargs) -> (losses (W, T), grads)`` with
        ``members`` leaves ``(M, *p)``, ``alphas (W, M)`` and ``grads`` leaves
        ``(W, T, *p)``; ``args`` are those of ``losses_fn`` after the parameters, the same
        at every point. With ``has_aux``, ``((losses, aux), grads)``, ``aux`` stacked too.

    Raises:
        ValueError: for unknown options; when called, for alphas of another shape or off
            the simplex, or losses that are not a floating point vector.

    Examples:
        >>> def losses_fn(x):
        ...     return jnp.stack([jnp.sum((x - 1) ** 2), jnp.sum((x + 1) ** 2)])
        >>> members = jnp.array([[1.0], [-1.0]])
        >>> alphas = jnp.array([[1.0, 0.0], [0.5, 0.5]])
        >>> losses, grads = value_and_manifold_grads(losses_fn)(members, alphas)
        >>> print(losses, grads[..., 0])
        [[0. 4.]
         [1. 1.]] [[ 0.  4.]
         [-2.  2.]]
    """
    check_choice("loop", loop, STRATEGIES)
    at_params = value_and_task_grads(losses_fn, has_aux=has_aux, strategy=strategy)

    def grads_fn(
        members: ArrayTree, alphas: Any, *args: Any, **kwargs: Any
    ) -> tuple[Any, StackedTree]:
        alphas = jnp.asarray(check_alphas("alphas", alphas, count_members(members), 2))

        def at_point(alpha: Array) -> tuple[Any, StackedTree]:
            return at_params(member_mixture(members, alpha), *args, **kwargs)

        return stack_rows(at_point, alphas, loop)

    return grads_fn


def value_and_member_grad(
    losses_fn: LossesFn,
    num_tasks: int,
    has_aux: bool = False,
    *,
    strategy: str = "auto",
    loop: str = "auto",
    **options: Any,
) -> MemberGrad:
    """Creates functions that return losses and the members' gradients, cheaply.

    The same answer as :func:`value_and_manifold_grads` followed by
    :func:`mtl_jax.pareto.pareto_manifold`. But where the balance looks at no gradient
    (``"ls"``, ``"rwa"``, weightings of the losses), each point costs one pull-back instead
    of ``T``, and no ``W T`` gradients are held. With ``"ls"`` and no regulariser loops
    over the points hold one point's activations at a time.

    Args:
        losses_fn: as for :func:`mtl_jax.value_and_task_grads`.
        num_tasks: ``T``.
        has_aux: whether it returns a pair ``(losses, aux)``.
        strategy: of the ``T`` pull-backs, where there are any.
        loop: over the points, see :func:`value_and_manifold_grads`.
        options: as of :func:`mtl_jax.pareto.pareto_manifold`.

    Returns:
        :class:`MemberGrad`; ``value`` is ``losses (W, T)`` or ``(losses, aux)``, ``grads``
        are leaves ``(M, *p)``, for any optax optimiser of the stacked members.

    Raises:
        ValueError: as those two.

    Examples:
        >>> def losses_fn(x):
        ...     return jnp.stack([jnp.sum((x - 1) ** 2), jnp.sum((x + 1) ** 2)])
        >>> source = value_and_member_grad(losses_fn, 2, sampler=[[0.5, 0.5]])
        >>> members = jnp.array([[2.0], [0.0]])
        >>> losses, grads, state = source.update(source.init(members), members)
        >>> print(losses, grads[:, 0])
        [[0. 4.]] [1. 1.]
    """
    rule = make_manifold_rule(num_tasks, **options)
    grads_fn = value_and_manifold_grads(
        losses_fn, has_aux, strategy=strategy, loop=loop
    )

    def at_mixture(
        members: ArrayTree, alpha: Array, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        return losses_fn(member_mixture(members, alpha), *args, **kwargs)

    def by_tasks(
        state: ManifoldState, members: ArrayTree, *args: Any, **kwargs: Any
    ) -> tuple[Any, ArrayTree, ManifoldState]:
        value, grads = grads_fn(members, state.alphas, *args, **kwargs)
        losses = value[0] if has_aux else value
        grads, state = rule.apply(grads, state, losses)
        return value, grads, state

    if rule.balance.needs_grads:
        return MemberGrad(rule.init, by_tasks)
    return MemberGrad(
        rule.init, family_update(at_mixture, rule, has_aux, strategy, loop)
    )
