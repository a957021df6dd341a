"""SDMGrad: MGDA's weights regularised towards a direction, from independent batches."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from mtl_jax._types import (
    Array,
    State,
    Statistics,
    Weighting,
    check_count,
    check_num_tasks,
    check_range,
)
from mtl_jax.solvers.projection import project_on_simplex
from mtl_jax.solvers.scaling import full_precision
from mtl_jax.weighting._base import cross_gram_of, static_weights
from mtl_jax.weighting.modo import SimplexState, simplex_center


def sdmgrad(
    num_tasks: int,
    *,
    pull: float = 0.3,
    learning_rate: float = 5.0,
    momentum: float = 0.5,
    steps: int = 20,
    preference: Sequence[float] | Array | None = None,
) -> Weighting:
    r"""Stochastic direction-oriented multi-objective gradient descent.

    Takes ``steps`` projected steps, with momentum from zero, on
    :math:`\tfrac12 \|J^\top (w + \lambda \pi)\|^2` over the simplex, and combines with
    :math:`(w + \lambda \pi) / (1 + \lambda)`. The product of the task gradients of two
    independent batches, divided by the squared mean of their norms, stands for the Gramian.

    Args:
        num_tasks: number of tasks ``T``.
        pull: :math:`\lambda \ge 0`; large values give the preferred direction, 0 MGDA.
        learning_rate: of the inner steps (LibMTL: 5; TorchJD: 10).
        momentum: of the inner steps.
        steps: how many inner steps; ``w`` persists between calls.
        preference: :math:`\pi`, ``T`` numbers; ``1/T`` each by default.

    Returns:
        A weighting for ``update(..., independent=(A, B))``, see :func:`mtl_jax.modo`;
        without them the batch at hand serves. The weights add up to 1 if the preference
        does. Inner steps as long as the published ones overshoot between faces of the
        simplex, which amplifies rounding errors: expect three equal digits, not six, from
        one device to another in float32.

    Raises:
        ValueError: for options out of range.

    Examples:
        >>> import jax.numpy as jnp, mtl_jax
        >>> weighting = mtl_jax.weighting.sdmgrad(2, pull=1.0)
        >>> statistics = mtl_jax.Statistics(jnp.diag(jnp.array([1.0, 1e4])))
        >>> print(weighting.update(statistics, weighting.init())[0])
        [0.75 0.25]

    References:
        Xiao, Ban & Ji, *Direction-oriented Multi-objective Learning*, 2023,
        arXiv:2305.18409
    """
    check_num_tasks(num_tasks)
    check_range("pull", pull, 0)
    check_range("learning_rate", learning_rate, 0, open_low=True)
    check_range("momentum", momentum, 0, 1, open_high=True)
    check_count("steps", steps, 1)
    given = static_weights("preference", preference, num_tasks, 1.0 / num_tasks)

    @full_precision
    def update(statistics: Statistics, state: State) -> tuple[Array, State]:
        product = cross_gram_of(statistics, num_tasks, "sdmgrad")
        pi = jnp.asarray(given, product.dtype)
        norms = jnp.sqrt(jnp.maximum(jnp.diagonal(product), 0))
        size = norms.mean()
        size = jnp.where(size > 0, size, 1)
        product = product / size / size

        def move(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            point, velocity = carry
            velocity = momentum * velocity + product @ (point + pull * pi)
            return project_on_simplex(point - learning_rate * velocity), velocity

        start = state.point.astype(product.dtype)
        point, _ = lax.fori_loop(0, steps, move, (start, jnp.zeros_like(start)))
        weights = (point + pull * pi) / (1 + pull)
        return weights, SimplexState(point.astype(state.point.dtype))

    return Weighting(lambda: simplex_center(num_tasks), update, num_tasks)
