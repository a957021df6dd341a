"""MINRES and CG on pytrees, each one ``lax.while_loop``: no host round trip in a solve."""

from __future__ import annotations

from mtl_jax._types import Array, ArrayTree
from mtl_jax.solvers.krylov_loop import CONVERGED as CONVERGED
from mtl_jax.solvers.krylov_loop import LEAST_SQUARES as LEAST_SQUARES
from mtl_jax.solvers.krylov_loop import MAXITER as MAXITER
from mtl_jax.solvers.krylov_loop import NEGATIVE_CURVATURE as NEGATIVE_CURVATURE
from mtl_jax.solvers.krylov_loop import NOT_FINITE as NOT_FINITE
from mtl_jax.solvers.krylov_loop import KrylovInfo as KrylovInfo
from mtl_jax.solvers.krylov_loop import Matvec, solve
from mtl_jax.solvers.krylov_steps import cg_start, cg_step, minres_start, minres_step


def minres(
    matvec: Matvec,
    b: ArrayTree,
    *,
    x0: ArrayTree | None = None,
    damping: float | Array = 0.0,
    maxiter: int = 50,
    tol: float | Array = 1e-5,
) -> tuple[ArrayTree, KrylovInfo]:
    r"""Solves ``(A + damping I) x = b`` for a symmetric ``A``, definite or not, by MINRES.

    .. math:: x_k = \arg\min_{x \in x_0 + K_k(A, r_0)} \|b - (A + \lambda I) x\|

    Paige and Saunders' recurrences, five vectors of memory. The iterates equal those of
    ``scipy.sparse.linalg.minres`` (1e-8 in float64 on definite, indefinite and consistent
    singular systems); what differs is the end:

    * it stops when ``|r| <= max(tol, 16 eps) |b|``; SciPy when ``|r| <= tol |A| |x|``
      with estimates of both norms, where ``|x|`` includes ``x0``;
    * it stops (``LEAST_SQUARES``) when ``|A r| <= max(tol, 256 eps) |A| |r|`` as SciPy
      does, but keeps the iterate with this small ``|A r|``. SciPy takes one step more,
      which divides by it: a large multiple of a null vector on inconsistent systems. It
      also stops before an iterate with ``16 eps |A| |x| >= |r_0|``, too long for the
      dtype;
    * there is no stop by an estimated condition number, and no absolute constant: ``b``,
      and likewise ``A``, may be of any scale whose numbers the dtype can hold.

    From zeros, the solution of a consistent singular system is the one of least norm. That
    of an inconsistent one is a least-squares solution, but keeps a multiple of the
    residual ``r``; ``x - (r.x / r.r) r`` is the one of least norm.

    Args:
        matvec: ``v -> A v``, linear and symmetric, on pytrees shaped like ``b``. It must
            be the same ``A`` in every call: one fixed batch, not a new one. What it
            closes over is computed once, outside the loop.
        b: pytree of floating point leaves ``(*p)``.
        x0: where to start, like ``b``; zeros by default. If ``A`` is singular, its part in
            the null space stays in the solution.
        damping: the multiple of the identity added to ``A``, ``()``; negative shifts are
            allowed.
        maxiter: bound on the iterations; fixes the length of the history.
        tol: relative residual at which to stop, ``()``.

    Returns:
        ``(x, info)`` with ``x`` like ``b``. Vectors are kept and inner products
        accumulated in float32, or in float64 for float64 leaves; ``matvec`` gets, and
        ``x`` has, the dtypes of ``b``.

        * ``info.residual_norm`` is the recurrence's estimate, which never grows. The
          true residual follows it down to about ``eps |A| |x|`` (in float32 to six digits
          over 150 iterations on a LeNet's Hessian); nearer to that bound the estimate
          goes on falling alone, so compute ``b - A x`` where it matters.
        * ``info.negative_curvature`` tells, at no cost, whether a residual with
          ``r.A r < 0`` was met, hence that ``A + damping I`` is not positive
          semi-definite. It stops nothing.
        * A zero ``b`` gives zeros, whatever ``x0``.

        Nothing returned is NaN: where ``b``, ``x0``, ``matvec`` or the next iterate is
        not finite, ``x`` is the last finite iterate and ``info.stop`` is ``NOT_FINITE``
        (``x0`` or zeros, with an infinite residual, if there is no first residual).

    Raises:
        ValueError: when ``x0`` or ``matvec(b)`` has another structure or other shapes
            than ``b`` (naming the leaf), for leaves that are not floating point, and for
            ``maxiter < 1`` or ``tol < 0``.

    >>> import jax.numpy as jnp
    >>> matrix = jnp.diag(jnp.array([2.0, -1.0, 0.0]))
    >>> x, info = minres(lambda v: matrix @ v, jnp.array([2.0, 3.0, 0.0]))
    >>> print(x.round(4), info.iterations, info.stop == CONVERGED)
    [ 1. -3.  0.] 2 True

    References:
        Paige and Saunders, Solution of sparse indefinite systems of linear equations,
        SIAM J. Numer. Anal. 12 (1975) 617-629; Liu and Roosta, MINRES: from negative
        curvature detection to monotonicity properties, arXiv:2205.07189; Liu, Milzarek
        and Roosta, Obtaining pseudo-inverse solutions with MINRES, arXiv:2309.17096; as
        used by Ma, Du and Matusik, arXiv:2006.16434.
    """
    return solve(
        minres_start,
        minres_step,
        matvec,
        b,
        x0=x0,
        damping=damping,
        maxiter=maxiter,
        tol=tol,
    )


