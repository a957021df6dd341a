"""``pareto_expansion``: steps along the Pareto front as an optax transformation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.typing import ArrayLike

from mtl_jax import tree
from mtl_jax._types import (
    Array,
    ArrayTree,
    LossesFn,
    StackedTree,
    State,
    check_choice,
    check_range,
)
from mtl_jax.pareto.directions import check_objectives
from mtl_jax.pareto.hvp import hvp as hvp_at
from mtl_jax.pareto.smoothing import Smoothed, init_smoothed, smooth
from mtl_jax.pareto.tangents import GUESSES, SOLVERS, Matvec
from mtl_jax.pareto.tangents import Tangent as Tangent
from mtl_jax.pareto.tangents import correct_gradients as correct_gradients
from mtl_jax.pareto.tangents import stationarity as stationarity
from mtl_jax.pareto.tangents import tangent as tangent


class ExpansionState(NamedTuple):
    """State of :func:`pareto_expansion`."""

    weights: Array
    """The last (smoothed) weights alpha, ``(m,)``; ones before the first step."""
    residual: Array
    """Relative residual of the last solve, ``()``."""
    iterations: Array
    """Krylov iterations of the last solve, int32 ``()``."""
    stationarity: Array
    """How far from stationary the last point was, see :class:`Tangent`, ``()``."""
    fallbacks: Array
    """In how many steps no tangent was found, int32 ``()``."""
    smoothed: Smoothed
    """The moving averages."""


def pareto_expansion(
    num_tasks: int,
    *,
    beta: ArrayLike,
    correction: bool = True,
    momentum: float | Array = 0.0,
    heads: tree.HeadsSpec = None,
    solver: str = "minres",
    damping: float | Array = 0.0,
    maxiter: int = 50,
    tol: float | Array = 1e-5,
    x0: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Turns task gradients into steps along the Pareto front.

    The update is the unit vector :math:`v / \|v\|` of :func:`tangent`. Like a gradient it
    is subtracted: ``optax.chain(pareto_expansion(...), optax.sgd(0.1))`` moves the
    parameters by exactly 0.1, and with :math:`\beta = e_i` objective ``i`` falls.

    Args:
        num_tasks: number of objectives ``m >= 2``.
        beta: right-hand side ``(m,)``.
        correction: see :func:`correct_gradients`.
        momentum: :math:`\mu` in [0, 1) of the moving averages
            :math:`b \leftarrow \mu b + (1 - \mu)\,\mathrm{new}` of the gradients and of
            the weights, which are computed from the newest gradients. They begin as the
            first step's; non-finite gradients leave them as they were. The correction
            comes after the smoothing, with smoothed weights, so that
            :math:`\sum_i \alpha_i g_i' = 0` holds; the release corrects before it.
        heads: parameters that are held fixed, a bool mask or a path predicate (see
            ``tree.HeadsSpec``): their gradients are left out and their update is zero.
            A ``hvp=`` must be made with the same ``heads``.
        solver: ``"minres"`` or ``"cg"``, with ``damping``, ``maxiter``, ``tol`` and
            ``x0`` as in :func:`tangent`.
        damping: added to the Hessian's diagonal.
        maxiter: Krylov iterations at most.
        tol: relative residual at which they stop.
        x0: ``None``, ``"mean"`` or ``"minus_mean"``.

    Returns:
        A transformation from ``(m, *p)`` to ``(*p)``. ``update(task_grads, state, params,
        hvp=...)`` takes ``hvp(alpha) -> matvec``, or instead ``losses_fn=...``, a function
        from the parameters to ``(m,)`` losses whose Hessian is meant. Where there is no
        tangent the update is zero (see :func:`tangent`) and the state counts it:
        ``optax.tree.get(state, "fallbacks")``; likewise ``"weights"``, ``"residual"``,
        ``"iterations"``, ``"stationarity"``.

    Raises:
        ValueError: for one objective, a ``beta`` of another shape or not finite, options
            out of range; from ``update``, for gradients of the wrong shapes, or unless
            one of ``hvp`` and ``losses_fn`` is given.

    Examples:
        >>> import mtl_jax, optax
        >>> def losses_fn(x):
        ...     return jnp.stack([jnp.sum((x - 1) ** 2), jnp.sum((x + 1) ** 2)])
        >>> x = jnp.zeros(4)
        >>> tx = optax.chain(
        ...     pareto_expansion(2, beta=jnp.array([1.0, 0.0])), optax.sgd(0.2)
        ... )
        >>> _, task_grads = mtl_jax.value_and_task_grads(losses_fn)(x)
        >>> updates, state = tx.update(task_grads, tx.init(x), x, losses_fn=losses_fn)
        >>> print(optax.apply_updates(x, updates))  # towards the optimum of loss 1
        [0.1 0.1 0.1 0.1]

    References:
        Ma, Du and Matusik, *Efficient Continuous Pareto Exploration in Multi-Task
        Learning*, 2020, arXiv:2006.16434
    """
    check_objectives(num_tasks)
    check_choice("solver", solver, SOLVERS)
    check_range("momentum", momentum, 0, 1, open_high=True)
    check_range("damping", damping)
    if x0 is not None:
        check_choice("x0", x0, GUESSES)
    if jnp.shape(beta) != (num_tasks,):
        raise ValueError(
            f"beta must have one entry per objective, shape ({num_tasks},), got shape "
            f"{jnp.shape(beta)}"
        )
    if not isinstance(beta, Tracer) and not jnp.isfinite(jnp.asarray(beta)).all():
        raise ValueError(f"beta must be finite, got {beta}")

    def init_fn(params: ArrayTree) -> State:
        tree.resolve_heads(heads, params)
        dtype = tree.accumulator_dtype(params)
        return ExpansionState(
            weights=jnp.ones(num_tasks, dtype),
            residual=jnp.zeros([], dtype),
            iterations=jnp.zeros([], jnp.int32),
            stationarity=jnp.zeros([], dtype),
            fallbacks=jnp.zeros([], jnp.int32),
            smoothed=init_smoothed(momentum, num_tasks, params),
        )

    def update_fn(
        updates: StackedTree,
        state: State,
        params: ArrayTree | None = None,
        *,
        hvp: Callable[[Array], Matvec] | None = None,
        losses_fn: LossesFn | None = None,
        **extra_args: Any,
    ) -> tuple[ArrayTree, State]:
        del extra_args
        marks = tree.resolve_heads(heads, updates)
        tree.check_stacked(updates, num_tasks, marks)
        if marks is not None:
            updates = jax.tree.map(
                lambda leaf, mark: (
                    jnp.zeros((num_tasks, *leaf.shape[1:]), leaf.dtype)
                    if mark
                    else leaf
                ),
                updates,
                marks,
            )
        newest = stationarity(updates)
        smoothed, alpha, task_grads = smooth(
            momentum, state.smoothed, newest.value, updates
        )
        matvec = _hessian(hvp, losses_fn, params, alpha, heads)
        step = tangent(
            matvec,
            task_grads,
            jnp.asarray(beta),
            alpha=alpha,
            correction=correction,
            solver=solver,
            damping=damping,
            maxiter=maxiter,
            tol=tol,
            x0=x0,
        )
        failed = ~(step.ok & newest.ok)
        return step.direction, ExpansionState(
            weights=step.alpha.astype(state.weights.dtype),
            residual=step.residual.astype(state.residual.dtype),
            iterations=step.info.iterations,
            stationarity=step.stationarity.astype(state.stationarity.dtype),
            fallbacks=state.fallbacks + failed.astype(jnp.int32),
            smoothed=smoothed,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _hessian(
    hvp: Callable[[Array], Matvec] | None,
    losses_fn: LossesFn | None,
    params: ArrayTree | None,
    alpha: Array,
    heads: tree.HeadsSpec,
) -> Matvec:
    """The Hessian of the loss weighted by ``alpha``, from whichever argument is given."""
    if hvp is not None and losses_fn is None:
        return hvp(alpha)
    if losses_fn is None or hvp is not None:
        raise ValueError(
            "pareto_expansion needs the Hessian: pass either hvp= (alpha -> matvec) or "
            "losses_fn= (parameters -> losses) to update"
        )
    if params is None:
        raise ValueError("pareto_expansion needs params= in update to use losses_fn=")
    return hvp_at(losses_fn, params, alpha, heads=heads)
