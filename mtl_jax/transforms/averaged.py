"""Methods on running averages of the task gradients: MoCo, DB-MTL."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax import tree
from mtl_jax._types import (
    Array,
    ArrayTree,
    StackedTree,
    State,
    Statistics,
    Weighting,
    check_num_tasks,
    check_range,
)
from mtl_jax.solvers.projection import safe_softmax
from mtl_jax.solvers.scaling import full_precision
from mtl_jax.transforms._base import transform_stack
from mtl_jax.weighting._base import gram_of, losses_of, stateless


class AveragedState(NamedTuple):
    """State of :func:`aggregate_average` and of the methods made with it."""

    weights: Array
    """The last task weights, of the average, ``(T,)``; ones before the first step."""
    average: StackedTree
    """Running average of the scaled task gradients, ``(T, *p)``, at least float32."""
    count: Array
    """Steps taken, int32 ``()``."""
    inner: State
    """State of the weighting."""


def aggregate_average(
    weighting: Weighting,
    scales_of: Callable[[Array, Array | None], Array],
    beta_of: Callable[[Array], Array],
) -> optax.GradientTransformationExtraArgs:
    r"""Aggregates a running average of the task gradients instead of the gradients.

    .. math:: Y_t \leftarrow \beta_k Y_t + (1 - \beta_k) s_t g_t, \qquad
              \Delta = \sum_t w_t(Y Y^\top) Y_t

    Args:
        weighting: sees the Gramian of the average, and the losses.
        scales_of: gradient norms ``(T,)`` and losses (or ``None``) -> ``s``, ``(T,)``.
        beta_of: number of the step, from 1, float ``()`` -> :math:`\beta_k`.

    Returns:
        A transformation from ``(T, *p)`` to ``(*p)``. The average lies in its state and
        takes as much memory as the task gradients. It is a momentum: follow it by an
        optimiser without another one, such as ``optax.adam(rate, b1=0)``; two averages in
        a row trained far worse (README, ``docs/results/embedded_averaged``).

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> from mtl_jax.transforms.averaged import aggregate_average
        >>> tx = aggregate_average(
        ...     mtl_jax.weighting.ls(2), lambda norms, losses: 1 / norms, lambda k: k / 2
        ... )
        >>> grads = jnp.array([[3.0, 0.0], [0.0, 0.5]])
        >>> print(tx.update(grads, tx.init(jnp.zeros(2)))[0])
        [0.5 0.5]
    """
    num_tasks = weighting.num_tasks

    def init(params: ArrayTree) -> AveragedState:
        return AveragedState(
            jnp.ones(num_tasks, tree.accumulator_dtype(params)),
            tree.stacked_zeros(params, num_tasks),
            jnp.zeros([], jnp.int32),
            weighting.init(),
        )

    def update(
        updates: StackedTree, state: State, losses: Array | None
    ) -> tuple[ArrayTree, State]:
        scales = scales_of(tree.task_norms(updates), losses)
        count = state.count + 1
        beta = beta_of(count.astype(scales.dtype))

        def moved(old: Array, new: Array) -> Array:
            wide = jnp.promote_types(old.dtype, new.dtype)
            factors = scales.astype(wide).reshape((-1,) + (1,) * (new.ndim - 1))
            fresh = (1 - beta).astype(wide) * factors * new.astype(wide)
            return (beta.astype(wide) * old.astype(wide) + fresh).astype(old.dtype)

        average = jax.tree.map(moved, state.average, updates)
        gram = tree.gram(average)
        weights, inner = weighting.update(Statistics(gram, losses), state.inner)
        combined = jax.tree.map(
            lambda leaf, like: leaf.astype(like.dtype),
            tree.combine(weights, average),
            updates,
        )
        weights = weights.astype(state.weights.dtype)
        return combined, AveragedState(weights, average, count, inner)

    return transform_stack(num_tasks, update, init)


def moco(
    num_tasks: int,
    *,
    beta: float = 0.5,
    beta_decay: float = 0.5,
    gamma: float = 0.1,
    gamma_decay: float = 0.5,
    rho: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Multi-objective gradient correction: tracks the gradients, then MGDA's weights.

    .. math:: Y_t \leftarrow Y_t - \beta_k (Y_t - L_t g_t / \|g_t\|), \qquad
              \lambda \leftarrow \mathrm{softmax}(\lambda
              - \gamma_k (Y Y^\top + \rho I) \lambda), \qquad
              \Delta = \sum_t \lambda_t Y_t

    with :math:`\beta_k = \beta k^{-a}`, :math:`\gamma_k = \gamma k^{-b}` at step ``k``.

    Args:
        num_tasks: number of tasks ``T``.
        beta: speed of the average in [0, 1].
        beta_decay: ``a``.
        gamma: step size of the weights.
        gamma_decay: ``b``.
        rho: regularisation of the weights.

    Returns:
        A transformation from ``(T, *p)`` to ``(*p)`` that needs the losses; its state
        holds ``Y``. As in LibMTL softmax stands for the projection on the simplex of the
        paper, so the weights stay near ``1/T``. Zero gradients count as zero (LibMTL adds
        1e-8 to the norms). Give task-specific parameters another method with
        ``optax.partition``. Follow it by an optimiser without momentum, see
        :func:`aggregate_average`.

    Raises:
        ValueError: for options out of range; from ``update``, for missing losses.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> tx = mtl_jax.moco(2)
        >>> grads, losses = jnp.array([[3.0, 0.0], [0.0, 0.5]]), jnp.array([2.0, 4.0])
        >>> update, state = tx.update(grads, tx.init(jnp.zeros(2)), losses=losses)
        >>> print(*(f"{x:.3f}" for x in (*update, *state.weights)))
        0.537 0.925 0.537 0.463

    References:
        Fernando et al., *Mitigating Gradient Bias in Multi-objective Learning*, 2022,
        arXiv:2210.12624
    """
    check_num_tasks(num_tasks)
    check_range("beta", beta, 0, 1)
    check_range("beta_decay", beta_decay, 0)
    check_range("gamma", gamma, 0)
    check_range("gamma_decay", gamma_decay, 0)
    check_range("rho", rho, 0)

    def init() -> MocoState:
        return MocoState(
            jnp.full(num_tasks, 1 / num_tasks, float), jnp.zeros([], float)
        )

    @full_precision
    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        gram = gram_of(statistics, num_tasks, "moco")
        count = state.count + 1
        rate = (gamma * count**-gamma_decay).astype(gram.dtype)
        point = state.point.astype(gram.dtype)
        point = safe_softmax(point - rate * (gram @ point + rho * point))
        return point, MocoState(point.astype(state.point.dtype), count)

    def scales_of(norms: Array, losses: Array | None) -> Array:
        losses = losses_of(Statistics(losses=losses), num_tasks, "moco")
        return jnp.where(norms > 0, losses / jnp.where(norms > 0, norms, 1), 0)

    return aggregate_average(
        Weighting(init, update, num_tasks),
        scales_of,
        lambda count: 1 - beta * count**-beta_decay,
    )


