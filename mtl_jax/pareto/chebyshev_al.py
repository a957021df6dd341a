"""Weighted Chebyshev by an augmented Lagrangian, from the losses alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax._types import (
    Array,
    State,
    Statistics,
    Weighting,
    check_choice,
    check_count,
    check_range,
)
from mtl_jax.pareto.chebyshev_parts import check_reference, make_objectives
from mtl_jax.solvers.projection import project_on_simplex
from mtl_jax.transforms.aggregate import aggregate
from mtl_jax.weighting._base import losses_of

MODES = ("inequality", "paper")


class ChebyshevAlState(NamedTuple):
    """State of :func:`chebyshev_al`."""

    t: Array
    """The bound :math:`t` of the last step, ``()``."""
    multipliers: Array
    """:math:`\\lambda`, ``(T,)``."""
    penalty: Array
    """:math:`\\mu`, ``()``."""
    total: Array
    """Sum of the constraints since the last outer update, ``(T,)``."""
    count: Array
    """Steps made, int32 ``()``."""
    below_reference: Array
    """Steps in which a loss lay below its reference, int32 ``()``."""
    t_optimizer: State
    """Adam's state for ``t``; empty in the mode ``"inequality"``."""


def chebyshev_al(
    num_tasks: int,
    *,
    importance: Sequence[float] | Array | None = None,
    reference: float | Sequence[float] | Array = 0.0,
    epsilon: float | Array = 1e-4,
    every: int = 100,
    penalty: float | None = None,
    growth: float = 2.0,
    max_penalty: float | None = None,
    mode: str = "inequality",
    t_learning_rate: float = 2.5e-3,
    t_decay: float = 0.5,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Minimises the modified weighted Chebyshev function by an augmented Lagrangian.

    The problem, with importance :math:`k` and reference point :math:`a`, is

    .. math:: \min_{x, t} t \;\text{ s.t. }\; H_i = h_i - t \le 0, \qquad
        h_i = k_i \Big[(L_i - a_i) + \epsilon \sum_j (L_j - a_j)\Big].

    The augmented Lagrangian of these inequalities is :math:`L_A = t + \frac1{2\mu} \sum_i
    [\max(0, \lambda_i + \mu H_i)^2 - \lambda_i^2]`. Its minimum over :math:`t` is known:
    the numbers :math:`m_i = \max(0, \lambda_i + \mu H_i)` are then the projection of
    :math:`\lambda + \mu h` on the simplex. So the update is :math:`\sum_i m_i \nabla h_i`,
    a weighted sum of the task gradients with positive weights, and ``t`` needs no learning
    rate. After ``every`` steps, with :math:`\bar h` their mean,

    .. math:: \lambda \leftarrow \operatorname{proj}_\Delta(\lambda + \mu \bar h), \qquad
        \mu \leftarrow \min(\text{max\_penalty}, \text{growth} \cdot \mu).

    It reaches concave parts of a front once :math:`\mu` makes :math:`L_A` convex there.
    Unlike :func:`mtl_jax.chebyshev` it needs no Gramian and averages noisy losses; any
    optimiser may follow.

    Args:
        num_tasks: number of objectives ``T``, a sparsity objective included.
        importance: :math:`k` on the simplex, ``T`` numbers or an array ``(T,)``, which may
            be traced; equal by default. Objectives with :math:`k_i = 0` are dropped.
        reference: :math:`a`, a number or ``T`` of them, below all values of the losses.
        epsilon: bound on the admitted rate of trade-off, >= 0.
        every: steps between outer updates.
        penalty: first :math:`\mu > 0`; by default 16, or 2.5e-8 as published.
        growth: factor of :math:`\mu`, >= 1.
        max_penalty: bound on :math:`\mu`; by default 64, or none as published. Too large
            a :math:`\mu` makes stiff problems of noisy batches.
        mode: ``"inequality"``, or ``"paper"``, what the release does: the Lagrangian of
            the *equalities* :math:`H_i = 0`, :math:`m = \lambda + \mu H` without signs or
            cap, :math:`\lambda = 1/T` at first and then :math:`\lambda + \mu \sum H`, the
            constraints *summed* over the batches, and ``t`` drawn from a normal
            distribution and trained by Adam. Dropped objectives stay, as :math:`-t = 0`.
            With the published :math:`\mu` this is linear weighting by :math:`k`: it ends
            in end points of concave fronts. (Two things differ from the release: it takes
            the sum over the epoch that was best in validation, and never clears the
            gradient of ``t``.)
        t_learning_rate: of ``t`` in the mode ``"paper"``.
        t_decay: factor of that after each outer update, 0.5 for MultiMNIST and 0.98 for
            Cifar10Mnist.
        seed: of the first ``t`` in that mode.

    Returns:
        ``optax.GradientTransformationExtraArgs``; ``update(task_grads, state, params,
        losses=losses)``. ``optax.tree.get(state, "multipliers")`` (also ``"t"``,
        ``"penalty"``, ``"weights"``) read the state. Of :func:`chebyshev_al_weighting`
        it is the transformation: use that one in :func:`mtl_jax.aggregate` or
        :func:`mtl_jax.value_and_combined_grad`, where it costs one backward pass.

    Raises:
        ValueError: for an importance off the simplex and other bad numbers; from
            ``update`` (outside ``jit``) for a loss below its reference.

    Examples:
        >>> import jax, jax.numpy as jnp, mtl_jax, optax
        >>> def losses_fn(x):
        ...     return jnp.stack([x**2, (x - 1) ** 2])
        >>> tx = optax.chain(mtl_jax.chebyshev_al(
        ...     2, importance=[0.2, 0.8], epsilon=0.0, every=20), optax.sgd(0.05))
        >>> x = jnp.float32(0.0)
        >>> state = tx.init(x)
        >>> @jax.jit
        ... def step(x, state):
        ...     losses, grads = mtl_jax.value_and_task_grads(losses_fn)(x)
        ...     updates, state = tx.update(grads, state, x, losses=losses)
        ...     return optax.apply_updates(x, updates), state
        >>> for _ in range(200):
        ...     x, state = step(x, state)
        >>> print(f"{x:.4f}, {optax.tree.get(state, 'multipliers')[0]:.3f}")
        0.6667, 0.667

    References:
        Hotegni, Berkemeier and Peitz, *Multi-Objective Optimization for Sparse Deep
        Multi-Task Learning*, 2023, arXiv:2308.12243
    """
    return aggregate(
        chebyshev_al_weighting(
            num_tasks,
            importance=importance,
            reference=reference,
            epsilon=epsilon,
            every=every,
            penalty=penalty,
            growth=growth,
            max_penalty=max_penalty,
            mode=mode,
            t_learning_rate=t_learning_rate,
            t_decay=t_decay,
            seed=seed,
        )
    )


def chebyshev_al_weighting(
    num_tasks: int,
    *,
    importance: Sequence[float] | Array | None = None,
    reference: float | Sequence[float] | Array = 0.0,
    epsilon: float | Array = 1e-4,
    every: int = 100,
    penalty: float | None = None,
    growth: float = 2.0,
    max_penalty: float | None = None,
    mode: str = "inequality",
    t_learning_rate: float = 2.5e-3,
    t_decay: float = 0.5,
    seed: int = 0,
) -> Weighting:
    """The weighting behind :func:`chebyshev_al`; it needs the losses only."""
    objectives = make_objectives(num_tasks, importance, reference, epsilon)
    check_choice("mode", mode, MODES)
    paper = mode == "paper"
    if penalty is None:
        penalty = 2.5e-8 if paper else 16.0
    if max_penalty is None:
        max_penalty = math.inf if paper else max(64.0, penalty)
    check_count("every", every, 1)
    check_range("penalty", penalty, 0, open_low=True)
    check_range("growth", growth, 1)
    check_range("max_penalty", max_penalty, penalty)
    check_range("t_learning_rate", t_learning_rate, 0)
    check_range("t_decay", t_decay, 0)
    optimizer = optax.scale_by_adam()

    def init() -> ChebyshevAlState:
        active = objectives.active()
        t = jax.random.normal(jax.random.key(seed), dtype=float) if paper else 0.0
        t, zero = jnp.asarray(t, float), jnp.zeros([], jnp.int32)
        counted = jnp.ones_like(active) if paper else active
        multipliers = counted / jnp.sum(counted, dtype=float)
        return ChebyshevAlState(
            t=t,
            multipliers=multipliers.astype(float),
            penalty=jnp.asarray(penalty, float),
            total=jnp.zeros(num_tasks, float),
            count=zero,
            below_reference=zero,
            t_optimizer=optimizer.init(t) if paper else (),
        )

    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        losses = losses_of(statistics, num_tasks, "chebyshev_al")
        below = check_reference(losses, objectives.reference)
        h = objectives.values(losses.astype(state.multipliers.dtype))
        if paper:
            multipliers, step = _paper_step(h, state)
        else:
            multipliers, level = _project(state.multipliers + state.penalty * h)
            step = {"t": level / state.penalty, "total": state.total + h}
        count = state.count + 1
        state = state._replace(
            count=count,
            below_reference=state.below_reference + below.astype(jnp.int32),
            **step,
        )
        due, outer = count % every == 0, _outer(state)
        state = jax.tree.map(lambda new, old: jnp.where(due, new, old), outer, state)
        return objectives.task_weights(multipliers).astype(losses.dtype), state

    def _project(target: Array) -> tuple[Array, Array]:
        """The active multipliers ``max(0, target - level)``, and the level."""
        active = objectives.active()
        top = jnp.max(jnp.where(active, target, -jnp.inf))
        # The level is at least the greatest less one: entries below that stay zero.
        projected = project_on_simplex(jnp.where(active, target, top - 2))
        return projected, top - jnp.max(projected)

    def _outer(state: ChebyshevAlState) -> ChebyshevAlState:
        """The state after an outer update; all numbers are of size ``T``."""
        if paper:
            multipliers = state.multipliers + state.penalty * state.total
        else:
            target = state.multipliers + state.penalty * (state.total / every)
            multipliers, _ = _project(target)
        return state._replace(
            multipliers=multipliers,
            penalty=jnp.minimum(growth * state.penalty, max_penalty),
            total=jnp.zeros_like(state.total),
        )

    def _paper_step(h: Array, state: ChebyshevAlState) -> tuple[Array, dict[str, Any]]:
        # Dropped objectives stay in the sums: without them nothing would hold t back.
        constraints = h - state.t
        multipliers = state.multipliers + state.penalty * constraints
        direction, inner = optimizer.update(
            1 - jnp.sum(multipliers), state.t_optimizer, state.t
        )
        rate = t_learning_rate * t_decay ** (state.count // every)
        t = state.t - rate * jnp.asarray(direction)
        total = state.total + constraints
        return multipliers, {"t": t, "total": total, "t_optimizer": inner}

    return Weighting(init, update, num_tasks)
