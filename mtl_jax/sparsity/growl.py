"""GrOWL: the ordered weighted l1 norm of a layer's row norms, and its proximal operator."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from mtl_jax._types import Array, ArrayTree, check_choice, check_count, check_range
from mtl_jax.sparsity.pool import clip_top, pool_decreasing
from mtl_jax.sparsity.rows import LayersSpec, chosen_leaves, row_norms, to_rows

PATTERNS = ("spike", "linear", "two_part")
METHODS = ("auto", "pav", "spike")


def growl_theta(
    n: int, *, pattern: str = "spike", beta1: float = 0.8, beta2: float = 0.2
) -> np.ndarray:
    r"""Returns the weights :math:`\theta_1 \ge \dots \ge \theta_n \ge 0` of GrOWL.

    ============ ===================================================================
    pattern      weights
    ============ ===================================================================
    ``spike``    :math:`\theta_1 = \beta_1 + \beta_2`, then :math:`\beta_2`
    ``linear``   :math:`\theta_i = \beta_1 + \beta_2 (n - i) / n`
    ``two_part`` :math:`\theta_i = \beta_1 + \beta_2 (p - i + 1)` for :math:`i \le p`,
                 then :math:`\beta_2`, with :math:`p = \max(1, \lfloor n/2 \rfloor)`
    ============ ===================================================================

    Args:
        n: number of rows.
        pattern: one of the above; all published runs use ``spike``, 0.8 and 0.2.
        beta1: :math:`\beta_1 \ge 0`.
        beta2: :math:`\beta_2 \ge 0`.

    Returns:
        float64 ``(n,)``, a constant of NumPy.

    Raises:
        ValueError: for negative numbers, both zero, or an unknown pattern.

    Examples:
        >>> print(growl_theta(4))
        [1.  0.2 0.2 0.2]
        >>> print(growl_theta(4, pattern="linear"))
        [0.95 0.9  0.85 0.8 ]
        >>> print(growl_theta(4, pattern="two_part"))
        [1.2 1.  0.2 0.2]
    """
    check_count("n", n, 1)
    check_choice("pattern", pattern, PATTERNS)
    check_range("beta1", beta1, 0, np.inf, open_high=True)
    check_range("beta2", beta2, 0, np.inf, open_high=True)
    if beta1 + beta2 == 0:
        raise ValueError("beta1 and beta2 are both 0: the penalty would vanish")
    ranks = np.arange(1, n + 1)
    if pattern == "spike":
        return np.where(ranks == 1, beta1 + beta2, beta2)
    if pattern == "linear":
        return beta1 + beta2 * (n - ranks) / n
    half = max(1, n // 2)
    return np.where(ranks <= half, beta1 + beta2 * (half - ranks + 1), beta2)


def growl_penalty(rows: Array, theta: Any) -> Array:
    r"""Returns :math:`G(W) = \sum_i \theta_i \|w_{[i]}\|_2`, norms in falling order.

    The subgradient has :math:`\theta_{r(i)} w_i / \|w_i\|` for the row of rank ``r(i)``,
    and zero at a zero row. (The released code evaluates the penalty on detached weights,
    so that it has no gradient, and gives the largest weight to the smallest row.)

    Args:
        rows: ``(n, d)``.
        theta: ``(n,)``, see :func:`growl_theta`.

    Returns:
        ``()``, at least float32.

    Raises:
        ValueError: for shapes that do not fit, or weights that rise or are negative.

    Examples:
        >>> import jax.numpy as jnp
        >>> print(growl_penalty(jnp.array([[0.0, 2.0], [3.0, 4.0]]), growl_theta(2)))
        5.4
    """
    theta, _ = _check_theta(rows, theta)
    norms = row_norms(rows)
    order = jnp.argsort(-norms, stable=True)
    # Weights in the order of the rows, so that no sort has to be differentiated.
    weights = jnp.zeros_like(norms).at[order].set(jnp.asarray(theta, norms.dtype))
    return jnp.sum(weights * norms)


def growl_prox(
    rows: Array, theta: Any, *, step: float | Array = 1.0, method: str = "auto"
) -> Array:
    r"""Returns :math:`\arg\min_V \tfrac12 \|V - W\|_F^2 + \eta G(V)`, exactly.

    With the norms :math:`s` in falling order, :math:`\hat s` is the projection of
    :math:`s - \eta\theta` on the non-increasing sequences, clipped at zero, and
    :math:`w_i` becomes :math:`w_i \hat s_i / s_i`. For the pattern ``spike`` this is a
    soft threshold by :math:`\eta\beta_2`, then :math:`\eta\beta_1` in all taken off the
    largest norms. Directions and order of the rows are kept, small rows vanish first.
    (The released code's pooling is wrong in about 30 % of random cases and can erase the
    largest row.) A layer of 7200 rows takes about 2 ms on a busy CPU core, either way.

    Args:
        rows: ``W``, ``(n, d)``; :func:`jax.vmap` it over layers of one shape.
        theta: :math:`\theta`, ``(n,)``, see :func:`growl_theta`.
        step: :math:`\eta \ge 0`, scalar, may be traced.
        method: ``"pav"``, pooling of adjacent violators; ``"spike"``, the closed form (a
            traced ``theta`` must be one, unchecked); ``"auto"``, the closed form where
            ``theta`` is known to be a spike.

    Returns:
        ``(n, d)`` in the dtype of ``rows``.

    Raises:
        ValueError: for shapes that do not fit, weights that rise or are negative, a
            negative step, or a method that is unknown or does not fit the weights.

    Examples:
        >>> import jax.numpy as jnp
        >>> rows = jnp.array([[3.0], [-2.0], [1.0]])
        >>> print(growl_prox(rows, growl_theta(3))[:, 0])
        [ 2.  -1.8  0.8]

    References:
        Oswal et al., *Representational similarity learning with application to brain
        networks*, 2016; Hotegni et al., arXiv:2308.12243
    """
    check_choice("method", method, METHODS)
    check_range("step", step, 0)
    theta, spike = _check_theta(rows, theta)
    if method == "spike" and not spike and not isinstance(theta, Tracer):
        raise ValueError(
            "method='spike' needs weights that are equal from the second on, got "
            f"{theta.tolist()}; take method='pav'"
        )
    norms = row_norms(rows)
    amounts = jnp.asarray(theta, norms.dtype) * jnp.asarray(step, norms.dtype)
    order = jnp.argsort(-norms, stable=True)
    ordered = norms[order]
    if method == "spike" or (method == "auto" and spike):
        least = amounts[-1]
        shrunk = clip_top(jnp.maximum(ordered - least, 0), amounts[0] - least)
    else:
        shrunk = jnp.maximum(pool_decreasing(ordered - amounts), 0)
    shrunk = jnp.zeros_like(norms).at[order].set(shrunk, unique_indices=True)
    factors = jnp.where(norms > 0, shrunk / jnp.where(norms > 0, norms, 1), 0)
    return (rows * factors[:, None]).astype(rows.dtype)


def growl_loss(
    params: ArrayTree,
    layers: LayersSpec = None,
    *,
    pattern: str = "spike",
    beta1: float = 0.8,
    beta2: float = 0.2,
    scale: float = 1.0,
) -> Array:
    r"""Returns the sparsity objective :math:`L_0 = c \sum_l G(W_l)` of the chosen layers.

    For the monitored network it is of order 100 to 1000: give ``scale``, e.g. one over
    its first value, or it outweighs every other objective. Its gradient is a subgradient,
    which makes rows small but never zero: where rows shall vanish, give the objective's
    weight to :func:`mtl_jax.sparsity.growl` and wrap this value in
    :func:`jax.lax.stop_gradient`.

    Args:
        params: the parameters.
        layers: see ``LayersSpec``; stacked layers count one by one.
        pattern: see :func:`growl_theta`.
        beta1: see :func:`growl_theta`.
        beta2: see :func:`growl_theta`.
        scale: factor ``c``.

    Returns:
        ``()``.

    Raises:
        ValueError: if ``layers`` chooses nothing, and as :func:`growl_theta`.

    Examples:
        >>> import jax.numpy as jnp
        >>> params = {"dense": {"kernel": jnp.eye(4)}}
        >>> print(growl_loss(params, beta1=0.75, beta2=0.25))  # 1 + 3 * 0.25
        1.75
    """
    total = jnp.zeros([])
    for kernel in chosen_leaves(params, layers).values():
        rows = to_rows(kernel)
        theta = growl_theta(rows.shape[-2], pattern=pattern, beta1=beta1, beta2=beta2)
        if rows.ndim == 2:
            rows = rows[None]
        value = jax.vmap(lambda part, theta=theta: growl_penalty(part, theta))(rows)
        total = total + jnp.sum(value)
    return scale * total


def _check_theta(rows: Any, theta: Any) -> tuple[Any, bool]:
    """Returns ``theta`` as an array, and whether it is known to be a spike."""
    if jnp.ndim(rows) != 2 or jnp.shape(theta) != jnp.shape(rows)[:1]:
        raise ValueError(
            "rows must have shape (n, d) and theta (n,), got "
            f"{jnp.shape(rows)} and {jnp.shape(theta)}; see to_rows and growl_theta"
        )
    if isinstance(theta, Tracer):
        return theta, False
    theta = np.asarray(theta, np.float64)
    if not (theta >= 0).all() or not np.isfinite(theta).all():
        raise ValueError(f"theta must be finite and not negative, got {theta.tolist()}")
    if (np.diff(theta) > 0).any():
        raise ValueError(
            f"theta must not rise (the largest weight is that of the largest row), got "
            f"{theta.tolist()}"
        )
    return theta, bool((theta[1:] == theta[-1]).all())
