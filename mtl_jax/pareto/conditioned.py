"""Networks with the preference as an input: COSMOS, and what such networks share."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mtl_jax._types import Array, State, check_count, check_range
from mtl_jax.pareto.balancing import Points, Rule


def cosmos_objective(losses: Any, ray: Any, penalty: float | Array = 1.0) -> Array:
    r"""Returns COSMOS' scalar loss at one preference.

    .. math:: \sum_t r_t L_t - \lambda \frac{L \cdot r}{\|L\|\,\|r\|}

    The cosine draws the losses towards the ray, so that the front is spread out; it does
    not see their length. Where a norm is zero, the cosine is zero and so is its gradient.

    Args:
        losses: ``(T,)``, floating point, differentiable.
        ray: :math:`r`, the preference, ``(T,)``.
        penalty: :math:`\lambda \ge 0`; the paper has 1 to 8 (8 for MultiMNIST, census).

    Returns:
        scalar, in the dtype of ``losses``.

    Raises:
        ValueError: for shapes other than these, or a negative penalty.

    Examples:
        >>> print(cosmos_objective(jnp.array([3.0, 4.0]), jnp.array([1.0, 0.0]), 10.0))
        -3.0

    References:
        Ruchte and Grabocka, *Scalable Pareto Front Approximation for Deep Multi-Objective
        Learning*, 2021, arXiv:2103.12718
    """
    check_range("penalty", penalty, 0)
    losses = jnp.asarray(losses)
    ray = jnp.asarray(ray, losses.dtype)
    if losses.ndim != 1 or losses.shape != ray.shape:
        raise ValueError(
            f"losses and ray must both have shape (T,), got {losses.shape} and {ray.shape}"
        )
    return ray @ losses - penalty * _cosine(losses, ray)


def _cosine(losses: Array, ray: Array) -> Array:
    """Their cosine; squares stay in the dtype's range, and zeros have gradient zero."""

    def unit(vector: Array) -> Array:
        largest = lax.stop_gradient(jnp.max(jnp.abs(vector)))
        vector = vector / jnp.where(largest > 0, largest, 1)
        square = vector @ vector
        return vector * lax.rsqrt(jnp.where(square > 0, square, 1))

    return unit(losses) @ unit(ray)


def cosmos_balance(penalty: float | Array = 1.0) -> Rule:
    r"""The weights that descend on :func:`cosmos_objective`, as ``balance``.

    They are its derivatives in the losses, :math:`c_t = r_t - \lambda\,
    \partial \cos(L, r) / \partial L_t`, so each point costs one pull-back. They may be
    negative: the loss of a task that is far below its share of the ray may rise.

    Args:
        penalty: :math:`\lambda \ge 0`.

    Returns:
        for ``balance`` of :func:`mtl_jax.pareto.value_and_family_grad`.

    Raises:
        ValueError: for a negative penalty.

    Examples:
        >>> from mtl_jax import pareto
        >>> def losses_fn(params, ray):  # a network that takes the ray
        ...     return (params @ ray - jnp.array([0.0, 1.0])) ** 2
        >>> source = pareto.value_and_family_grad(
        ...     losses_fn, 2, balance=cosmos_balance(2.0), sampler=[[0.5, 0.5]]
        ... )
        >>> params = jnp.array([0.5, 1.5])
        >>> losses, grads, state = source.update(source.init(params), params)
        >>> print(losses, state.weights > 0)  # the second loss is to rise
        [[1. 0.]] [[ True False]]
    """
    check_range("penalty", penalty, 0)

    def update(points: Points, state: State) -> tuple[Array, State]:
        assert points.losses is not None
        slopes = jax.vmap(jax.grad(cosmos_objective), (0, 0, None))
        return slopes(points.losses, points.preferences, penalty), state

    return Rule(lambda dtype: (), update, needs_losses=True, needs_grads=False)


def append_ray(inputs: Any, ray: Any) -> Array:
    """Appends the ray to the inputs of a network, as features or constant channels.

    Args:
        inputs: ``(B, ..., F)``, floating point: rows ``(B, F)``, pictures
            ``(B, height, width, channels)``.
        ray: ``(T,)``.

    Returns:
        ``(B, ..., F + T)``, in the dtype of ``inputs``.

    Raises:
        ValueError: for other shapes.

    The released COSMOS does so with rows, and feeds pictures a ray that two transposed
    convolutions have learnt to spread: :class:`mtl_jax.models.RayChannels`. Constant
    channels have no parameters and carry the same numbers.

    Examples:
        >>> print(append_ray(jnp.zeros((2, 1)), jnp.array([0.25, 0.75])))
        [[0.   0.25 0.75]
         [0.   0.25 0.75]]

    References:
        Ruchte and Grabocka, 2021, arXiv:2103.12718
    """
    inputs = jnp.asarray(inputs)
    ray = jnp.asarray(ray, inputs.dtype)
    if inputs.ndim < 2 or ray.ndim != 1:
        raise ValueError(
            "inputs must have shape (B, ..., F) and ray (T,), got "
            f"{inputs.shape} and {ray.shape}"
        )
    constant = jnp.broadcast_to(ray, (*inputs.shape[:-1], ray.shape[0]))
    return jnp.concatenate([inputs, constant], axis=-1)


def circle_rays(num_points: int = 11, margin: float = 0.1) -> np.ndarray:
    """Returns preferences of two tasks at even angles, for evaluation.

    Points of the quarter circle with angles from ``margin`` to ``pi/2 - margin``, divided
    by their sums, from the first task to the second. What the release of Pareto manifold
    learning evaluates COSMOS and hypernetworks at: neither is at home at the very ends.

    Args:
        num_points: ``N >= 2``.
        margin: of the angles, in radians, in ``[0, pi/4)``.

    Returns:
        float64 ``(N, 2)`` on the simplex.

    Raises:
        ValueError: for other numbers.

    Examples:
        >>> print(circle_rays(3).round(3))
        [[0.909 0.091]
         [0.5   0.5  ]
         [0.091 0.909]]
    """
    check_count("num_points", num_points, 2)
    check_range("margin", margin, 0, math.pi / 4, open_high=True)
    angles = np.linspace(margin, math.pi / 2 - margin, num_points)
    rays = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return rays / rays.sum(axis=1, keepdims=True)
