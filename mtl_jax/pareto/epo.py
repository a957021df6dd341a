"""EPO search: task weights that lead to the point of the front on a preference's ray."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mtl_jax import tree
from mtl_jax._types import Array, State, check_range
from mtl_jax.pareto.balancing import Points, Rule
from mtl_jax.solvers.linear_program import relaxing
from mtl_jax.solvers.scaling import check_gram, full_precision, scale_gram


@full_precision
def epo_weights(gram: Any, losses: Any, ray: Any, *, tolerance: float = 1e-4) -> Array:
    r"""Task weights of exact Pareto optimal search: equal :math:`r_t L_t`, then descent.

    With :math:`\hat l = r \odot L / \sum_t r_t L_t` the non-uniformity is
    :math:`\mu = \mathrm{KL}(\hat l \,\|\, 1/T)`, and :math:`a_t = r_t (\log(T \hat l_t)
    - \mu)` points along its gradient. For the Gramian ``C`` the weights ``w`` solve a
    linear program on the simplex:

    * balance, while :math:`\mu >` ``tolerance``: maximise :math:`w^\top C a`, subject to
      :math:`(C w)_t \ge (C a)_t` for the tasks with :math:`(C a)_t \le 0` and
      :math:`(C w)_t \ge 0` for that of the largest :math:`r_t L_t`; where no
      :math:`(C a)_t` is positive, :math:`C w \ge 0`. Losses below their share may rise.
    * descent, else: maximise :math:`1^\top C w` subject to :math:`C w \ge 0` and
      :math:`w^\top C a \ge \min(\max_t (C a)_t, 0)`, so that balance is kept.

    Args:
        gram: Gramian of the task gradients, ``(T, T)``, ``T <= 6``.
        losses: ``(T,)``, not negative (negative ones count as zero).
        ray: the preference ``(T,)``, not negative; a larger entry asks for a smaller
            loss. Entries below 1e-4 of the sum count as that.
        tolerance: of :math:`\mu`, > 0.

    Returns:
        ``(T,)``, not negative, sum 1, float32 or float64 as ``gram``. For input that is
        not finite the ray divided by its sum (equal weights, where that is not finite
        either). Not differentiable: gradients stop here.

    Raises:
        ValueError: for more than six tasks, shapes other than these, or a tolerance
            <= 0.

    The released hypernetworks solve the program on the host by GLPK, take the ray's
    weights where it is infeasible, and multiply the weights by ``T``. Here the vertices
    are tried, inside ``jit``; where descent is infeasible its last constraint goes, which
    always helps; and the weights sum to one like those of linear scalarisation.

    Examples:
        >>> gram, ray = jnp.eye(2), jnp.array([0.5, 0.5])
        >>> print(epo_weights(gram, jnp.array([3.0, 1.0]), ray))  # loss 1 is too large
        [1. 0.]
        >>> print(epo_weights(gram, jnp.array([2.0, 2.0]), ray))
        [0.5 0.5]

    References:
        Mahapatra and Rajan, *Multi-Task Learning with User Preferences: Gradient Descent
        with Controlled Ascent in Pareto Optimization*, ICML 2020; for hypernetworks
        Navon et al., 2020, arXiv:2010.04104
    """
    check_range("tolerance", tolerance, 0, open_low=True)
    gram = check_gram(lax.stop_gradient(jnp.asarray(gram)))
    dtype, num_tasks = gram.dtype, gram.shape[0]
    losses, ray = (
        lax.stop_gradient(jnp.asarray(vector, dtype)) for vector in (losses, ray)
    )
    if losses.shape != (num_tasks,) or ray.shape != (num_tasks,):
        raise ValueError(
            f"losses and ray must have shape ({num_tasks},) for a gram of shape "
            f"{gram.shape}, got {losses.shape} and {ray.shape}"
        )
    return _weights(gram, losses, ray, jnp.asarray(tolerance, dtype))


@jax.jit
def _weights(gram: Array, losses: Array, ray: Array, tolerance: Array) -> Array:
    dtype, num_tasks = gram.dtype, gram.shape[0]
    scaled = scale_gram(gram)
    ray, known = _shares(ray, 1e-4)
    finite = scaled.finite & jnp.isfinite(losses).all() & known
    parts = jnp.where(finite, jnp.maximum(losses, 0), 1)
    parts, _ = _shares(
        parts, 1e-12
    )  # no product of large losses and the ray may overflow
    weighted = ray * parts
    mu, slope = _non_uniformity(weighted, ray)

    # Variables z_t = w_t n_t / max(n) and rows divided by their norms: all of order one.
    largest = jnp.max(scaled.norms)
    sizes = jnp.where(scaled.nonzero, scaled.norms, 1) / jnp.where(
        largest > 0, largest, 1
    )
    sizes = jnp.where(scaled.nonzero, sizes, 1)
    sizes = jnp.maximum(sizes, float(jnp.finfo(dtype).tiny) ** 0.5)
    cosines = scaled.cosines
    along = cosines @ (sizes * slope)
    rounding = 8 * num_tasks * float(jnp.finfo(dtype).eps)
    along = jnp.where(
        jnp.abs(along) <= rounding * (jnp.abs(cosines) @ (sizes * jnp.abs(slope))),
        0,
        along,
    )
    unbalanced = mu > tolerance

    rising = along > 0
    limits = jnp.where(rising, -jnp.inf, along)
    limits = jnp.where(weighted == jnp.max(weighted), 0, limits)
    limits = jnp.where(unbalanced & rising.any(), limits, 0)
    keep = jnp.min(jnp.append(jnp.max(sizes * along), 0))
    bounds = jnp.append(limits, jnp.where(unbalanced, -jnp.inf, keep))
    matrix = jnp.concatenate([cosines, along[None]])
    objective = jnp.where(unbalanced, along, sizes @ cosines)
    objective = objective / jnp.maximum(jnp.max(jnp.abs(objective)), 1e-30)

    solution = relaxing(objective, 1 / sizes, matrix, bounds, num_tasks)
    weights = solution.value / sizes
    weights = weights / jnp.maximum(jnp.sum(weights), 1e-30)
    usable = finite & solution.ok & jnp.isfinite(weights).all()
    return jnp.where(usable, weights, ray)


def _shares(vector: Array, least: float) -> tuple[Array, Array]:
    """The vector divided by its sum, no share below ``least``; and whether it is finite.

    Equal shares where it is not, or nothing in it is positive.
    """
    known = jnp.isfinite(vector).all()
    vector = jnp.where(known, jnp.maximum(vector, 0), 0)
    vector = vector / jnp.where(vector.any(), jnp.max(vector), 1)
    total = jnp.sum(vector)
    equal = 1 / vector.shape[0]
    shares = jnp.where(total > 0, vector / jnp.where(total > 0, total, 1), equal)
    shares = jnp.maximum(shares, least)
    return shares / jnp.sum(shares), known


def _non_uniformity(weighted: Array, ray: Array) -> tuple[Array, Array]:
    """``mu`` and ``a``; the sum over pairs loses no digits near balance."""
    shares = weighted / jnp.sum(weighted)
    logs = jnp.log(shares)
    mu = shares @ (logs + jnp.log(1.0 * shares.shape[0]))
    return mu, ray * ((logs[:, None] - logs[None, :]) @ shares)


def epo_balance(tolerance: float = 1e-4) -> Rule:
    """The weights of :func:`epo_weights` at every point, as ``balance``.

    The ray is the point's preference; Gramians are those of the trained parameters, a
    hypernetwork's for example, as in the released code. Each point costs ``T``
    pull-backs. In the example loss 2 is too large, and loss 1 rises, but no faster than
    the direction of balance lets it: with all weight on loss 2 it would.

    Args:
        tolerance: of the non-uniformity, > 0.

    Returns:
        for ``balance`` of :func:`mtl_jax.pareto.value_and_family_grad`.

    Raises:
        ValueError: for a tolerance <= 0; when called, for more than six tasks.

    Examples:
        >>> from mtl_jax import pareto
        >>> def losses_fn(x, ray):
        ...     return jnp.stack([jnp.sum((x - 1) ** 2), jnp.sum((x + 1) ** 2)])
        >>> source = pareto.value_and_family_grad(
        ...     losses_fn, 2, balance=epo_balance(), sampler=[[0.5, 0.5]]
        ... )
        >>> x = jnp.array([0.5])
        >>> state = source.init(x)
        >>> _, _, state = jax.jit(source.update)(state, x)  # losses 0.25 and 2.25
        >>> [round(float(weight), 3) for weight in state.weights[0]]
        [0.42, 0.58]
    """
    check_range("tolerance", tolerance, 0, open_low=True)

    def update(points: Points, state: State) -> tuple[Array, State]:
        assert points.losses is not None and points.shared is not None

        def at_point(shared: list[Array], losses: Array, ray: Array) -> Array:
            return epo_weights(tree.gram(shared), losses, ray, tolerance=tolerance)

        weights = jax.vmap(at_point)(points.shared, points.losses, points.preferences)
        return weights, state

    return Rule(lambda dtype: (), update, needs_losses=True, needs_grads=True)
