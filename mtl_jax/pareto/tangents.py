"""Tangents of the Pareto set: one linear system with the Hessian of the weighted loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mtl_jax import tree
from mtl_jax._types import Array, ArrayTree, Solution, StackedTree, check_choice
from mtl_jax.pareto.directions import check_objectives
from mtl_jax.solvers import min_norm_point, vectors
from mtl_jax.solvers.krylov import (
    NEGATIVE_CURVATURE,
    NOT_FINITE,
    KrylovInfo,
    cg,
    minres,
)

Matvec = Callable[[ArrayTree], ArrayTree]
# Multiples of eps below which a right-hand side is taken for rounding.
_ROUNDING = 32
SOLVERS = ("minres", "cg")
GUESSES = ("mean", "minus_mean")


def stationarity(task_grads: StackedTree) -> Solution:
    r"""Weights that make the point as Pareto-stationary as it is.

    .. math:: \alpha = \arg\min_{\alpha \in \Delta} \|J^\top \alpha\|^2

    Args:
        task_grads: stacked gradients, leaves ``(m, *p)``.

    Returns:
        Solution of :func:`mtl_jax.solvers.min_norm_point`: ``value`` ``(m,)``, ``ok``,
        ``iterations``. The release clips the weights of two objectives to
        [0.001, 0.999]; here they reach 0 and 1.

    Examples:
        >>> print(stationarity(jnp.array([[0.75, 0.8], [-0.75, -0.8]])).value)
        [0.5 0.5]

    References:
        Ma, Du and Matusik, *Efficient Continuous Pareto Exploration in Multi-Task
        Learning*, 2020, arXiv:2006.16434
    """
    return min_norm_point(tree.gram(task_grads))


def correct_gradients(task_grads: StackedTree, alpha: Array) -> StackedTree:
    r"""Gradients of a near-stationary point as if it were stationary.

    .. math:: g_i' = g_i - J^\top \alpha, \qquad \sum_i \alpha_i g_i' = 0

    Args:
        task_grads: stacked gradients, leaves ``(m, *p)``.
        alpha: weights that sum to one, ``(m,)``, from :func:`stationarity`.

    Returns:
        Stacked tree, leaves ``(m, *p)`` of the same dtypes.

    Raises:
        ValueError: for gradients that are not stacked ``(m, *p)`` floating point leaves.

    Examples:
        >>> task_grads = jnp.array([[1.0, 1.0], [-1.0, 0.0]])
        >>> print(correct_gradients(task_grads, jnp.array([0.25, 0.75])))
        [[ 1.5   0.75]
         [-0.5  -0.25]]

    References:
        Ma, Du and Matusik, 2020, arXiv:2006.16434; ``grad_correction`` in its code
    """
    alpha = jnp.asarray(alpha)
    tree.check_stacked(task_grads, alpha.shape[0])
    common = tree.combine(alpha, task_grads)
    return jax.tree.map(lambda leaf, shift: leaf - shift[None], task_grads, common)


def relative_drift(task_grads: StackedTree, alpha: Array) -> Array:
    r"""Returns :math:`\|J^\top\alpha\| / \sum_i \alpha_i \|g_i\|`, in [0, 1], ``()``.

    One where the gradients are not finite.
    """
    drift = vectors.norm(tree.combine(alpha, task_grads))
    scale = alpha @ tree.task_norms(task_grads)
    ratio = drift / jnp.where(scale > 0, scale, 1)
    return jnp.where(jnp.isfinite(ratio), ratio, 1)


class Tangent(NamedTuple):
    """A direction along the Pareto set; see :func:`tangent`."""

    direction: ArrayTree
    """Leaves ``(*p)`` of unit Euclidean norm all together, or zeros; never NaN."""
    length: Array
    """Norm of the solution before it was scaled to one, ``()``."""
    alpha: Array
    """The weights of the Hessian and of the correction, ``(m,)``."""
    info: KrylovInfo
    """Iterations, residual norms and why the solver stopped."""
    ok: Array
    """Whether ``direction`` is a tangent, bool ``()``."""
    stationarity: Array
    r""":math:`\|J^\top\alpha\| / \sum_i \alpha_i \|g_i\|`: 0 at a stationary point, at
    most 1 anywhere, ``()``."""
    residual: Array
    """Norm of the system's residual relative to its right-hand side, ``()``."""
    hvps: Array
    """Hessian-vector products spent, int32 ``()``."""


