"""One iteration of MINRES and one of CG, for a first residual of norm one."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from mtl_jax._types import Array, ArrayTree
from mtl_jax.solvers import vectors
from mtl_jax.solvers.krylov_loop import (
    LEAST_SQUARES,
    NEGATIVE_CURVATURE,
    NOT_FINITE,
    RUNNING,
    Loop,
    Matvec,
    Step,
    Target,
)
from mtl_jax.tree import accumulator_dtype


class MinresState(NamedTuple):
    """Paige and Saunders' recurrences, with SciPy's names."""

    v: ArrayTree
    """Lanczos vector of this iteration ..."""
    v_old: ArrayTree
    """... and of the one before."""
    w: ArrayTree
    """The last direction of the solution ..."""
    w_old: ArrayTree
    """... and the one before."""
    beta: Array
    """Entry of the tridiagonal matrix between ``v_old`` and ``v``."""
    dbar: Array
    """What the last rotation left above the diagonal ..."""
    epsln: Array
    """... and above that."""
    cs: Array
    """Cosine of the last plane rotation ..."""
    sn: Array
    """... and its sine."""
    a_norm: Array
    """Norm of the longest column of the tridiagonal matrix: at most ``|A|``."""


def minres_start(v: ArrayTree) -> MinresState:
    """Returns the state before the first iteration for the first Lanczos vector."""
    zero = jnp.zeros((), accumulator_dtype(v))
    none = vectors.zeros(v)
    return MinresState(
        v=v,
        v_old=none,
        w=none,
        w_old=none,
        beta=zero,
        dbar=zero,
        epsln=zero,
        cs=zero - 1,
        sn=zero,
        a_norm=zero,
    )


def minres_step(matvec: Matvec, loop: Loop, target: Target) -> Step:
    """One Lanczos step, one plane rotation, one update of the solution."""
    old: MinresState = loop.state
    y = vectors.add_scaled(matvec(old.v), -old.beta, old.v_old)
    alfa = vectors.inner(old.v, y)
    y = vectors.add_scaled(y, -alfa, old.v)
    beta = vectors.norm(y)
    column = jnp.hypot(jnp.hypot(old.beta, alfa), beta)
    a_norm = jnp.maximum(old.a_norm, column)

    # The rotation before turns the new column into delta, gbar; this one zeroes beta.
    delta = old.cs * old.dbar + old.sn * alfa
    gbar = old.sn * old.dbar - old.cs * alfa
    dbar = -old.cs * beta
    gamma = jnp.hypot(gbar, beta)
    safe = jnp.where(gamma > 0, gamma, 1)
    cs, sn = gbar / safe, jnp.minimum(beta / safe, 1)
    residual = sn * loop.residual

    w = vectors.add_scaled(old.v, -old.epsln, old.w_old)
    w = vectors.divide(vectors.add_scaled(w, -delta, old.w), gamma)
    x = vectors.add_scaled(loop.x, cs * loop.residual, w)

    # |A r| / |r| before this step: if it is small, the step would divide by it.
    slope = jnp.hypot(gbar, dbar)
    exhausted = slope <= target.rounding * a_norm
    flat = (slope <= target.slope * a_norm) & (residual > target.residual)
    # Rounding may hide that: the rounding of A x alone would exceed the first residual.
    x_norm = vectors.norm(x)
    runaway = target.rounding * a_norm * x_norm >= 1
    finite = jnp.isfinite(alfa) & jnp.isfinite(beta) & jnp.isfinite(x_norm)
    verdict = jnp.where(exhausted | flat | runaway, LEAST_SQUARES, RUNNING)
    # r.A r / r.r before this step is -cs gbar (Liu and Roosta).
    curvature = -old.cs * gbar
    return Step(
        x=x,
        state=MinresState(
            v=vectors.divide(y, beta),
            v_old=old.v,
            w=w,
            w_old=old.w,
            beta=beta,
            dbar=dbar,
            epsln=old.sn * beta,
            cs=cs,
            sn=sn,
            a_norm=a_norm,
        ),
        residual=residual,
        verdict=jnp.where(finite, verdict, NOT_FINITE),
        negative_curvature=finite & (curvature < -target.rounding * a_norm),
    )


class CgState(NamedTuple):
    """The usual recurrences, with the search direction divided by its length."""

    r: ArrayTree
    """Residual."""
    p: ArrayTree
    """Search direction, of length one: squares of its entries do not underflow."""
    p_norm: Array
    """The length that it would have."""


def cg_start(v: ArrayTree) -> CgState:
    """Returns the state before the first iteration for the first residual."""
    return CgState(r=v, p=v, p_norm=jnp.ones((), accumulator_dtype(v)))


def cg_step(matvec: Matvec, loop: Loop, target: Target) -> Step:
    """One step along the search direction, and the next direction."""
    old: CgState = loop.state
    image = matvec(old.p)
    curvature = vectors.inner(old.p, image)
    length = vectors.norm(image)
    negative = curvature <= target.rounding * length

    step = loop.residual * (loop.residual / old.p_norm)
    step = step / jnp.where(negative, 1, curvature)
    x = vectors.add_scaled(loop.x, step, old.p)
    r = vectors.add_scaled(old.r, -step, image)
    residual = vectors.norm(r)
    growth = jnp.square(residual / loop.residual)
    p = vectors.add_scaled(r, growth * old.p_norm, old.p)
    p_norm = vectors.norm(p)
    verdict = jnp.where(negative, NEGATIVE_CURVATURE, RUNNING)
    finite = jnp.isfinite(curvature) & jnp.isfinite(length)
    finite = finite & (negative | (jnp.isfinite(residual) & vectors.all_finite(x)))
    return Step(
        x=x,
        state=CgState(r, vectors.divide(p, p_norm), p_norm),
        residual=residual,
        verdict=jnp.where(finite, verdict, NOT_FINITE),
        negative_curvature=finite & negative,
    )