def cg(
    matvec: Matvec,
    b: ArrayTree,
    *,
    x0: ArrayTree | None = None,
    damping: float | Array = 0.0,
    maxiter: int = 50,
    tol: float | Array = 1e-5,
) -> tuple[ArrayTree, KrylovInfo]:
    r"""Solves ``(A + damping I) x = b``, ``A`` positive definite, by conjugate gradients.

    Each iteration steps to the minimum of :math:`\frac12 x^\top A x - b^\top x` along a
    direction ``p`` conjugate to those before. Where ``p.A p <= 0`` there is none: CG stops
    with ``NEGATIVE_CURVATURE`` and returns the iterate of the iteration before. The
    release of Ma, Du and Matusik tests the squared absolute residual instead of
    ``|r| <= max(tol, 16 eps) |b|``, and its CG cannot be run.

    Args:
        matvec: ``v -> A v``, linear and symmetric; see :func:`minres`, also for the rest.
        b: pytree of floating point leaves ``(*p)``.
        x0: where to start, like ``b``; zeros by default.
        damping: the multiple of the identity added to ``A``, ``()``.
        maxiter: bound on the iterations; fixes the length of the history.
        tol: relative residual at which to stop, ``()``.

    Returns:
        ``(x, info)`` as from :func:`minres`, but the residual norms, those of the
        recurrence ``r - step A p``, need not fall. ``info.negative_curvature`` says that
        ``info.stop`` is ``NEGATIVE_CURVATURE``: ``A + damping I`` is not positive
        definite on the directions searched, up to rounding.

    Raises:
        ValueError: as :func:`minres`.

    >>> import jax.numpy as jnp
    >>> matrix = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    >>> x, info = cg(lambda v: matrix @ v, jnp.array([3.0, 0.0]))
    >>> print(x.round(4), info.iterations)
    [ 2. -1.] 2
    >>> _, info = cg(lambda v: -v, jnp.ones(2))
    >>> print(info.stop == NEGATIVE_CURVATURE)
    True

    References:
        Hestenes and Stiefel, Methods of conjugate gradients for solving linear systems,
        J. Res. Natl. Bur. Stand. 49 (1952) 409-436.
    """
    return solve(
        cg_start,
        cg_step,
        matvec,
        b,
        x0=x0,
        damping=damping,
        maxiter=maxiter,
        tol=tol,
    )