def tangent(
    matvec: Matvec,
    task_grads: StackedTree,
    beta: ArrayLike,
    *,
    alpha: ArrayLike | None = None,
    correction: bool = True,
    solver: str = "minres",
    damping: float | Array = 0.0,
    maxiter: int = 50,
    tol: float | Array = 1e-5,
    x0: ArrayTree | str | None = None,
) -> Tangent:
    r"""Solves for a direction along which the point stays Pareto-stationary.

    .. math:: (H + \lambda I)\, v = J'^\top \beta, \qquad H = \sum_i \alpha_i \nabla^2 f_i

    Along a curve of stationary points
    :math:`H \dot x = -J^\top \dot\alpha`. To first order :math:`\alpha^\top J v = 0`, and
    with a positive definite ``H`` and :math:`\beta = e_i` moving along ``-v`` lowers
    :math:`f_i`. Without correction :math:`J' = J`. ``beta`` and
    :math:`\beta + c\,\alpha` ask for the same direction, so that ``m`` objectives have
    ``m - 1`` independent ones: :func:`mtl_jax.pareto.independent_directions`.

    What comes out in cases without a tangent is never NaN:

    * the right-hand side is rounding (``beta`` proportional to ``alpha``, zero gradients,
      an end of the front, where :math:`\alpha = \beta = e_i`), the gradients are not
      finite, the solution is zero or not finite: zero direction, ``ok=False``;
    * CG met negative curvature: the direction of its last iterate, as in the release
      (zero if there was none), ``ok=False``. MINRES needs no positive definite ``H``;
    * a start that is not near-stationary: with correction, a direction along which
      :math:`J^\top\alpha` stays what it is, parallel to the front; without it,
      :math:`\sum_i \beta_i` of Newton's steps on :math:`\alpha^\top f` are added, and
      ``beta = alpha`` is such a step alone. ``ok`` is true for both: judge by
      ``stationarity``.

    Args:
        matvec: ``H`` at the weights ``alpha``, tree to tree
            (:func:`mtl_jax.pareto.hvp`).
        task_grads: stacked gradients ``J``, leaves ``(m, *p)``.
        beta: right-hand side ``(m,)``, floating point.
        alpha: weights ``(m,)``; by default from :func:`stationarity`.
        correction: use :func:`correct_gradients`.
        solver: ``"minres"`` or ``"cg"``.
        damping: :math:`\lambda`, added to the diagonal of ``H``.
        maxiter: iterations at most. Stopping there is common practice, and ``ok``.
        tol: relative residual at which the solver stops.
        x0: where the solver starts: ``None``, zero; ``"mean"``, the mean of the
            (corrected) gradients, as the notebooks of the release do; ``"minus_mean"``,
            as its library does; or a tree ``(*p)``. All cost one more product, and what
            they have in the null space of a singular ``H`` stays in the direction.

    Returns:
        :class:`Tangent`.

    Raises:
        ValueError: for one objective only, shapes that do not fit, unknown options.

    Examples:
        >>> task_grads = jnp.array([[0.75, 0.8], [-0.75, -0.8]])
        >>> hessian = jnp.array([2.0, 2.5])  # diagonal
        >>> step = tangent(lambda v: hessian * v, task_grads, jnp.array([1.0, 0.0]))
        >>> print((step.direction * step.length).round(4), bool(step.ok))
        [0.375 0.32 ] True

    References:
        Ma, Du and Matusik, *Efficient Continuous Pareto Exploration in Multi-Task
        Learning*, 2020, arXiv:2006.16434
    """
    check_choice("solver", solver, SOLVERS)
    dtype = tree.accumulator_dtype(task_grads)
    beta = jnp.asarray(beta, dtype)
    if beta.ndim != 1:
        raise ValueError(
            f"beta must have one entry per objective, shape (m,), got {beta.shape}"
        )
    check_objectives(beta.shape[0])
    tree.check_stacked(task_grads, beta.shape[0])
    alpha = (
        stationarity(task_grads).value if alpha is None else jnp.asarray(alpha, dtype)
    )
    if alpha.shape != beta.shape:
        raise ValueError(
            f"alpha must have beta's shape {beta.shape}, got {alpha.shape}"
        )

    def combine(coefficients: Array) -> ArrayTree:
        """``J'`` combined; the corrected gradients need not be formed."""
        if correction:
            coefficients = coefficients - jnp.sum(coefficients) * alpha
        return tree.combine(coefficients, task_grads)

    rhs = combine(beta)
    size = vectors.norm(rhs)
    # What the terms' rounding may leave of a sum that is zero.
    terms = jnp.abs(beta) + (jnp.abs(jnp.sum(beta)) * alpha if correction else 0)
    rounding = _ROUNDING * float(jnp.finfo(dtype).eps)
    rounding = rounding * (terms @ tree.task_norms(task_grads))
    sound = (size > rounding) & jnp.isfinite(size)
    rhs = vectors.select(sound, rhs, vectors.zeros(rhs))
    if isinstance(x0, str):
        check_choice("x0", x0, GUESSES)
        share = (1 if x0 == "mean" else -1) / beta.shape[0]
        x0 = combine(jnp.full_like(beta, share))

    solve = minres if solver == "minres" else cg
    value, info = solve(matvec, rhs, x0=x0, damping=damping, maxiter=maxiter, tol=tol)
    length = vectors.norm(value)
    sound = sound & (length > 0) & jnp.isfinite(length) & (info.stop != NOT_FINITE)
    direction = vectors.divide(value, length)
    return Tangent(
        direction=vectors.select(sound, direction, vectors.zeros(direction)),
        length=jnp.where(sound, length, 0),
        alpha=alpha,
        info=info,
        ok=sound & (info.stop != NEGATIVE_CURVATURE),
        stationarity=relative_drift(task_grads, alpha),
        residual=jnp.where(sound, info.residual_norm / jnp.where(sound, size, 1), 0),
        hvps=info.iterations + (0 if x0 is None else 1),
    )
