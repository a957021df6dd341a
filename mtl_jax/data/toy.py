"""The two-dimensional problem of Nash-MTL's Figure 1, in closed form."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from mtl_jax._types import Array

TOY_STARTS = np.array(
    [[-8.5, 7.5], [0.0, 0.0], [9.0, 9.0], [-7.5, -0.5], [9.0, -1.0]], np.float32
)
"""The five starting points of the figure, (5, 2)."""


def toy_losses(theta: Array, scale: float | Array = 0.1) -> Array:
    r"""Two losses with steep log valleys above ``y = 0`` and bowls below it.

    With :math:`\theta = (x, y)`, :math:`h = \tanh(-y)` and clamps from below,

    .. math::

        f_1 &= \log\max(|(-x - 7)/2 - h|, 5\cdot10^{-6}) + 6 \\
        f_2 &= \log\max(|(-x + 3)/2 + h + 2|, 5\cdot10^{-6}) + 6 \\
        q_{1,2} &= ((\mp x + 7)^2 + 0.1 (-y - 8)^2) / 10 - 20 \\
        c_{1,2} &= \max(\tanh(\pm y / 2), 0) \\
        \ell_1 &= s (f_1 c_1 + q_1 c_2), \quad \ell_2 = f_2 c_1 + q_2 c_2.

    The losses are negative near the front, so methods that take logarithms of losses
    do not apply. The paper's appendix prints ``- h`` in f₂; its code and its plots use
    ``+ h``, as here. At a clamp's kink the gradient passes in full, as in the released
    PyTorch code (``jnp.maximum`` would halve it): this matters at ``y = 0``, where one
    of the starting points lies.

    Args:
        theta: (2,), float32 or float64.
        scale: ``s``, of the first loss; 0.1 in the figure.

    Returns:
        losses (2,), of theta's type.

    References:
        Navon et al. 2022, arXiv 2202.01017, Figure 1 and Appendix B.

    >>> print(toy_losses(jnp.array([0.0, 0.0])))
    [0. 0.]
    """
    x, y = theta[0], theta[1]
    h = jnp.tanh(-y)
    f1 = jnp.log(_at_least(jnp.abs(0.5 * (-x - 7) - h), 5e-6)) + 6
    f2 = jnp.log(_at_least(jnp.abs(0.5 * (-x + 3) + h + 2), 5e-6)) + 6
    bowl = 0.1 * jnp.square(-y - 8)
    q1 = (jnp.square(-x + 7) + bowl) / 10 - 20
    q2 = (jnp.square(-x - 7) + bowl) / 10 - 20
    c1 = _at_least(jnp.tanh(0.5 * y), 0.0)
    c2 = _at_least(jnp.tanh(-0.5 * y), 0.0)
    return jnp.stack([scale * (f1 * c1 + q1 * c2), f2 * c1 + q2 * c2])


def toy_pareto_set(num: int = 101) -> np.ndarray:
    """Points of the Pareto set as the figure draws it: x in [-7, 7], y = -8.3552.

    The exact set bends slightly, from y = -8.3551 in the middle to -8.4345 at the ends;
    at the same x, no loss of a drawn point is more than 1e-4 above it (scale 1).

    Args:
        num: number of points, evenly spaced in x.

    Returns:
        float64 (num, 2).
    """
    return np.stack([np.linspace(-7, 7, num), np.full(num, -8.3552)], axis=1)


def _at_least(value: Array, low: float) -> Array:
    # Not jnp.maximum: its gradient is halved where both sides are equal.
    return jnp.where(value >= low, value, low)
