"""Weighted Chebyshev by proximal-linear steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax

from mtl_jax._types import (
    Array,
    State,
    Statistics,
    Weighting,
    check_choice,
    check_range,
)
from mtl_jax.pareto.chebyshev_parts import check_reference, make_objectives
from mtl_jax.solvers.scaling import full_precision
from mtl_jax.solvers.simplex_qp import SOLVERS, simplex_qp
from mtl_jax.transforms.aggregate import aggregate
from mtl_jax.weighting._base import gram_of, losses_of


class ChebyshevState(NamedTuple):
    """State of :func:`chebyshev`."""

    multipliers: Array
    """Multipliers of the last step's constraints, on the simplex, ``(T,)``; equal before
    the first."""
    fallbacks: Array
    """How often the solver failed, int32 ``()``: its last iterate was used, or equal
    multipliers where its input was not finite."""
    below_reference: Array
    """Steps in which a loss lay below its reference, int32 ``()``."""


def chebyshev(
    num_tasks: int,
    *,
    importance: Sequence[float] | Array | None = None,
    reference: float | Sequence[float] | Array = 0.0,
    epsilon: float | Array = 1e-4,
    step_size: float | Array = 0.1,
    solver: str = "auto",
) -> optax.GradientTransformationExtraArgs:
    r"""Minimises the modified weighted Chebyshev function by proximal-linear steps.

    .. math:: \min_x \max_i h_i(x), \qquad
        h_i = k_i \Big[(L_i - a_i) + \epsilon \sum_j (L_j - a_j)\Big]

    A step minimises the model :math:`\max_i \{h_i + \nabla h_i^\top d\} + \|d\|^2 /
    (2\eta)`. Its dual is a quadratic program on the simplex,

    .. math:: \min_{\lambda \in \Delta} \; \frac{\eta}{2}
        \Big\|\sum_i \lambda_i \nabla h_i\Big\|^2 - \lambda^\top h,

    and the update is :math:`\sum_i \lambda_i \nabla h_i = -d / \eta`: chain it before
    ``optax.sgd(step_size)``. Every Pareto optimum, in concave parts of a front, too, is
    the solution for some importance, and :math:`\epsilon > 0` leaves weakly optimal points
    out. Large :math:`\eta` favours descent for all objectives alike (MGDA's direction),
    small :math:`\eta` the worst one. With noisy losses take
    :func:`mtl_jax.chebyshev_al`, which averages over batches.

    Args:
        num_tasks: number of objectives ``T``.
        importance: :math:`k` on the simplex, ``T`` numbers or an array ``(T,)``, which may
            be traced; equal by default. Objectives with :math:`k_i = 0` are dropped.
        reference: :math:`a`, a number or ``T`` of them, below all values of the losses.
        epsilon: bound on the admitted rate of trade-off, >= 0.
        step_size: :math:`\eta > 0`, the learning rate of the SGD that follows.
        solver: of the program, see :func:`mtl_jax.solvers.simplex_qp`.

    Returns:
        ``optax.GradientTransformationExtraArgs``; ``update(task_grads, state, params,
        losses=losses)``. ``optax.tree.get(state, "multipliers")`` are the last
        :math:`\lambda`, ``"weights"`` the task weights made of them. Of
        :func:`chebyshev_weighting` it is the transformation: use that one in
        :func:`mtl_jax.aggregate` or :func:`mtl_jax.value_and_combined_grad`.

    Raises:
        ValueError: for an importance off the simplex and other bad numbers; from
            ``update`` (outside ``jit``) for a loss below its reference.

    Examples:
        >>> import jax, jax.numpy as jnp, mtl_jax, optax
        >>> def losses_fn(x):
        ...     return jnp.stack([x**2, (x - 1) ** 2])
        >>> tx = optax.chain(
        ...     mtl_jax.chebyshev(2, importance=[0.2, 0.8], epsilon=0.0), optax.sgd(0.1))
        >>> x = jnp.float32(0.0)
        >>> state = tx.init(x)
        >>> @jax.jit
        ... def step(x, state):
        ...     losses, grads = mtl_jax.value_and_task_grads(losses_fn)(x)
        ...     updates, state = tx.update(grads, state, x, losses=losses)
        ...     return optax.apply_updates(x, updates), state
        >>> for _ in range(60):
        ...     x, state = step(x, state)
        >>> print(f"{x:.4f}, {optax.tree.get(state, 'multipliers')[0]:.3f}")
        0.6667, 0.667

    References:
        Kaliszewski, *A modified weighted Tchebycheff metric*, 1987; Hotegni, Berkemeier
        and Peitz, 2023, arXiv:2308.12243; Drusvyatskiy and Paquette, *Efficiency of
        minimizing compositions*, arXiv:1605.00125
    """
    return aggregate(
        chebyshev_weighting(
            num_tasks,
            importance=importance,
            reference=reference,
            epsilon=epsilon,
            step_size=step_size,
            solver=solver,
        )
    )


def chebyshev_weighting(
    num_tasks: int,
    *,
    importance: Sequence[float] | Array | None = None,
    reference: float | Sequence[float] | Array = 0.0,
    epsilon: float | Array = 1e-4,
    step_size: float | Array = 0.1,
    solver: str = "auto",
) -> Weighting:
    """The weighting behind :func:`chebyshev`; it needs the Gramian and the losses."""
    objectives = make_objectives(num_tasks, importance, reference, epsilon)
    check_range("step_size", step_size, 0, open_low=True)
    check_choice("solver", solver, SOLVERS)

    def init() -> ChebyshevState:
        active = objectives.active()
        equal = active / jnp.sum(active, dtype=float)
        zero = jnp.zeros([], jnp.int32)
        return ChebyshevState(equal.astype(float), zero, zero)

    @full_precision
    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        gram = gram_of(statistics, num_tasks, "chebyshev")
        losses = losses_of(statistics, num_tasks, "chebyshev").astype(gram.dtype)
        below = check_reference(losses, objectives.reference)
        rows = objectives.jacobian(gram.dtype)
        solution = simplex_qp(
            step_size * (rows @ gram @ rows.T),
            objectives.values(losses),
            active=objectives.active(),
            solver=solver,
        )
        multipliers = solution.value.astype(state.multipliers.dtype)
        new = ChebyshevState(
            multipliers,
            state.fallbacks + (~solution.ok).astype(jnp.int32),
            state.below_reference + below.astype(jnp.int32),
        )
        return objectives.task_weights(solution.value), new

    return Weighting(init, update, num_tasks)
