"""Low-rank members: one shared network and a small difference of each member from it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mtl_jax import tree
from mtl_jax._types import Array, ArrayTree, check_count
from mtl_jax.pareto.members import count_members
from mtl_jax.pareto.simplex_samplers import check_alphas
from mtl_jax.solvers.vectors import as_vector


class LowRankMembers(NamedTuple):
    """``M`` networks as one and its differences; a pytree that optax trains as a whole."""

    shared: ArrayTree
    r"""The shared network :math:`\theta_0`, leaves ``(*p)``."""
    deltas: ArrayTree
    r"""In the place of each leaf of ``shared`` a dictionary: ``{"down": (M, rows, r),
    "up": (M, r, columns)}`` for matrices and kernels, else ``{"full": (M, *p)}``."""


def low_rank_members(
    params: ArrayTree, num_members: int, rank: int, *, key: Array
) -> LowRankMembers:
    r"""Makes ``M`` members that begin as one network and differ from it by low rank.

    .. math:: \theta_m = \theta_0 + B_m A_m

    for every leaf of two axes or more, as a matrix of all but the last axis (rows) by the
    last (columns): a convolution's kernel has ``height * width * inputs`` rows. A leaf
    whose factors would be no smaller than itself, vectors and scalars among them, gets a
    full difference per member. In all, with :math:`P` numbers in the network,

    .. math:: P + M \sum_{\text{leaves}} \min(\text{rows} \cdot \text{columns},\;
        r\,(\text{rows} + \text{columns}))

    instead of :math:`M P`. The factor at the inputs' side (``down``) starts as
    ``U(-1/sqrt(rows), 1/sqrt(rows))``, that at the outputs' side (``up``) as zeros, as in
    LoRA: all members begin as the shared network, and no factor is stuck.

    Args:
        params: :math:`\theta_0`, leaves ``(*p)``, floating point.
        num_members: ``M``.
        rank: ``r >= 1``. Once it is full everywhere, any ``M`` networks can be reached.
        key: of the random factors.

    Returns:
        :class:`LowRankMembers`, in the dtypes of ``params``.

    Raises:
        ValueError: for a rank or a number of members below one, or parameters that are
            not floating point.

    Examples:
        >>> params = {"kernel": jnp.ones((20, 10)), "bias": jnp.zeros(10)}
        >>> members = low_rank_members(params, 2, 3, key=jax.random.key(0))
        >>> members.deltas["kernel"]["down"].shape, members.deltas["kernel"]["up"].shape
        ((2, 20, 3), (2, 3, 10))
        >>> sum(leaf.size for leaf in jax.tree.leaves(members))  # 210 + 2 (90 + 10)
        410

    References:
        Dimitriadis, Frossard and Fleuret, *Pareto Low-Rank Adapters*, 2024,
        arXiv:2407.20734; Hu et al., *LoRA*, 2021, arXiv:2106.09685
    """
    check_count("num_members", num_members, 1)
    check_count("rank", rank, 1)
    params = as_vector("params", params)
    leaves, structure = jax.tree.flatten(params)
    deltas = [_zeros(leaf, num_members, rank) for leaf in leaves]
    # Drawn at once: one compilation, not one for every shape.
    sizes = [delta["down"].size if "down" in delta else 0 for delta in deltas]
    dtype = tree.accumulator_dtype(params)
    flat = jax.random.uniform(key, (sum(sizes),), dtype, -1, 1)
    pieces = jnp.split(flat, np.cumsum(sizes)[:-1])
    for delta, piece in zip(deltas, pieces, strict=True):
        if "down" in delta:
            shape, kind = delta["down"].shape, delta["down"].dtype
            piece = piece.reshape(shape) / math.sqrt(shape[1])
            delta["down"] = piece.astype(kind)
    return LowRankMembers(params, jax.tree.unflatten(structure, deltas))


def low_rank_mixture(
    members: LowRankMembers, alpha: Any, *, scaling: float | Array = 1.0
) -> ArrayTree:
    r"""Returns the network :math:`\theta(\alpha) = \theta_0 + s \sum_m \alpha_m B_m A_m`.

    One product of matrices a leaf, of inner size ``M r``. Linear in ``alpha``; a one-hot
    one returns that member. What :func:`mtl_jax.pareto.member_mixture` is for members
    stacked in full.

    Args:
        members: of :func:`low_rank_members`.
        alpha: ``(M,)``, entries >= 0 with sum 1 (checked outside ``jit``).
        scaling: ``s``, of all differences; LoRA's is ``constant / rank``.

    Returns:
        leaves ``(*p)``, in the dtypes of ``members.shared``.

    Raises:
        ValueError: for an ``alpha`` of another shape or off the simplex.

    Examples:
        >>> shared = {"w": jnp.ones((2, 2))}
        >>> full = jnp.array([[[4.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 8.0]]])
        >>> members = LowRankMembers(shared, {"w": {"full": full}})
        >>> print(low_rank_mixture(members, [0.5, 0.5])["w"])
        [[3. 1.]
         [1. 5.]]

    References:
        Dimitriadis, Frossard and Fleuret, *Pareto Low-Rank Adapters*, 2024,
        arXiv:2407.20734
    """
    alpha = check_alphas("alpha", alpha, count_members(members.deltas), 1)
    weights = jnp.asarray(alpha, tree.accumulator_dtype(members))
    weights = weights * jnp.asarray(scaling, weights.dtype)

    def mixed(leaf: Any, delta: dict[str, Array]) -> Array:
        leaf = jnp.asarray(leaf)
        wide = jnp.promote_types(leaf.dtype, weights.dtype)
        if "full" in delta:
            change = tree.combine(weights, jnp.asarray(delta["full"], wide))
        else:
            change = lax.dot_general(
                weights[:, None, None].astype(wide) * jnp.asarray(delta["down"], wide),
                jnp.asarray(delta["up"], wide),
                (((0, 2), (0, 1)), ((), ())),
                precision=lax.Precision.HIGHEST,
            ).reshape(leaf.shape)
        return (leaf.astype(wide) + change).astype(leaf.dtype)

    return jax.tree.map(mixed, members.shared, members.deltas)


def _zeros(leaf: Array, num_members: int, rank: int) -> dict[str, Array]:
    rows, columns = math.prod(leaf.shape[:-1]), math.prod(leaf.shape[-1:])
    if rank * (rows + columns) >= leaf.size:
        return {"full": jnp.zeros((num_members, *leaf.shape), leaf.dtype)}
    return {
        "down": jnp.zeros((num_members, rows, rank), leaf.dtype),
        "up": jnp.zeros((num_members, rank, columns), leaf.dtype),
    }