class MocoState(NamedTuple):
    """State of the weights of :func:`moco`."""

    point: Array
    """:math:`\\lambda`, float ``(T,)``."""
    count: Array
    """Steps taken, float ``()``."""


def db_mtl(
    num_tasks: int, *, beta: float = 0.9, beta_decay: float = 0.0
) -> optax.GradientTransformationExtraArgs:
    r"""Dual-balancing: logarithms balance the losses, equal lengths the gradients.

    .. math:: B_t \leftarrow \beta_k B_t + (1 - \beta_k) \nabla \log L_t, \qquad
              \Delta = \sum_t \frac{\max_s \|B_s\|}{\|B_t\|} B_t, \qquad
              \beta_k = \beta k^{-a}

    Args:
        num_tasks: number of tasks ``T``.
        beta: memory of the average in [0, 1); 0 keeps none.
        beta_decay: ``a``, how fast it forgets its memory.

    Returns:
        A transformation from ``(T, *p)`` to ``(*p)`` that needs positive losses; its state
        holds ``B``. The average starts at zero without correction, as in LibMTL: the
        first update is ``1 - beta`` of a full one. A loss that is not positive enters
        with its plain gradient; zero gradients count as zero (LibMTL adds 1e-8 to losses
        and norms). Give task-specific parameters another method with ``optax.partition``
        (LibMTL gives them the sum of the logarithms' gradients). Follow it by an optimiser
        without momentum, see :func:`aggregate_average`.

    Raises:
        ValueError: for options out of range; from ``update``, for missing losses.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> tx = mtl_jax.db_mtl(2, beta=0.0)
        >>> grads, losses = jnp.array([[3.0, 0.0], [0.0, 0.5]]), jnp.array([2.0, 4.0])
        >>> print(tx.update(grads, tx.init(jnp.zeros(2)), losses=losses)[0])
        [1.5 1.5]

    References:
        Lin et al., *Dual-Balancing for Multi-Task Learning*, 2023, arXiv:2308.12029
    """
    check_num_tasks(num_tasks)
    check_range("beta", beta, 0, 1, open_high=True)
    check_range("beta_decay", beta_decay, 0)

    def lengths_of(statistics: Statistics) -> Array:
        gram = gram_of(statistics, num_tasks, "db_mtl")
        norms = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
        return jnp.where(norms > 0, norms.max() / jnp.where(norms > 0, norms, 1), 0)

    def scales_of(norms: Array, losses: Array | None) -> Array:
        losses = losses_of(Statistics(losses=losses), num_tasks, "db_mtl")
        return (1 / jnp.where(losses > 0, losses, 1)).astype(norms.dtype)

    return aggregate_average(
        stateless(num_tasks, lengths_of),
        scales_of,
        lambda count: beta * count**-beta_decay,
    )
